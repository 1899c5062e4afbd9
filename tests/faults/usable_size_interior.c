/* malloc_usable_size of a pointer into a block. */
#include "fault.h"

int main(int argc, char **argv)
{
    char *p = block(number(argv[1])), *q = p + number(argv[2]);
    names_inside(q, p);
    malloc_usable_size(hidden(q));
    lived();
    return 0;
}
