/* realloc of a pointer to static data. */
#include "fault.h"

int main(void)
{
    static _Alignas(16) char there[64];
    names(there);
    regrow(there, 100);
    lived();
    return 0;
}
