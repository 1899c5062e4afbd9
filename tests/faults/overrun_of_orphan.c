/* A write behind the end of a block whose thread has ended. */
#include "fault.h"

static char *p;

static void *make(void *unused)
{
    p = block(100);
    return unused;
}

int main(void)
{
    run_in_thread(make, NULL);
    names(p);
    flip(p + 100);
    lived();
    let_go(p);
    return 0;
}
