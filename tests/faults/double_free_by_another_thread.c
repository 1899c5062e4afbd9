/* free of a block that another thread has freed. */
#include "fault.h"

int main(void)
{
    char *p = block(64), *q = block(64), *keeps_slab = block(64);
    free_in_thread(p);
    names_freed(p, p, freeing_thread);
    let_go(q); /* p may be back in this thread's stack already */
    let_go(p);
    lived();
    flush(64);
    let_go(keeps_slab);
    return 0;
}
