/* A library in whose world mremap succeeds once. */
#include "common.h"
#include <sys/syscall.h>

int mremap_calls;

void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
    if (mremap_calls++ == 0) return (void *)syscall(SYS_mremap, old, old_size, new_size, flags, NULL);
    errno = ENOMEM;
    return MAP_FAILED;
}
