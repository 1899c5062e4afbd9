/* A read of a freed block. */
#include "fault.h"

int main(int argc, char **argv)
{
    char *p = block(number(argv[1]));
    names(p);
    let_go(p);
    hidden((void *)(uintptr_t)*(volatile char *)hidden(p));
    lived();
    return 0;
}
