/* A write behind the end of a block, which is freed then: its size, the first byte written, and how many. */
#include "fault.h"

int main(int argc, char **argv)
{
    size_t n = number(argv[1]), at = number(argv[2]);
    char *next, *p = n < 32 * KIB ? neighbours(n, &next) : block(n); /* so that it does not hit a block of libc's */
    names(p);
    for (size_t i = 0; i < number(argv[3]); i++) flip(p + at + i);
    lived();
    let_go(p);
    return 0;
}
