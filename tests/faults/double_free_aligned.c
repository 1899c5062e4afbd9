/* free of a block of aligned_alloc twice in a row. */
#include "fault.h"

int main(void)
{
    char *p = hidden(aligned_alloc(4096, 100));
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return 0;
}
