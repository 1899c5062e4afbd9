/* operator delete, with its size, of a freed block. */
#include "fault.h"

int main()
{
    char *p = static_cast<char *>(::operator new(64));
    names(p);
    let_go(p);
    ::operator delete(hidden(p), std::size_t{64});
    lived();
    return 0;
}
