/* free of a pointer to the stack. */
#include "fault.h"

int main(void)
{
    char here[64];
    names(hidden(here) + 16);
    let_go(here + 16);
    lived();
    return 0;
}
