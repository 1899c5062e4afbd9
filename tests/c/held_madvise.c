/* madvise in which the next thread that gives memory back stands still until it is let go. Beside a program. */
#include "common.h"
#include <stdatomic.h>
#include <sys/syscall.h>

enum { NOBODY, WANTED, HELD };
__attribute__((visibility("default"))) atomic_int purge_held;

__attribute__((visibility("default"))) int madvise(void *p, size_t n, int advice)
{
    int wanted = WANTED;
    if (advice == MADV_DONTNEED && atomic_compare_exchange_strong(&purge_held, &wanted, HELD))
        while (atomic_load(&purge_held) == HELD) sleep_ms(1);
    return (int)syscall(SYS_madvise, p, n, advice);
}
