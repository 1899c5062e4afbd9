/* Until memory runs out, and after: NULL and ENOMEM, nothing lost, and what is freed can be had again.
 * Argument: MiB that must at least be had (the limit is set outside). */
#include "common.h"

struct link {
    struct link *next;
    size_t n;
};

static size_t fill(size_t n, struct link **list)
{
    size_t got = 0;
    for (;;) {
        errno = 0;
        struct link *p = malloc(n);
        if (!p) {
            CHECK(errno == ENOMEM, "%zu bytes: errno %d", n, errno);
            return got;
        }
        p->n = n;
        p->next = *list;
        *list = p;
        got += n;
    }
}

static void release(struct link **list)
{
    while (*list) {
        struct link *next = (*list)->next;
        free(*list);
        *list = next;
    }
}

static void *in_a_thread(void *argument)
{
    for (int i = 0; i < 1000; i++) {
        void *p = malloc((size_t)i * 10);
        if (p) memset(p, 1, (size_t)i * 10);
        free(p);
    }
    return argument;
}

static void use_a_thread(void)
{
    pthread_t thread;
    int code = pthread_create(&thread, NULL, in_a_thread, NULL);
    CHECK(code == 0, "pthread_create: %d", code);
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    size_t wanted = strtoull(argv[1], NULL, 10) * MIB;
    static const size_t sizes[] = {3000, 100000, 64, 2 * MIB, 16, 20000, 9 * MIB, 300};
    struct link *list = NULL;
    use_a_thread();
    uint64_t kept_key = 77;
    size_t kept_n = 5000;
    char *kept = malloc(kept_n), *large = malloc(3 * MIB);
    pattern_write(kept, kept_n, (uint32_t)kept_key);
    pattern_write(large, 3 * MIB, 5);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t got = fill(sizes[i], &list);
        CHECK(got >= (sizes[i] < 64 ? wanted / 2 : wanted), "only %zu KiB in blocks of %zu", got / KIB, sizes[i]);
        /* while nothing is left: fail and leave the old block alone */
        errno = 0;
        CHECK(realloc(large, 2000 * MIB) == NULL && errno == ENOMEM, "errno %d", errno);
        errno = 0;
        CHECK(calloc(2000, MIB) == NULL && errno == ENOMEM, "errno %d", errno);
        void *p = NULL;
        CHECK(posix_memalign(&p, MIB, 2000 * MIB) == ENOMEM && p == NULL);
        errno = 0;
        CHECK(aligned_alloc(4096, 2000 * MIB) == NULL && errno == ENOMEM, "errno %d", errno);
        CHECK(pattern_wrong(kept, kept_n, (uint32_t)kept_key, kept_n) == SIZE_MAX, "a live block was overwritten");
        CHECK(pattern_wrong(large, 3 * MIB, 5, 3 * MIB) == SIZE_MAX, "a live block was overwritten");
        release(&list);
        /* and recover */
        p = malloc(20 * MIB);
        CHECK(p, "20 MiB after all was freed (blocks of %zu)", sizes[i]);
        memset(p, 1, 20 * MIB);
        free(p);
        use_a_thread(); /* its stack is the first one's: libc keeps it */
    }
    dprintf(1, "recovered\n");
    return 0;
}
