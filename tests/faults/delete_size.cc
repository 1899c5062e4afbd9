/* operator delete with a size: the one that the block was made with, or another. */
#include "fault.h"

int main(int, char **argv)
{
    char *p = static_cast<char *>(::operator new(number(argv[1])));
    names(p);
    ::operator delete(hidden(p), number(argv[2]));
    lived();
    return 0;
}
