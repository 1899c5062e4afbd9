/* A write before the start of a block, behind the end of the block before it, which is freed then. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p, *before = neighbours(n, &p);
    names(before);
    flip(p - 1);
    lived();
    let_go(p);
    let_go(before);
    return 0;
}
