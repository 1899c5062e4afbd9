/* reallocarray of a freed block. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    hidden(reallocarray(hidden(p), 10, 6));
    lived();
    return 0;
}
