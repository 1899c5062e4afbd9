/* realloc of a freed block, to a size that it has room for. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    regrow(p, 40);
    lived();
    return 0;
}
