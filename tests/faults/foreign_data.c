/* free of a pointer to initialised static data. */
#include "fault.h"

int main(void)
{
    static _Alignas(16) char there[64] = "text";
    names(there);
    let_go(there);
    lived();
    return 0;
}
