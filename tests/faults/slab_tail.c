/* free of a pointer to the end of a slab, which is too short for a block. */
#include "fault.h"

int main(void)
{
    char *p = block(70), *slab = p - (uintptr_t)p % UNIT; /* of blocks of 80 bytes */
    names(slab + UNIT / 80 * 80);
    let_go(slab + UNIT / 80 * 80);
    lived();
    flush(70);
    return 0;
}
