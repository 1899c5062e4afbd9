/* A child of fork frees a block that its parent freed before. */
#include "fault.h"

int main(void)
{
    char *p = block(64);
    names(p);
    let_go(p);
    pid_t child = fork();
    need(child >= 0, "child");
    if (child == 0) {
        let_go(p);
        lived();
        malloc_trim(0);
        _exit(0);
    }
    int status;
    need(waitpid(child, &status, 0) == child, "end of the child");
    need(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "result of the child");
    if (WIFSIGNALED(status)) {
        signal(WTERMSIG(status), SIG_DFL);
        raise(WTERMSIG(status));
    }
    return 0;
}
