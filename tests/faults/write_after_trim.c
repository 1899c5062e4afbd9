/* A write into a freed block whose slab has gone back. */
#include "fault.h"

int main(void)
{
    static char *p[20000];
    for (int i = 0; i < 20000; i++) p[i] = block(64);
    for (int i = 0; i < 20000; i++) let_go(p[i]);
    malloc_trim(0);
    names(p[10000]);
    flip(p[10000]);
    lived();
    return 0;
}
