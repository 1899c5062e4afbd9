/* free of a block of calloc twice in a row. */
#include "fault.h"

int main(void)
{
    char *p = hidden(calloc(4, 25));
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return 0;
}
