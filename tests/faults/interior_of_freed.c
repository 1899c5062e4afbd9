/* free of a pointer into a block that was freed. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names_inside(p + 16, p);
    let_go(p);
    let_go(p + 16);
    lived();
    flush(64);
    return 0;
}
