/* free of a block that was freed before malloc_trim. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n), *keeps_slab = block(n);
    names(p);
    let_go(p);
    malloc_trim(0);
    let_go(p);
    lived();
    malloc_trim(0);
    let_go(keeps_slab);
    return 0;
}
