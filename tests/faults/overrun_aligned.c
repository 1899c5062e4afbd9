/* A write behind the end of a block of aligned_alloc. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t align = number(argv[1]), n = number(argv[2]);
    char *p = hidden(aligned_alloc(align, n));
    names(p);
    flip(p + n);
    lived();
    let_go(p);
    return 0;
}
