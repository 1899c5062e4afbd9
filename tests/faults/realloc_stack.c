/* realloc of a pointer to the stack. */
#include "fault.h"

int main(void)
{
    char here[64];
    names(hidden(here));
    regrow(here, 100);
    lived();
    return 0;
}
