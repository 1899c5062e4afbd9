/* A write a mebibyte behind the end of a block, into units without blocks. */
#include "fault.h"

int main(void)
{
    char *p = block(2 * MIB); /* what comes behind it is free: nothing else has been taken */
    names(p);
    flip(p + 3 * MIB);
    lived();
    let_go(p);
    return 0;
}
