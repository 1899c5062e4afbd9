/* free of a number that is no address of anything. */
#include "fault.h"

int main(int argc, char **argv)
{
    char *p = (char *)(uintptr_t)number(argv[1]);
    names(p);
    let_go(p);
    lived();
    return 0;
}
