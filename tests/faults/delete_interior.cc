/* operator delete, with a size, of a pointer into a block. */
#include "fault.h"

int main(int, char **argv)
{
    char *p = static_cast<char *>(::operator new(64));
    names_inside(p + 16, p);
    ::operator delete(hidden(p + 16), number(argv[1]));
    lived();
    flush(64);
    return 0;
}
