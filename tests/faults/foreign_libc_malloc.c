/* free of a block of another allocator: glibc's own malloc, under its inner name. */
#include "fault.h"

int main(void)
{
    void *(*other)(size_t);
    *(void **)&other = dlsym(RTLD_DEFAULT, "__libc_malloc");
    need(other != NULL, "__libc_malloc");
    char *p = other(100);
    need(p != NULL, "block");
    names(p);
    let_go(p);
    lived();
    return 0;
}
