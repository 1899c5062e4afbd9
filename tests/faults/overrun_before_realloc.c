/* A write behind the end of a block, which goes to realloc then. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n);
    names(p);
    flip(p + n);
    lived();
    regrow(p, number(argv[2]));
    return 0;
}
