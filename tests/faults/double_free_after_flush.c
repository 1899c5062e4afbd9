/* free of a block that was freed, and flushed into its slab, before. */
#include "fault.h"

int main(int argc, char **argv)
{
    static char *other[1600];
    size_t n = number(argv[1]), count = n <= KIB ? 1600 : 400;
    char *p = block(n), *keeps_slab = block(n);
    for (size_t i = 0; i < count; i++) other[i] = block(n);
    names(p);
    let_go(p);
    for (size_t i = 0; i < count / 2; i++) let_go(other[i]);
    let_go(p);
    lived();
    for (size_t i = count / 2; i < count; i++) let_go(other[i]);
    let_go(keeps_slab);
    return 0;
}
