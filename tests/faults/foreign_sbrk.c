/* free of memory that sbrk gave. */
#include "fault.h"

int main(void)
{
    char *p = sbrk(4096);
    need(p != (void *)-1, "break");
    names(p + 16);
    let_go(p + 16);
    lived();
    return 0;
}
