/* free of a pointer into a block. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n), *q = p + number(argv[2]);
    names_inside(q, p);
    let_go(q);
    lived();
    flush(n);
    return 0;
}
