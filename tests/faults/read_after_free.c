/* A read of a pointer out of a freed block, and of what that points to. */
#include "fault.h"

struct node {
    struct node *next;
    long value;
};

int main(void)
{
    static struct node last = {NULL, 7};
    struct node *p = (struct node *)block(sizeof *p);
    p->next = &last;
    names(p);
    let_go(p);
    p = (struct node *)hidden(p);
    hidden((void *)(uintptr_t)*(volatile long *)&p->next->value);
    lived();
    return 0;
}
