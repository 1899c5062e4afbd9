/* free of a block twice in a row, while other threads take and free blocks. */
#include "fault.h"

static void *churn(void *unused)
{
    static const size_t sizes[] = {16, 100, 1500, 20000, 300000, 2 * MIB};
    for (unsigned i = 0;; i++) {
        char *p = block(sizes[i % 6]), *q = block(sizes[(i / 6) % 6]);
        let_go(p);
        let_go(q);
    }
    return unused;
}

int main(void)
{
    pthread_t thread;
    for (int i = 0; i < 4; i++) need(pthread_create(&thread, NULL, churn, NULL) == 0, "thread");
    usleep(2000);
    char *p = block(64);
    names(p);
    let_go(p);
    let_go(p);
    lived();
    return 0;
}
