/* free of a block twice, with another block between. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n), *q = block(n), *keeps_slab = block(n);
    names(p);
    let_go(p);
    let_go(q);
    let_go(p);
    lived();
    flush(n);
    let_go(keeps_slab);
    return 0;
}
