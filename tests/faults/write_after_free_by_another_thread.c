/* A thread writes into a block that its owner has freed. */
#include "fault.h"

static void *write_it(void *p)
{
    flip(p);
    return NULL;
}

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    run_in_thread(write_it, p);
    lived();
    take_until(p, 64);
    return 0;
}
