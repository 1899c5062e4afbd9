/* operator delete, with its size, of a block of malloc: not portable, and no fault here. */
#include "fault.h"

int main(int, char **argv)
{
    char *p = block(number(argv[1]));
    names(p);
    ::operator delete(hidden(p), number(argv[1]));
    lived();
    return 0;
}
