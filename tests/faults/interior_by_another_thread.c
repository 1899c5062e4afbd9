/* free of a pointer into a block of another thread. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names_inside(p + 16, p);
    free_in_thread(p + 16);
    lived();
    flush(64);
    return 0;
}
