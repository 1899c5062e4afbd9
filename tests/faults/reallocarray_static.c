/* reallocarray of a pointer to static data. */
#include "fault.h"

int main(void)
{
    static _Alignas(16) char there[64];
    names(there);
    hidden(reallocarray(hidden(there), 10, 6));
    lived();
    return 0;
}
