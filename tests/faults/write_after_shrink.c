/* A write into what realloc has cut off a block. */
#include "fault.h"

int main(void)
{
    char *p = block(8 * MIB), *q = regrow(p, 5 * MIB);
    need(q == p, "block where it was");
    names(p);
    flip(p + 6 * MIB);
    lived();
    let_go(p);
    return 0;
}
