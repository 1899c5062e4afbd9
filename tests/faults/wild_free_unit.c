/* free of an address in a superslab in use, on a unit without blocks. */
#include "fault.h"

int main(void)
{
    char *p = block(2 * MIB); /* what comes behind it is free: nothing else has been taken */
    names(p + 3 * MIB);
    let_go(p + 3 * MIB);
    lived();
    return 0;
}
