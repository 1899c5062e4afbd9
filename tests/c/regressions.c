/* One case for each fault that was found after it had been written. Run under hakmem. */
#include "common.h"
#include <stdatomic.h>
#include <sys/wait.h>

static uint64_t (*stat_of)(const char *);

static void find_hakmem(void)
{
    *(void **)&stat_of = hak("hak_stat");
}

/* ---- an owner that loses its slabs to others, with blocks in its stacks, and then exits, left them in a batch that
 * nobody ever sent */

enum { BLOCKS = 20000, CACHED = 60 };
static void *blocks[BLOCKS];
static int step;

static void *owner(void *argument)
{
    for (int i = 0; i < BLOCKS; i++) blocks[i] = malloc(1000);
    for (int i = 0; i < CACHED; i++) free(blocks[i]);
    __atomic_store_n(&step, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&step, __ATOMIC_SEQ_CST) != 2) sleep_ms(1);
    return argument;
}

static void *freer(void *argument)
{
    for (int i = CACHED; i < BLOCKS; i++) free(blocks[i]);
    return argument;
}

static void idle_owner_exits(void)
{
    find_hakmem();
    pthread_t first, second;
    CHECK(pthread_create(&first, NULL, owner, NULL) == 0);
    while (__atomic_load_n(&step, __ATOMIC_SEQ_CST) != 1) sleep_ms(1);
    CHECK(pthread_create(&second, NULL, freer, NULL) == 0);
    CHECK(pthread_join(second, NULL) == 0);
    __atomic_store_n(&step, 2, __ATOMIC_SEQ_CST);
    CHECK(pthread_join(first, NULL) == 0);
    CHECK(stat_of("batches_claimed") > 0, "nobody took the owner's claim: the case tests nothing");
    CHECK(stat_of("transit_bytes") == 0, "%zu bytes in transit", (size_t)stat_of("transit_bytes"));
    CHECK(stat_of("orphan_slabs") <= 2, "%zu orphans", (size_t)stat_of("orphan_slabs"));
}

/* ---- a kept whale did not age, and one that was freed soon did not count for the peak */

static void kept_whales_age(void)
{
    find_hakmem();
    char *live = malloc(100 * MIB), *kept = malloc(100 * MIB);
    CHECK(stat_of("peak_in_use_bytes") >= 200 * MIB);
    memset(kept, 1, 100 * MIB);
    free(kept);
    CHECK(stat_of("kept_whale_bytes") >= 100 * MIB, "it was not kept: the case tests nothing");
    for (int i = 0; i < 300 && stat_of("kept_whale_bytes") != 0; i++) {
        void *p[400];
        sleep_ms(10);
        for (size_t k = 0; k < COUNT_OF(p); k++) p[k] = malloc(30000);
        for (size_t k = 0; k < COUNT_OF(p); k++) free(p[k]);
    }
    CHECK(stat_of("kept_whale_bytes") == 0);
    CHECK(stat_of("peak_in_use_bytes") >= 200 * MIB);
    free(live);
}

/* ---- where the system would not move a mapping back, a growing realloc lost the contents of the block (mremap fails
 * from the second time on: it comes from no_mremap.c) */

static void realloc_without_mremap(void)
{
    size_t n = 2 * MIB;
    char *block = malloc(n), *behind = malloc(n);
    pattern_write(block, n, 77);
    char *grown = realloc(block, n + MIB);
    CHECK(grown && behind);
    CHECK(*(int *)hak("mremap_calls") >= 2, "mremap was not asked: the case tests nothing");
    CHECK(pattern_wrong(grown, n, 77, n) == SIZE_MAX);
    free(grown);
    free(behind);
}

/* ---- a block of its own mapping could not grow any more once the program had advised a part of it, as NumPy advises huge
 * pages for all but the first OS page of its large arrays: mremap takes no such mapping */

static void realloc_of_an_advised_mapping(void)
{
    size_t n = 80 * MIB, page = (size_t)sysconf(_SC_PAGESIZE);
    char *block = malloc(n);
    pattern_write(block, n, 78);
    CHECK(madvise(block + page, n / 2, MADV_DONTDUMP) == 0, "errno %d", errno);
    char *grown = realloc(block, 2 * n);
    CHECK(grown, "errno %d", errno);
    CHECK(pattern_wrong(grown, n, 78, n) == SIZE_MAX);
    free(grown);
}

/* ---- other libraries' fork handlers, registered before hakmem's, may allocate (they come from handlers.c) */

static void fork_with_handlers(void)
{
    void *p = malloc(100);
    free(p);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);
        free(malloc(100));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0, "the child ended with %#x", (unsigned)status);
    CHECK(*(int *)hak("handlers_ran") == 2);
}

/* ---- hardened, level 2: each free stretch between blocks took two of the 65,530 mappings that a process has, and then
 * there was no memory */

static void many_free_stretches(void)
{
    enum { MANY = 40000 };
    static char *p[MANY];
    for (int i = 0; i < MANY; i++) {
        p[i] = aligned_alloc(128 * KIB, 100);
        CHECK(p[i], "block %d, errno %d", i, errno);
    }
    for (int i = 0; i < 100; i++) own_pages(4096 * (size_t)(1 + i % 2));
    for (int i = 0; i < MANY; i++) free(p[i]);
    check_laws();
}

/* ---- a thread that was giving memory back when others freed theirs gave back no more than when it began, and those
 * had left it to that thread */

enum { NOBODY, WANTED, HELD, RUNS = 500, RUN = 384 * KIB };
static atomic_int *purge_held;
static char *runs[RUNS];

static void *purger(void *argument)
{
    for (int i = 0; i < RUNS && atomic_load(purge_held) == WANTED; i++) {
        char *run = runs[i];
        runs[i] = NULL; /* it may stand still in the call */
        free(run);
    }
    return argument;
}

static void freed_beside_a_purge(void)
{
    find_hakmem();
    pthread_t thread;
    purge_held = hak("purge_held");
    for (int i = 0; i < RUNS; i++) memset(runs[i] = malloc(RUN), 1, RUN);
    atomic_store(purge_held, WANTED);
    CHECK(pthread_create(&thread, NULL, purger, NULL) == 0);
    while (atomic_load(purge_held) != HELD) sleep_ms(1);
    for (int i = 0; i < RUNS; i++) free(runs[i]);
    CHECK(stat_of("free_dirty_bytes") > (size_t)RUNS / 2 * RUN * 9 / 10, "it has gone already: the case tests nothing");
    atomic_store(purge_held, NOBODY);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(stat_of("free_dirty_bytes") < 32 * MIB, "%zu MiB", (size_t)stat_of("free_dirty_bytes") / MIB);
    check_laws();
}

static const struct test_case CASES[] = {
    CASE(idle_owner_exits),
    CASE(kept_whales_age),
    CASE(realloc_without_mremap),
    CASE(realloc_of_an_advised_mapping),
    CASE(fork_with_handlers),
    CASE(many_free_stretches),
    CASE(freed_beside_a_purge),
};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
