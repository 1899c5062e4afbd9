/* free of what getenv returns. */
#include "fault.h"

int main(void)
{
    char *p = getenv("PATH");
    need(p != NULL, "PATH");
    names(p);
    let_go(p);
    lived();
    return 0;
}
