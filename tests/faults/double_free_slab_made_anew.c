/* free of a block whose slab was given back and made anew for another class: inside a live block of that. */
#include "fault.h"

int main(void)
{
    static char *old[20000], *now[2000];
    for (int i = 0; i < 20000; i++) old[i] = block(64);
    for (int i = 0; i < 20000; i++) let_go(old[i]);
    malloc_trim(0);
    for (int i = 0; i < 2000; i++) now[i] = block(1000);
    for (int i = 0; i < 20000; i++)
        for (int k = 0; k < 2000; k++)
            if (old[i] > now[k] && old[i] < now[k] + 1000) {
                names_inside(old[i], now[k]);
                let_go(old[i]);
                lived();
                flush(1000);
                return 0;
            }
    need(0, "block made anew");
    return 0;
}
