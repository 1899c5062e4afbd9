/* malloc_usable_size of a freed block. */
#include "fault.h"

int main(int argc, char **argv)
{
    char *p = block(number(argv[1]));
    names(p);
    let_go(p);
    malloc_usable_size(hidden(p));
    lived();
    return 0;
}
