/* operator delete, with a size, of a pointer to static data. */
#include "fault.h"

int main()
{
    static char there[64];
    names(there);
    ::operator delete(hidden(there), sizeof there);
    lived();
    return 0;
}
