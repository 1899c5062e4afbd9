/* realloc of a pointer into a block. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n), *q = p + number(argv[2]);
    names_inside(q, p);
    regrow(q, 100);
    lived();
    return 0;
}
