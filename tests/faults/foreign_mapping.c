/* free of the middle of a mapping of the program's own, as large as a superslab and more. */
#include "fault.h"

int main(void)
{
    char *p = mmap(NULL, 200 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    need(p != MAP_FAILED, "mapping");
    names(p + 64 * MIB);
    let_go(p + 64 * MIB);
    lived();
    return 0;
}
