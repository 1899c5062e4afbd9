/* A write behind the new end of a block that realloc has made larger where it stands. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]), to = number(argv[2]);
    char *p = block(n), *q = regrow(p, to);
    need(p == q, "room to grow");
    names(p);
    flip(p + to);
    lived();
    let_go(p);
    return 0;
}
