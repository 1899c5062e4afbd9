/* realloc of a number that is no address of anything. */
#include "fault.h"

int main(void)
{
    names((char *)0x1230);
    regrow((char *)0x1230, 100);
    lived();
    return 0;
}
