/* free of a pointer to code. */
#include "fault.h"

int main(void)
{
    names(hidden((void *)(uintptr_t)main));
    let_go((void *)(uintptr_t)main);
    lived();
    return 0;
}
