/* free of the old block after realloc has moved it. */
#include "fault.h"

int main(void)
{
    char *p = block(64), *q = regrow(p, 3000);
    need(q != p, "move");
    names(p);
    let_go(p);
    lived();
    return 0;
}
