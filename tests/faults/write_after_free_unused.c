/* A write into a freed block that malloc does not hand out again. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    flip(p);
    lived();
    return 0;
}
