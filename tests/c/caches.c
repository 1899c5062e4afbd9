/* What the stacks of a thread may hold: how their capacities follow what goes through them, the bound on all of them
 * together, and what a new thread is given beforehand; one case a run.  Compiled together with _hakmem_backend.c, both
 * with -Dclock_gettime=caches_clock_gettime and -DHAK_NO_OVERRIDE=1: time passes only where a case says so. */
#include "laws.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

void *hak_malloc(size_t), hak_free(void *);
uint64_t hak_stat(const char *), hak_debug_fail(uint32_t, uint64_t, uint64_t);
int hak_option_set(const char *, int64_t), hak_option_get(const char *, int64_t *);

enum { SIZE = 48, FIRST = 64, MOST = 2048, MANY = 8000, MOST_HELD = 40000, THREADS = 64, KIB = 1024 };

static uint64_t clock_ms = 1000000;

int clock_gettime(clockid_t which, struct timespec *t) /* hakmem's, by its other name */
{
    (void)which;
    *t = (struct timespec){(time_t)(clock_ms / 1000), (long)(clock_ms % 1000) * 1000000};
    return 0;
}

/* ---- what hakmem says of a class */

static _Alignas(16) char rows[256 * 1024];

static int load_rows(void)
{
    size_t size = record("class")->size;
    int count = hak_class_table(rows, size, (int)(sizeof rows / size));
    CHECK(count > 0 && (size_t)count * size <= sizeof rows);
    return count;
}

static uint64_t number(int i, const char *name)
{
    return about_number(record("class"), rows + (size_t)i * record("class")->size, name);
}

static uint64_t of(size_t size, const char *name) /* the class whose blocks have that size */
{
    for (int i = load_rows(); i-- > 0;)
        if (number(i, "size") == size) return number(i, name);
    CHECK(!"no such class");
    return 0;
}

static uint64_t sum(const char *name)
{
    uint64_t all = 0;
    for (int i = load_rows(); i-- > 0;) all += number(i, name);
    return all;
}

static void check_sums(void) /* while no thread is inside hakmem */
{
    CHECK(sum("capacity_bytes") == hak_stat("capacity_bytes"));
    CHECK(hak_stat("cached_bytes") <= hak_stat("capacity_bytes"));
    CHECK(hak_stat("capacity_bytes") <= hak_stat("peak_capacity_bytes"));
    for (int i = load_rows(); i-- > 0;) {
        CHECK(number(i, "capacity") * number(i, "size") == number(i, "capacity_bytes"));
        CHECK(number(i, "cached_blocks") <= number(i, "capacity"));
        CHECK(number(i, "capacity_most") <= number(i, "max_cached"));
        CHECK(number(i, "mark_most") <= MOST);
    }
    laws();
}

/* ---- what a program does */

static void *held[MOST_HELD];

static void take(size_t n, size_t size) /* a byte less, for the seal of the hardened library */
{
    CHECK(n <= MOST_HELD);
    for (size_t i = 0; i < n; i++) CHECK((held[i] = hak_malloc(size - 1)));
}

static void give(size_t n)
{
    for (size_t i = 0; i < n; i++) hak_free(held[i]);
}

static void bursts(int times, size_t n, size_t size)
{
    while (times-- > 0) {
        take(n, size);
        give(n);
    }
}

static void grow_to_the_most(void)
{
    for (int i = 0; i < 100 && of(SIZE, "capacity") < MOST; i++) {
        uint64_t now = of(SIZE, "capacity");
        CHECK(now == (now ? FIRST << of(SIZE, "grows") >> of(SIZE, "shrinks") : 0)); /* by doubling */
        bursts(1, 4000, SIZE);
        CHECK(of(SIZE, "cached_blocks") <= of(SIZE, "capacity"));
    }
    CHECK(of(SIZE, "capacity") == MOST);
}

static void a_second(size_t size) /* passes, and the thread comes to its slow paths */
{
    clock_ms += 1000;
    take(MANY, size); /* for good */
}

/* ---- cases */

static void rule(void)
{
    CHECK(of(SIZE, "stacks") == 0 && of(SIZE, "capacity") == 0);
    bursts(1, 1, SIZE);
    CHECK(of(SIZE, "stacks") == 1 && of(SIZE, "capacity") == FIRST);
    bursts(50, FIRST / 2, SIZE); /* what needs no refill changes nothing */
    CHECK(of(SIZE, "capacity") == FIRST && of(SIZE, "grows") == 0);
    grow_to_the_most();
    bursts(20, MANY, SIZE);
    CHECK(of(SIZE, "capacity") == MOST && of(SIZE, "grows") == 5 && of(SIZE, "shrinks") == 0);
    /* A refill brings 64 blocks: in 512 that is below a fifth, in 256 it is not. */
    for (int i = 0; i < 12; i++) a_second(SIZE);
    CHECK(of(SIZE, "capacity") == 256 && of(SIZE, "shrinks") == 3 && of(SIZE, "mark_most") == 64);
    check_sums();
}

static void ten_refills(void)
{
    uint64_t refills = 0;
    while (of(SIZE, "grows") == 0) {
        CHECK(hak_stat("refills") < 10);
        for (size_t i = 0; i < 100; i++) { /* more than the stack may hold */
            CHECK((held[i] = hak_malloc(SIZE - 1)));
            if (of(SIZE, "grows") != 0 && refills == 0) refills = hak_stat("refills");
        }
        give(100);
    }
    CHECK(refills == 10 && of(SIZE, "capacity") == 2 * FIRST);
}

static void one_way(void)
{
    take(MANY, SIZE); /* a thread that only allocates needs no more room */
    CHECK(of(SIZE, "capacity") == FIRST && of(SIZE, "grows") == 0);
    grow_to_the_most();
    for (int i = 0; i < 8; i++) a_second(SIZE);
    CHECK(of(SIZE, "capacity") == 256);
    take(MOST_HELD, SIZE); /* and one that only frees has no use for what it holds */
    for (size_t i = 0; i < MOST_HELD; i++) {
        if (i % (MOST_HELD / 5) == 0) clock_ms += 1000;
        hak_free(held[i]);
    }
    CHECK(of(SIZE, "capacity") == FIRST && of(SIZE, "cached_blocks") <= FIRST);
    check_sums();
}

static void out_of_use(void)
{
    static const uint64_t then[] = {2048, 1024, 512, 256, 128, 64, 32, 16, 0};
    grow_to_the_most();
    bursts(1, 4000, SIZE);
    CHECK(of(SIZE, "cached_blocks") > 1024);
    a_second(1024); /* the period in which the class was in use ends; the next does not begin before */
    a_second(1024);
    for (size_t i = 0; i < sizeof then / sizeof *then; i++) {
        uint64_t capacity = of(SIZE, "capacity");
        CHECK(capacity == then[i] || capacity == then[i + 1]);
        CHECK(of(SIZE, "cached_blocks") <= capacity); /* what is above is given back */
        if (capacity != then[i]) i++;
        a_second(1024);
    }
    CHECK(of(SIZE, "capacity") == 0 && of(SIZE, "stacks") == 0 && of(SIZE, "cached_blocks") == 0);
    CHECK(of(1024, "capacity") > 0);
    hak_free(hak_malloc(SIZE - 1)); /* a refill of 32 and this one: what the slots held before is forgotten */
    a_second(1024);
    a_second(1024);
    CHECK(of(SIZE, "capacity") == FIRST && of(SIZE, "mark_most") == FIRST / 2 + 1);
    for (int i = 0; i < 6; i++) a_second(1024);
    CHECK(of(SIZE, "capacity") == 0);
    uint64_t misses = of(SIZE, "misses");
    bursts(10, 16, SIZE);
    CHECK(of(SIZE, "capacity") == FIRST && of(SIZE, "misses") == misses + 1);
    hak_free(hak_malloc((1 << 19) - 1)); /* a class of two blocks at most goes the same way */
    CHECK(of(1 << 19, "stacks") == 1);
    for (int i = 0; i < 6; i++) a_second(1024);
    CHECK(of(1 << 19, "stacks") == 0);
    check_sums();
}

static void short_refills(void) /* of a class with one block a slab each is: it reaches no further than what it brought */
{
    enum { LARGE = 65536 };
    for (int i = 0; i < 6; i++) {
        take(2, LARGE); /* for good */
        a_second(1024);
        CHECK(of(LARGE, "mark_most") == 0);
    }
    CHECK(of(LARGE, "capacity") == 1 && of(LARGE, "cached_blocks") == 0);
    check_sums();
}

static void fixed(void) /* HAKMEM_ADAPTIVE_SIZING=0 */
{
    int64_t first;
    CHECK(hak_option_get("cache_first", &first) == 0);
    for (size_t size = 16; size <= (size_t)1 << 20; size *= 2) {
        bursts(12, size <= 4096 ? 4000 : 64, size);
        for (int i = 0; i < 3; i++) a_second(8);
        uint64_t want = (uint64_t)(first ? first : 64 * KIB / (int64_t)size), most = of(size, "max_cached");
        if (!first) want = want > FIRST ? FIRST : want < 4 ? 4 : want;
        CHECK(of(size, "capacity") == (want < most ? want : most));
    }
    CHECK(hak_stat("cache_grows") == 0 && hak_stat("cache_shrinks") == 0);
    check_sums();
}

static struct {
    pthread_barrier_t meet;
    int steps;
} team;

static void *use_many_classes(void *argument)
{
    size_t number = (uintptr_t)argument;
    void *mine[700];
    for (int round = 0; round < team.steps; round++) {
        for (size_t size = 16; size <= 32 * KIB; size += size < 1024 ? 48 : size / 4) {
            size_t n = (number % 2 ? 700 : 100) / (size > 4096 ? 10 : 1);
            for (int again = 0; again < 3; again++) {
                for (size_t i = 0; i < n; i++) CHECK((mine[i] = hak_malloc(size)));
                for (size_t i = 0; i < n; i++) hak_free(mine[i]);
            }
        }
    }
    pthread_barrier_wait(&team.meet);
    pthread_barrier_wait(&team.meet);
    return NULL;
}

static uint64_t with_threads(uint64_t bound) /* returns what their stacks might hold when all were done */
{
    pthread_t thread[THREADS];
    pthread_barrier_init(&team.meet, NULL, THREADS + 1);
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, use_many_classes, (void *)i) == 0);
    pthread_barrier_wait(&team.meet);
    check_sums();
    uint64_t bytes = hak_stat("capacity_bytes");
    CHECK(bytes <= bound && hak_stat("peak_capacity_bytes") <= bound);
    pthread_barrier_wait(&team.meet);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    return bytes;
}

/* 64 threads, and generations of them. Beyond the limit a stack has 16 blocks, or as many as fit into 16 KiB. */
static void limit(void)
{
    int64_t bytes;
    uint64_t tight = 0, before, unlimited;
    CHECK(hak_option_get("cache_limit", &bytes) == 0);
    for (int i = load_rows(); i-- > 0;) {
        uint64_t size = number(i, "size"), blocks = 16 * KIB / size;
        tight += (blocks < 16 ? blocks : 16) * size;
    }
    CHECK(tight < 450 * KIB); /* for one thread that uses every class */
    bursts(1, 1, SIZE);
    before = hak_stat("capacity_bytes");
    team.steps = 1;
    for (int generation = 0; generation < 4; generation++) {
        with_threads((uint64_t)bytes + (THREADS + 1) * tight);
        CHECK(hak_stat("cache_refusals") > 0);
        hak_trim(); /* the caches of ended threads may wait for others */
        CHECK(hak_stat("capacity_bytes") <= before); /* the threads have taken nothing with them */
    }
    CHECK(hak_option_set("cache_limit", (int64_t)1 << 40) == 0);
    unlimited = with_threads(UINT64_MAX);
    CHECK(unlimited > 2 * ((uint64_t)bytes + (THREADS + 1) * tight)); /* or the bound says nothing */
    hak_trim(); /* the caches of ended threads may wait for others */
    CHECK(hak_stat("capacity_bytes") <= before);
    check_sums();
}

static void limit_lowered(void)
{
    grow_to_the_most();
    CHECK(hak_option_set("cache_limit", 0) == 0);
    bursts(30, 4000, SIZE);
    CHECK(of(SIZE, "capacity") == 16 && of(SIZE, "cached_blocks") <= 16);
    bursts(30, 200, 32 * KIB); /* none of these is cached above the limit, but all are served */
    CHECK(of(32 * KIB, "capacity") == 0 && of(32 * KIB, "cached_blocks") == 0);
    CHECK(hak_option_set("cache_limit", 1 << 20) == 0);
    bursts(30, 4000, SIZE);
    CHECK(of(SIZE, "capacity") > FIRST);
    bursts(30, 16, 32 * KIB);
    CHECK(of(32 * KIB, "capacity") > 0);
    check_sums();
}

static void *warmed(void *argument)
{
    static void *mine[200];
    size_t n = 0;
    uint64_t misses = 0, l25 = 0;
    (void)argument;
    hak_free(hak_malloc(1)); /* the first call */
    for (int i = load_rows(); i-- > 0;) {
        misses += number(i, "misses");
        l25 += number(i, "size") > 32 * KIB ? number(i, "capacity") : 0;
    }
    CHECK(l25 == 0);
    int classes = load_rows();
    for (int i = 0; i < classes; i++) {
        size_t size = number(i, "size");
        if (size > 32 * KIB) continue;
        CHECK((mine[n] = hak_malloc(size - 1)));
        memset(mine[n++], 0x5A, size - 1);
    }
    printf("%llu of %zu\n", (unsigned long long)(sum("misses") - misses), n);
    while (n > 0) hak_free(mine[--n]);
    laws();
    return NULL;
}

static void prewarm(void) /* "misses of mallocs" in the first of each class */
{
    pthread_t thread;
    for (int i = 0; i < 2; i++) { /* a new heap, and one that is used again */
        CHECK(pthread_create(&thread, NULL, warmed, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        check_sums();
    }
    fflush(stdout);
}

#if HAK_DEBUG
static pthread_barrier_t made;

static void *warmed_without_memory(void *argument) /* one thread at a time, and all live to the end */
{
    (void)argument;
    hak_debug_fail(1 | 2 | 16, 1, UINT64_MAX);
    void *p = hak_malloc(64); /* there may be some left */
    hak_debug_fail(0, 0, 0);
    hak_free(p);
    for (size_t size = 8; size <= 32 * KIB; size *= 2) {
        CHECK((p = hak_malloc(size)));
        memset(p, 1, size);
        hak_free(p);
    }
    pthread_barrier_wait(&made);
    pthread_barrier_wait(&team.meet);
    return NULL;
}
#endif

static void prewarm_out_of_memory(void)
{
#if HAK_DEBUG
    pthread_t thread[THREADS];
    pthread_barrier_init(&made, NULL, 2);
    pthread_barrier_init(&team.meet, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&thread[i], NULL, warmed_without_memory, NULL) == 0);
        pthread_barrier_wait(&made);
    }
    check_sums();
    CHECK(hak_stat("prewarm_blocks") > 0);
    pthread_barrier_wait(&team.meet);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    check_sums();
#else
    CHECK(!"to be compiled with -DHAK_DEBUG=1");
#endif
}

static void *fork_a_child(void *argument)
{
    bursts(3, 200, SIZE);
    pid_t pid = fork();
    if (pid == 0) {
        check_sums();
        CHECK(of(SIZE, "stacks") == 1); /* the other threads are not here, nor is what they might hold */
        bursts(30, 4000, SIZE);
        CHECK(of(SIZE, "capacity") > FIRST);
        check_sums();
        _exit(0);
    }
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
    return argument;
}

static void in_a_child(void)
{
    pthread_t thread;
    bursts(3, 200, SIZE);
    CHECK(pthread_create(&thread, NULL, fork_a_child, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    check_sums();
}

static void none(void) /* HAKMEM_ENABLE_TLS=0 */
{
    bursts(3, 4000, SIZE);
    CHECK(hak_stat("capacity_bytes") == 0 && sum("stacks") == 0 && hak_stat("peak_capacity_bytes") == 0);
    check_sums();
}

#define CASE(function) {#function, function}
static const struct {
    const char *name;
    void (*run)(void);
} CASES[] = {
    CASE(rule), CASE(ten_refills), CASE(one_way), CASE(out_of_use), CASE(short_refills), CASE(fixed), CASE(limit),
    CASE(limit_lowered), CASE(prewarm), CASE(prewarm_out_of_memory), CASE(in_a_child), CASE(none),
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc == 2 && i < sizeof CASES / sizeof *CASES; i++)
        if (strcmp(argv[1], CASES[i].name) == 0) return CASES[i].run(), 0;
    CHECK(!"no case of this name");
}
