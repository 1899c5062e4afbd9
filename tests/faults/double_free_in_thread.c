/* A thread frees a block of its own twice in a row, while main waits for it. */
#include "fault.h"

static void *run(void *unused)
{
    char *p = block(64);
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return unused;
}

int main(void)
{
    run_in_thread(run, NULL);
    return 0;
}
