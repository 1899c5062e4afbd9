/* free of a pointer to a block of a slab in use that malloc has not handed out yet. */
#include "fault.h"

int main(void)
{
    char *p = block(2000), *q = p + 2048 * 4;
    names(q);
    let_go(q);
    lived();
    flush(2000);
    return 0;
}
