/* A write into a block that another thread has freed. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    free_in_thread(p);
    names_freed(p, p, freeing_thread);
    flip(p);
    lived();
    take_until(p, 64);
    return 0;
}
