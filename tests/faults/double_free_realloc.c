/* free of a block of realloc twice in a row. */
#include "fault.h"

int main(void)
{
    char *p = regrow(block(10), 1000);
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return 0;
}
