/* free of a block by two threads that do not own it, one after the other. */
#include "fault.h"

int main(void)
{
    char *p = block(64), *keeps_slab = block(64);
    free_in_thread(p);
    names_freed(p, p, freeing_thread);
    free_in_thread(p);
    lived();
    flush(64);
    let_go(keeps_slab);
    return 0;
}
