/* realloc of a freed block, to a size that it has no room for. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]);
    char *p = block(n);
    names(p);
    let_go(p);
    regrow(p, 4 * n);
    lived();
    return 0;
}
