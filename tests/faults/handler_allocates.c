/* A handler of SIGABRT that uses malloc and stdio, after a fault that may be found while a claim is held. */
#include "fault.h"

static void handler(int signal)
{
    char *p[100];
    for (int i = 0; i < 100; i++) p[i] = malloc((size_t)i * 100);
    for (int i = 0; i < 100; i++) free(p[i]);
    free(malloc(3 * MIB));
    free(malloc(100 * MIB));
    FILE *file = fopen("/dev/null", "w");
    fprintf(file, "signal %d\n", signal);
    fclose(file);
    _exit(7);
}

int main(void)
{
    signal(SIGABRT, handler);
    char *p = block(64), *q = block(64), *keeps_slab = block(64);
    names(p);
    let_go(p);
    let_go(q);
    let_go(p);
    lived();
    flush(64);
    let_go(keeps_slab);
    return 0;
}
