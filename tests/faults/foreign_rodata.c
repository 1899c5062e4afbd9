/* free of a string literal. */
#include "fault.h"

int main(void)
{
    const char *there = "text";
    names(there);
    let_go(there);
    lived();
    return 0;
}
