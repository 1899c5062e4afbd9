/* A handler of exit frees a block that main has freed. */
#include "fault.h"

static char *p;

static void at_exit(void)
{
    let_go(p);
    lived();
}

int main(void)
{
    p = block(64);
    atexit(at_exit);
    names(p);
    let_go(p);
    return 0;
}
