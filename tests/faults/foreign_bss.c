/* free of a pointer to static data without a value. */
#include "fault.h"

int main(void)
{
    static _Alignas(16) char there[64];
    names(there);
    let_go(there);
    lived();
    return 0;
}
