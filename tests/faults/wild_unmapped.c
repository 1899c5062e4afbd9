/* free of an address that was mapped once. */
#include "fault.h"

int main(void)
{
    char *p = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(p != MAP_FAILED && munmap(p, 4 * MIB) == 0, "mapping");
    names(p + 4096);
    let_go(p + 4096);
    lived();
    return 0;
}
