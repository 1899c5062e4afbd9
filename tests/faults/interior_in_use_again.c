/* free of a pointer into a block, which malloc hands out then. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names_inside(p + 16, p);
    let_go(p + 16);
    lived();
    take_until(p + 16, 64);
    return 0;
}
