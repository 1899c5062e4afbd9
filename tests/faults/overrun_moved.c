/* A write behind the end of a block that realloc has moved. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t to = number(argv[1]);
    char *p = regrow(block(24), to);
    names(p);
    flip(p + to);
    lived();
    let_go(p);
    return 0;
}
