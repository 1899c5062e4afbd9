/* A write far behind the end of a block, into the live block that follows. */
#include "fault.h"

int main(void)
{
    char *next, *p = neighbours(100, &next);
    names(p);
    flip(next + 10);
    lived();
    let_go(p);
    let_go(next);
    return 0;
}
