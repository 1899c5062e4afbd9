/* free of a thread-local variable. */
#include "fault.h"

static _Thread_local _Alignas(16) char there[64];

int main(void)
{
    names(there);
    let_go(there);
    lived();
    return 0;
}
