/* realloc of a freed block to 0 bytes, which frees it again. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    regrow(p, 0);
    lived();
    return 0;
}
