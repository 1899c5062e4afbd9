/* free, twice in a row, of a block that is aligned to more than a unit. */
#include "fault.h"

int main(void)
{
    char *p = hidden(memalign(MIB, 100));
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return 0;
}
