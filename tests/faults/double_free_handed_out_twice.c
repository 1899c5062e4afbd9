/* free of a block twice, with another between; then malloc hands it to two callers, who never free it. */
#include "fault.h"

int main(void)
{
    char *p = block(64), *q = block(64);
    names(p);
    let_go(p);
    let_go(q);
    let_go(p);
    lived();
    take_until(p, 64);
    take_until(p, 64);
    return 0;
}
