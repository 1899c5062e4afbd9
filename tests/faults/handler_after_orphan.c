/* The same, after a fault that may be found while the page heap's lock is held. */
#include "fault.h"

static char *p, *keeps_slab;

static void *make(void *unused)
{
    p = block(64);
    keeps_slab = block(64);
    return unused;
}

static void handler(int signal)
{
    char *q[100];
    for (int i = 0; i < 100; i++) q[i] = malloc((size_t)i * 10000);
    for (int i = 0; i < 100; i++) free(q[i]);
    printf("signal %d\n", signal);
    fflush(stdout);
    _exit(7);
}

int main(void)
{
    signal(SIGABRT, handler);
    run_in_thread(make, NULL);
    names(p);
    let_go(p);
    let_go(p);
    lived();
    malloc_trim(0);
    return 0;
}
