/* malloc_usable_size of a pointer to static data. */
#include "fault.h"

int main(void)
{
    static _Alignas(16) char there[64];
    names(there);
    malloc_usable_size(hidden(there));
    lived();
    return 0;
}
