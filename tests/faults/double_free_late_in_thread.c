/* free, twice, in the last round of a thread's destructors, when it has no heap any more. */
#include "fault.h"

static pthread_key_t key;
static char *p, *keeps_slab;
static int round_of_destructors;

static void destructor(void *value)
{
    if (++round_of_destructors < PTHREAD_DESTRUCTOR_ITERATIONS) {
        pthread_setspecific(key, value);
        return;
    }
    names(p);
    let_go(p);
    let_go(p);
    lived();
}

static void *run(void *unused)
{
    let_go(block(64));
    pthread_setspecific(key, p);
    return unused;
}

int main(void)
{
    need(pthread_key_create(&key, destructor) == 0, "key");
    p = block(64);
    keeps_slab = block(64);
    run_in_thread(run, NULL);
    return 0;
}
