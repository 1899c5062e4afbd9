/* A write into the old block after realloc has moved it. */
#include "fault.h"

int main(void)
{
    char *p = block(64), *q = regrow(p, 3000);
    need(q != p, "move");
    names(p);
    flip(p);
    lived();
    take_until(p, 64);
    return 0;
}
