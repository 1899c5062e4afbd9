/* realloc, to a few bytes, of an address on a unit without blocks; "fresh": by a thread that has called nothing else. */
#include "fault.h"

static char *where;

static void *resize(void *nothing)
{
    regrow(where, 8);
    return nothing;
}

int main(int argc, char **argv)
{
    where = block(2 * MIB) + 3 * MIB; /* what comes behind it is free: nothing else has been taken */
    names(where);
    if (argc > 1 && strcmp(argv[1], "fresh") == 0) {
        pthread_t thread;
        need(pthread_create(&thread, NULL, resize, NULL) == 0, "thread");
        pthread_join(thread, NULL);
    } else {
        resize(NULL);
    }
    lived();
    return 0;
}
