/* free of a table of the allocator's own. */
#include "fault.h"

int main(void)
{
    void *(*about)(void);
    *(void **)&about = dlsym(RTLD_DEFAULT, "hak_about");
    need(about != NULL, "hak_about");
    char *p = about();
    names(p);
    let_go(p);
    lived();
    return 0;
}
