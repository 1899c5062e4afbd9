/* free of stdout, which is libc's. */
#include "fault.h"

int main(void)
{
    names(stdout);
    let_go(stdout);
    lived();
    return 0;
}
