/* A write into a freed block of 100 MiB after malloc_trim, which unmaps what was kept. */
#include "fault.h"

int main(void)
{
    char *p = block(100 * MIB);
    names(p);
    let_go(p);
    malloc_trim(0);
    flip(p);
    lived();
    return 0;
}
