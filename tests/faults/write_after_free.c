/* A write into a freed block, which malloc hands out again then. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n);
    names(p);
    let_go(p);
    flip(p + number(argv[2]));
    lived();
    take_until(p, n);
    return 0;
}
