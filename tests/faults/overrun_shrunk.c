/* A write behind the new end of a block that realloc has made smaller. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]), to = number(argv[2]);
    char *p = regrow(block(n), to);
    names(p);
    flip(p + to);
    lived();
    let_go(p);
    return 0;
}
