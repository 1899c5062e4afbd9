/* operator delete with a size and an alignment: the size that the block was made with, or another. */
#include "fault.h"

#include <new>

int main(int, char **argv)
{
    std::align_val_t line{64};
    char *p = static_cast<char *>(::operator new(number(argv[1]), line));
    names(p);
    ::operator delete(hidden(p), number(argv[2]), line);
    lived();
    return 0;
}
