/* free of a block that was freed before, and that malloc has handed to somebody else since. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    take_until(p, 64);
    let_go(p);
    lived();
    return 0;
}
