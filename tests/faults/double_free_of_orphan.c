/* free, twice, of a block whose thread has ended. */
#include "fault.h"

static char *p, *keeps_slab;

static void *make(void *unused)
{
    p = block(64);
    keeps_slab = block(64);
    return unused;
}

int main(void)
{
    run_in_thread(make, NULL);
    names(p);
    let_go(p);
    let_go(p);
    lived();
    malloc_trim(0);
    return 0;
}
