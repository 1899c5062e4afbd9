/* A write behind the end of an array, which is deleted then. */
#include "fault.h"

int main()
{
    char *p = static_cast<char *>(::operator new[](100));
    names(p);
    flip(p + 100);
    lived();
    ::operator delete[](hidden(p), std::size_t{100});
    return 0;
}
