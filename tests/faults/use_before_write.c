/* A pointer that was never written, in a block fresh from malloc. */
#include "fault.h"

struct node {
    struct node *next;
    long value[1000]; /* libc has not used and freed a block of this class before */
};

int main(void)
{
    struct node *p = (struct node *)block(sizeof *p);
    names(p);
    if (p->next) hidden((void *)(uintptr_t)*(volatile long *)p->next->value);
    lived();
    return 0;
}
