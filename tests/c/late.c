/* A library to be opened late: allocates in its constructor, gives memory away, has thread-local data. */
#include "common.h"

static __thread char buffer[2000];
static __thread void *kept;

__attribute__((constructor)) static void opened(void)
{
    free(calloc(10, 1000));
}

char *late_make(size_t n);
char *late_make(size_t n)
{
    memset(buffer, 1, sizeof buffer);
    free(kept);
    kept = malloc(n);
    char *p = malloc(n);
    memset(p, 9, n);
    return p;
}

void late_end(void);
void late_end(void)
{
    free(kept);
    kept = NULL;
}
