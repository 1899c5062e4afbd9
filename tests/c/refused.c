/* A system that really refuses: limits of its own making, one case each. Run with hakmem preloaded, or without. Prints
 * "skipped: why" where the system does not let the case be made. */
#include "common.h"
#include <sys/resource.h>

struct link {
    struct link *next;
    size_t n;
};

static const size_t SIZES[] = {3000, 100000, 64, 2 * MIB, 700000, 16, 70 * MIB, 20000, 9 * MIB, 300};

static void skip(const char *why)
{
    dprintf(1, "skipped: %s: %s\n", why, strerror(errno));
    _exit(0);
}

/* Blocks until there is no more, or `most` bytes. */
static size_t fill(size_t n, size_t most, struct link **list)
{
    size_t got = 0;
    while (got < most) {
        errno = 0;
        struct link *p = malloc(n);
        if (!p) {
            CHECK(errno == ENOMEM, "%zu bytes: errno %d", n, errno);
            break;
        }
        *p = (struct link){*list, n};
        *list = p;
        got += n;
    }
    return got;
}

static void release(struct link **list)
{
    while (*list) {
        struct link *next = (*list)->next;
        errno = 4711;
        free(*list);
        CHECK(errno == 4711);
        *list = next;
    }
}

/* Everything there is, in blocks of each size; what is live stays whole, and what was freed is had again. */
static void exhaust(size_t most)
{
    struct link *list = NULL;
    char *kept = malloc(5000), *large = malloc(3 * MIB);
    int refused = 0;
    CHECK(kept);
    pattern_write(kept, 5000, 7);
    if (large) pattern_write(large, 3 * MIB, 8);
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) {
        size_t got = fill(SIZES[i], most, &list);
        refused += got < most;
        char *grown = large ? realloc(large, 80 * MIB) : NULL;
        if (grown) {
            CHECK(pattern_wrong(grown, 3 * MIB, 8, 3 * MIB) == SIZE_MAX);
            large = realloc(grown, 3 * MIB);
            CHECK(large, "a shrink");
        }
        CHECK(pattern_wrong(kept, 5000, 7, 5000) == SIZE_MAX);
        CHECK(!large || pattern_wrong(large, 3 * MIB, 8, 3 * MIB) == SIZE_MAX);
        release(&list);
        size_t more = fill(SIZES[i], got, &list);
        CHECK(more >= got / 2, "%zu KiB in blocks of %zu, then %zu KiB", got / KIB, SIZES[i], more / KIB);
        release(&list);
    }
    CHECK(refused, "nothing was refused: the case tests nothing");
    free(kept);
    free(large);
    malloc_trim(0);
    check_laws();
}

static void limit(int resource, size_t bytes)
{
    struct rlimit r;
    CHECK(getrlimit(resource, &r) == 0);
    r.rlim_cur = bytes;
    if (r.rlim_max < bytes) r.rlim_max = bytes; /* for root */
    if (setrlimit(resource, &r) != 0) skip("setrlimit");
}

static size_t status_bytes(const char *name) /* a line of /proc/self/status */
{
    char text[8192];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    CHECK(got > 0);
    text[got] = 0;
    const char *at = strstr(text, name);
    CHECK(at, "no %s", name);
    return strtoull(at + strlen(name), NULL, 10) * KIB;
}

static void data_limit(void)
{
    limit(RLIMIT_DATA, status_bytes("VmData:") + 100 * MIB);
    exhaust(400 * MIB);
    limit(RLIMIT_DATA, RLIM_INFINITY);
    struct link *list = NULL;
    CHECK(fill(2 * MIB, 400 * MIB, &list) >= 400 * MIB);
    release(&list);
}

static void become_nobody(void)
{
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) skip("setuid");
}

/* Locked memory is never purged, and its owner never told that it is zero. */
static void zeroed_while_locked(struct link **list)
{
    release(list);
    malloc_trim(0);
    check_laws();
    for (int i = 0; i < 100; i++) {
        char *p = calloc(1, 30000), *q = calloc(1, 2 * MIB);
        CHECK(p && is_zero(p, 30000));
        CHECK(!q || is_zero(q, 2 * MIB));
        memset(p, 1, 30000);
        if (q) memset(q, 1, 2 * MIB);
        free(p);
        free(q);
    }
}

static void unlocked(void)
{
    struct link *list = NULL;
    CHECK(munlockall() == 0);
    malloc_trim(0);
    CHECK(fill(70 * MIB, 300 * MIB, &list) >= 300 * MIB);
    release(&list);
    check_laws();
}

static void all_memory_locked(void) /* with a right to it, or within the limit */
{
    struct link *list = NULL;
    CHECK(fill(500, 8 * MIB, &list) >= 8 * MIB && fill(3 * MIB, 30 * MIB, &list) >= 30 * MIB);
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) skip("mlockall");
    zeroed_while_locked(&list);
    unlocked();
}

static void future_memory_locked(void) /* beyond the limit mmap says EAGAIN */
{
    struct link *list = NULL;
    limit(RLIMIT_MEMLOCK, 4 * MIB);
    become_nobody();
    CHECK(fill(500, 8 * MIB, &list) >= 8 * MIB && fill(3 * MIB, 30 * MIB, &list) >= 30 * MIB);
    if (mlockall(MCL_FUTURE) != 0) skip("mlockall");
    zeroed_while_locked(&list);
    CHECK(fill(70 * MIB, 70 * MIB, &list) == 0);
    errno = 0;
    CHECK(malloc(2000 * MIB) == NULL && errno == ENOMEM, "errno %d", errno);
    release(&list);
    unlocked();
}

/* ---- as many mappings as a process may have */

enum { MAPPINGS = 70000 };

static char *fences(size_t page) /* pages of which each is a mapping of its own; NULL: there is no limit so low */
{
    char *p = mmap(NULL, 2 * MAPPINGS * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    for (size_t i = 0; i < MAPPINGS; i++)
        if (mprotect(p + (2 * i + 1) * page, page, PROT_READ) != 0) return p;
    return NULL;
}

static void mapping_ceiling(void)
{
    enum { WHALES = 9 };
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 70 * MIB;
    char *whale[WHALES], *small[3000], *runs[6], *p;
    struct link *list = NULL;
    size_t got[COUNT_OF(SIZES)];
    for (int i = 0; i < WHALES; i++) {
        CHECK((whale[i] = malloc(n)));
        memset(whale[i], 1, 8 * MIB);
        pattern_write(whale[i], MIB, (uint32_t)i);
    }
    for (size_t i = 0; i < COUNT_OF(small); i++) CHECK((small[i] = malloc(1 + i * 7)));
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        CHECK((runs[i] = malloc(3 * MIB)));
        pattern_write(runs[i], 3 * MIB, (uint32_t)i);
    }
    size_t before = rss_bytes();
    char *wall = fences(page);
    if (!wall) {
        dprintf(1, "skipped: vm.max_map_count is above %d\n", 2 * MAPPINGS);
        return;
    }
    for (int i = 1; i < WHALES; i += 2) { /* between others: they are one mapping, which cannot be cut */
        errno = 4711;
        free(whale[i]);
        CHECK(errno == 4711);
    }
    for (size_t i = 0; i < COUNT_OF(small); i += 2) free(small[i]);
    malloc_trim(0);
    size_t rss = rss_bytes();
    CHECK(rss + 3 * 8 * MIB < before, "%zu MiB, then %zu MiB", before / MIB, rss / MIB);
    check_laws();
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) {
        got[i] = fill(SIZES[i], 100 * MIB, &list);
        release(&list);
    }
    for (size_t i = 0; i < COUNT_OF(runs); i++) {
        p = realloc(runs[i], 5 * MIB);
        if (p) runs[i] = p;
        CHECK(pattern_wrong(runs[i], 3 * MIB, (uint32_t)i, 3 * MIB) == SIZE_MAX);
    }
    if ((p = aligned_alloc(128 * MIB, MIB))) free(p);
    for (int i = 0; i < WHALES; i += 2) {
        CHECK((p = realloc(whale[i], 10 * MIB)), "a shrink");
        CHECK(pattern_wrong(p, MIB, (uint32_t)i, MIB) == SIZE_MAX);
        whale[i] = p;
    }
    check_laws();
    CHECK(munmap(wall, 2 * MAPPINGS * page) == 0);
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) {
        CHECK(fill(SIZES[i], 100 * MIB, &list) >= 100 * MIB, "blocks of %zu", SIZES[i]);
        release(&list);
    }
    for (int i = 0; i < WHALES; i += 2) free(whale[i]);
    for (size_t i = 1; i < COUNT_OF(small); i += 2) free(small[i]);
    for (size_t i = 0; i < COUNT_OF(runs); i++) free(runs[i]);
    malloc_trim(0);
    check_laws();
    if (about()) {
        uint64_t (*stat_of)(const char *);
        *(void **)&stat_of = hak("hak_stat");
        CHECK(stat_of("kept_whale_bytes") == 0);
    }
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) dprintf(1, "%zu:%zu ", SIZES[i], got[i] / MIB);
    dprintf(1, "MiB at the ceiling\n");
}

/* ---- vm.overcommit_memory=2: what nobody may have is refused at once. The machine's memory is not used up, as others
 * live on it, too */

static void strict_overcommit(void)
{
    struct link *list = NULL;
    char text[8192], *at, *large = malloc(80 * MIB);
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    CHECK(got > 0);
    text[got] = 0;
    CHECK((at = strstr(text, "CommitLimit:")));
    size_t most = strtoull(at + 12, NULL, 10) * KIB + 1024 * MIB;
    CHECK(large);
    pattern_write(large, MIB, 3);
    errno = 0;
    CHECK(malloc(most) == NULL && errno == ENOMEM, "errno %d", errno);
    errno = 0;
    CHECK(calloc(1, most) == NULL && errno == ENOMEM, "errno %d", errno);
    errno = 0;
    CHECK(realloc(large, most) == NULL && errno == ENOMEM, "errno %d", errno);
    errno = 0;
    CHECK(aligned_alloc(64 * MIB, most) == NULL && errno == ENOMEM, "errno %d", errno);
    CHECK(pattern_wrong(large, MIB, 3, MIB) == SIZE_MAX);
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) {
        CHECK(fill(SIZES[i], 20 * MIB, &list) >= 20 * MIB);
        release(&list);
    }
    CHECK((large = realloc(large, 200 * MIB)));
    CHECK(pattern_wrong(large, MIB, 3, MIB) == SIZE_MAX);
    free(large);
    malloc_trim(0);
    check_laws();
    dprintf(1, "%zu MiB refused\n", most / MIB);
}

/* ---- a limit on what is resident, where the system kills: a program whose use changes its shape, with 60 MiB live */

static int trims;

static void *shapes(void *argument)
{
    static const size_t shape[] = {48, 30000, 400, 900000, 5 * MIB, 2000, 100, 66 * MIB, 300000, 16};
    static struct link *held[COUNT_OF(shape)];
    for (size_t i = 0; i < 2 * COUNT_OF(shape); i++) {
        size_t n = shape[i % COUNT_OF(shape)], got = 0;
        struct link **list = &held[i % COUNT_OF(shape)];
        while (got < 60 * MIB) {
            struct link *p = malloc(n);
            CHECK(p);
            memset(p, 1, n);
            *p = (struct link){*list, n};
            *list = p;
            got += n;
        }
        release(list);
        if (trims) malloc_trim(0);
    }
    return argument;
}

static void resident_limit(void)
{
    struct rusage use;
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, shapes, NULL) == 0 && pthread_join(thread, NULL) == 0);
        shapes(NULL);
    }
    CHECK(getrusage(RUSAGE_SELF, &use) == 0);
    dprintf(1, "lived in %ld MiB\n", use.ru_maxrss / 1024);
}

static void resident_limit_with_trim(void)
{
    trims = 1;
    resident_limit();
}

/* ---- hardly any address space at all */

static void little(void)
{
    struct link *list = NULL;
    size_t got = 0;
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) {
        got += fill(SIZES[i], 10 * MIB, &list);
        release(&list);
    }
    malloc_trim(0);
    check_laws();
    dprintf(1, "%s\n", about() ? "hakmem" : "another");
}

static const struct test_case CASES[] = {
    CASE(data_limit),     CASE(all_memory_locked), CASE(future_memory_locked), CASE(mapping_ceiling),
    CASE(strict_overcommit), CASE(resident_limit),
    CASE(resident_limit_with_trim), CASE(little),
};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
