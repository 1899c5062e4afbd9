/* realloc of a pointer to static data to 0 bytes, which frees it. */
#include "fault.h"

int main(void)
{
    static _Alignas(16) char there[64];
    names(there);
    regrow(there, 0);
    lived();
    return 0;
}
