/* A write behind the end of a block that another thread frees then. */
#include "fault.h"

int main(void)
{
    char *p = block(100);
    names(p);
    flip(p + 100);
    lived();
    free_in_thread(p);
    return 0;
}
