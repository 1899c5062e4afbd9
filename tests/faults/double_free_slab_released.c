/* free of a block whose whole slab was given back after its blocks were freed. */
#include "fault.h"

int main(void)
{
    static char *p[20000];
    for (int i = 0; i < 20000; i++) p[i] = block(64);
    for (int i = 0; i < 20000; i++) let_go(p[i]);
    malloc_trim(0);
    names(p[10000]);
    let_go(p[10000]);
    lived();
    malloc_trim(0);
    return 0;
}
