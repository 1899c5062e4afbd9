/* A thread frees a pointer to main's stack. */
#include "fault.h"

int main(void)
{
    char here[64];
    names(hidden(here));
    free_in_thread(here);
    lived();
    return 0;
}
