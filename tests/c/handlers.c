/* A library whose fork handlers allocate. Preloaded last, so that its constructor runs before hakmem's. */
#include "common.h"

int handlers_ran;
static void *kept[3][5000];

static void allocate(int which)
{
    for (int i = 0; i < 5000; i++) kept[which][i] = malloc((size_t)(i % 40 + 1) * 100);
    for (int i = 0; i < 5000; i += 2) free(kept[which][i]);
    handlers_ran++;
}

static void before(void)
{
    allocate(0);
}

static void in_parent(void)
{
    allocate(1);
}

static void in_child(void)
{
    allocate(2);
}

__attribute__((constructor)) static void opened(void)
{
    pthread_atfork(before, in_parent, in_child);
}
