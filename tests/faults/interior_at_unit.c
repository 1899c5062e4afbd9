/* free of a pointer into a block that lies across two units, where the second begins. */
#include "fault.h"

int main(void)
{
    char *p;
    do p = block(20000);
    while ((uintptr_t)p / UNIT == ((uintptr_t)p + 19999) / UNIT);
    char *q = (char *)(((uintptr_t)p / UNIT + 1) * UNIT);
    names_inside(q, p);
    let_go(q);
    lived();
    flush(20000);
    return 0;
}
