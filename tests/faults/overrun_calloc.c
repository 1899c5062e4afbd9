/* A write behind the end of a block of calloc. */
#include "fault.h"

int main(void)
{
    char *p = hidden(calloc(9, 12));
    names(p);
    flip(p + 9 * 12);
    lived();
    let_go(p);
    return 0;
}
