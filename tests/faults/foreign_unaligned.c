/* free of an odd address in static data. */
#include "fault.h"

int main(void)
{
    static char there[64];
    names(there + 3);
    let_go(there + 3);
    lived();
    return 0;
}
