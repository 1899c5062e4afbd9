/* A write behind the end of a block that is never freed. */
#include "fault.h"

int main(void)
{
    char *p = block(100);
    names(p);
    flip(p + 100);
    lived();
    return 0;
}
