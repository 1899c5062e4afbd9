/* free of a block twice in a row. */
#include "fault.h"

int main(int argc, char **argv)
{
    char *p = block(number(argv[1]));
    names(p);
    let_go(p);
    let_go(p);
    lived();
    flush(number(argv[1]));
    return 0;
}
