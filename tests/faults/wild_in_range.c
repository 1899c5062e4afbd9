/* free of an address in the reserved range, where no block has ever been. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p + 512 * MIB);
    let_go(p + 512 * MIB);
    lived();
    return 0;
}
