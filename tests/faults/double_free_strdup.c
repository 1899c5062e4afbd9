/* free of a string of strdup twice in a row. */
#include "fault.h"

int main(void)
{
    char *p = hidden(strdup("hakmem"));
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return 0;
}
