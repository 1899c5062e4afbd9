/* Call sites: what is counted of each, and what rules for them do. Run with hakmem preloaded, or linked with it. */
#include "common.h"

#include <sys/wait.h>

static void *(*alloc_at)(size_t, uint64_t);
static int (*site_rule)(const char *);
static int (*site_table)(void *, size_t, int);
static int (*owner_of)(const void *, void *, size_t);

static void load(void)
{
    *(void **)&alloc_at = hak("hak_alloc_at");
    *(void **)&site_rule = hak("hak_site_rule");
    *(void **)&site_table = hak("hak_site_table");
    *(void **)&owner_of = hak("hak_owner_of");
    record("site");
}

static void rule(const char *text, int code)
{
    int got = site_rule(text);
    CHECK(got == code, "%s: code %d", text, got);
}

/* ---- the table, read into memory of its own */

static unsigned char *table;
static int rows_read;

static void read_table(void)
{
    size_t size = record("site")->size;
    if (!table) table = own_pages(66000 * size);
    rows_read = site_table(table, size, 66000);
    CHECK(rows_read >= 0 && rows_read <= 65536, "%d rows", rows_read);
}

static const void *table_row(int i)
{
    return table + (size_t)i * record("site")->size;
}

struct counts {
    uint64_t allocs, bytes, live, live_bytes;
    int rows;
};

static struct counts sum_of(const char *function, uint64_t number)
{
    struct counts sum = {0};
    read_table();
    for (int i = 0; i < rows_read; i++) {
        const void *r = table_row(i);
        const char *name = text_field("site", r, "function");
        size_t n = function ? strlen(function) : 0;
        if (function ? strncmp(name, function, n) != 0 || name[n] != '+' : field("site", r, "site") != number) continue;
        sum.allocs += field("site", r, "allocs");
        sum.bytes += field("site", r, "bytes");
        sum.live += field("site", r, "live_blocks");
        sum.live_bytes += field("site", r, "live_bytes");
        sum.rows++;
    }
    return sum;
}

static void check_counts(int line, struct counts c, uint64_t allocs, uint64_t bytes, uint64_t live, uint64_t live_bytes)
{
    if (c.allocs != allocs || c.bytes != bytes || c.live != live || c.live_bytes != live_bytes)
        fail("counts", line, "allocs %llu bytes %llu live %llu live_bytes %llu", (unsigned long long)c.allocs,
             (unsigned long long)c.bytes, (unsigned long long)c.live, (unsigned long long)c.live_bytes);
}
#define COUNTS(c, allocs, bytes, live, live_bytes) check_counts(__LINE__, c, allocs, bytes, live, live_bytes)

/* ---- one exported function for each way to get a block: the call is not the last thing that it does */

#define KEEP(p) __asm__ volatile("" : : "r"(p) : "memory")
#define VIA(name, call)                                                                                                \
    __attribute__((noinline, visibility("default"))) void *via_##name(UNUSED void *old, UNUSED size_t n);              \
    void *via_##name(UNUSED void *old, UNUSED size_t n)                                                                \
    {                                                                                                                  \
        void *p = call;                                                                                                \
        KEEP(p);                                                                                                       \
        return p;                                                                                                      \
    }
VIA(malloc, malloc(n))
VIA(calloc, calloc(1, n))
VIA(realloc, realloc(old, n))
VIA(reallocarray, reallocarray(old, 1, n))
VIA(aligned_alloc, aligned_alloc(4096, n))
VIA(memalign, memalign(64, n))
VIA(valloc, valloc(n))
VIA(pvalloc, pvalloc(n))
static inline __attribute__((always_inline)) void *by_posix_memalign(size_t align, size_t n)
{
    void *p = NULL;
    CHECK(posix_memalign(&p, align, n) == 0);
    return p;
}
VIA(posix_memalign, by_posix_memalign(256, n))

static const struct way {
    const char *name;
    void *(*get)(void *, size_t);
} WAYS[] = {
#define WAY(name) {"via_" #name, via_##name}
    WAY(malloc), WAY(calloc), WAY(realloc),  WAY(reallocarray), WAY(aligned_alloc), WAY(memalign),
    WAY(valloc), WAY(pvalloc), WAY(posix_memalign),
};

static void every_way_has_its_caller(void)
{
    static const size_t sizes[] = {1, 24, 1000, 5000, 30000, 100000, MIB, 3 * MIB, 80 * MIB};
    void *blocks[COUNT_OF(sizes)];
    load();
    for (size_t w = 0; w < COUNT_OF(WAYS); w++) {
        size_t sum = 0;
        for (size_t i = 0; i < COUNT_OF(sizes); i++) {
            blocks[i] = WAYS[w].get(NULL, sizes[i]);
            CHECK(blocks[i] && malloc_usable_size(blocks[i]) >= sizes[i]);
            sum += strcmp(WAYS[w].name, "via_pvalloc") ? sizes[i] : (sizes[i] + 4095) / 4096 * 4096;
        }
        struct counts c = sum_of(WAYS[w].name, 0);
        if (c.rows != 1) fail("rows", __LINE__, "%s has %d rows", WAYS[w].name, c.rows);
        COUNTS(c, COUNT_OF(sizes), sum, COUNT_OF(sizes), sum);
        for (size_t i = 0; i < COUNT_OF(sizes); i++) free(blocks[i]);
        COUNTS(sum_of(WAYS[w].name, 0), COUNT_OF(sizes), sum, 0, 0);
    }
    check_laws();
}

static void a_block_is_its_last_caller_s(void)
{
    static const size_t sizes[] = {100, 104, 5000, 5001, MIB, 2 * MIB, 3 * MIB, 2 * MIB, 200, 90 * MIB, 120 * MIB, 10};
    load();
    char *p = via_malloc(NULL, sizes[0]);
    uint64_t sum = 0;
    memset(p, 7, 10);
    for (size_t i = 1; i < COUNT_OF(sizes); i++) {
        p = via_realloc(p, sizes[i]);
        CHECK(p && p[9] == 7);
        sum += sizes[i];
        COUNTS(sum_of("via_malloc", 0), 1, sizes[0], 0, 0);
        COUNTS(sum_of("via_realloc", 0), i, sum, 1, sizes[i]);
    }
    CHECK(!via_realloc(p, (size_t)PTRDIFF_MAX)); /* it fails, and the block is as it was */
    COUNTS(sum_of("via_realloc", 0), COUNT_OF(sizes) - 1, sum, 1, 10);
    CHECK(p[9] == 7 && !via_realloc(p, 0));
    COUNTS(sum_of("via_realloc", 0), COUNT_OF(sizes) - 1, sum, 0, 0);
}

/* ---- threads and fork */

static int stop;

enum { LANES = 4, HELD = 500, ROUNDS = 20000, SITES = 40 };
static struct lane {
    void *block[HELD];
    uint32_t size[HELD], site[HELD];
    uint64_t random;
} *lanes;

static void *churn(void *argument)
{
    struct lane *lane = argument;
    for (int i = 0; i < ROUNDS || !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
        uint64_t bits = next_random(&lane->random);
        size_t k = bits % HELD;
        struct lane *of = &lanes[(bits >> 20) % LANES]; /* a slot is its own thread's; blocks of others come by exchange */
        free(__atomic_exchange_n(&lane->block[k], NULL, __ATOMIC_ACQ_REL));
        lane->size[k] = (uint32_t)(bits >> 40) % (bits % 64 ? 2000 : 300000);
        lane->site[k] = (uint32_t)((bits >> 10) % SITES);
        void *p = lane->site[k] ? alloc_at(lane->size[k], lane->site[k]) : via_malloc(NULL, lane->size[k]);
        CHECK(p);
        __atomic_store_n(&lane->block[k], p, __ATOMIC_RELEASE);
        if (bits % 16 == 0) free(__atomic_exchange_n(&of->block[(bits >> 30) % HELD], NULL, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

static void check_live(void)
{
    uint64_t live[SITES] = {0}, bytes[SITES] = {0};
    for (int l = 0; l < LANES; l++)
        for (int k = 0; k < HELD; k++)
            if (lanes[l].block[k]) {
                live[lanes[l].site[k]]++;
                bytes[lanes[l].site[k]] += lanes[l].size[k];
            }
    for (uint32_t site = 0; site < SITES; site++) {
        struct counts c = site ? sum_of(NULL, site) : sum_of("via_malloc", 0);
        CHECK(c.live == live[site] && c.live_bytes == bytes[site], "site %u: %llu of %llu live, %llu of %llu bytes", site,
              (unsigned long long)c.live, (unsigned long long)live[site], (unsigned long long)c.live_bytes,
              (unsigned long long)bytes[site]);
    }
}

static void free_lanes(void)
{
    for (int l = 0; l < LANES; l++)
        for (int k = 0; k < HELD; k++) {
            free(lanes[l].block[k]);
            lanes[l].block[k] = NULL;
        }
}

static void live_bytes_are_exact_over_threads_and_fork(void)
{
    pthread_t threads[LANES];
    int status;
    load();
    lanes = own_pages(LANES * sizeof *lanes);
    rule("7:lifetime=long;8:nocache;9:lifetime=short;10:retain=0", 0);
    for (int i = 0; i < LANES; i++) {
        lanes[i].random = (uint64_t)i;
        CHECK(pthread_create(&threads[i], NULL, churn, &lanes[i]) == 0);
    }
    for (int i = 0; i < 40; i++) { /* children of a process whose other threads allocate */
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            alarm(20);
            for (int k = 0; k < 1000; k++) free(alloc_at((size_t)k, 1 + (uint64_t)k % 60));
            read_table();
            free(malloc(100));
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0, "status %d", status);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < LANES; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    check_live();
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        check_live();
        free_lanes();
        check_live();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "status %d", status);
    check_live();
    free_lanes();
    check_live();
    check_laws();
}

/* ---- the table is full */

static void more_sites_than_there_are_rows(void)
{
    enum { MANY = 70000 };
    load();
    for (uint64_t id = 1; id <= MANY; id++) free(alloc_at(10, id << 20));
    read_table();
    CHECK(rows_read == 65536, "%d rows", rows_read);
    CHECK(strcmp(text_field("site", table_row(0), "place"), "others") == 0);
    uint64_t rows = 0;
    for (int i = 1; i < rows_read; i++) {
        uint64_t id = field("site", table_row(i), "site");
        if (*text_field("site", table_row(i), "place")) continue; /* code */
        CHECK(id >> 20 >= 1 && id >> 20 <= MANY && field("site", table_row(i), "allocs") == 1);
        rows++;
    }
    CHECK(rows > 65000 && field("site", table_row(0), "allocs") >= MANY - rows, "%llu rows", (unsigned long long)rows);
    void *p = alloc_at(11, (uint64_t)1 << 20), *q = alloc_at(12, (uint64_t)MANY << 20);
    COUNTS(sum_of(NULL, (uint64_t)1 << 20), 2, 21, 1, 11);
    read_table();
    CHECK(field("site", table_row(0), "live_blocks") >= 1);
    free(p);
    free(q);
    COUNTS(sum_of(NULL, (uint64_t)1 << 20), 2, 21, 0, 0);
    rule("5:nocache", 17); /* no row is left for it */
}

/* ---- what rules do */

static uintptr_t slab_of(const void *p)
{
    return (uintptr_t)p >> 16;
}

static struct rows classes;

static uint64_t in_class_of(const void *p, const char *what)
{
    unsigned char owner[256];
    CHECK(owner_of(p, owner, record("owner")->size) == 0);
    take_rows(&classes, "hak_class_table", "class");
    return field("class", row(&classes, (int)field("owner", owner, "class")), what);
}

static void lifetimes_stand_in_slabs_of_their_own(void)
{
    static const size_t sizes[] = {8, 100, 1000, 1500, 9000, 32000}; /* hardened needs a byte more */
    load();
    rule("41:lifetime=long;42:lifetime=long;43:lifetime=short", 0);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        void *p[5] = {malloc(sizes[i]), alloc_at(sizes[i], 41), alloc_at(sizes[i], 42), alloc_at(sizes[i], 43),
                      alloc_at(sizes[i], 44)};
        for (int a = 0; a < 5; a++) CHECK(p[a] && malloc_usable_size(p[a]) == malloc_usable_size(p[0]));
        for (int a = 1; a < 4; a++) CHECK(slab_of(p[a]) != slab_of(p[0]), "%zu bytes", sizes[i]);
        CHECK(slab_of(p[1]) != slab_of(p[3]) && slab_of(p[2]) != slab_of(p[3]));
        if (sizes[i] <= 1024) CHECK(slab_of(p[1]) == slab_of(p[2]) && slab_of(p[4]) == slab_of(p[0]));
        /* A block keeps its group when it moves. */
        void *grown = realloc(p[1], sizes[i] * 3 > 30000 ? sizes[i] : sizes[i] * 3), *plain = malloc(malloc_usable_size(grown));
        void *other = alloc_at(malloc_usable_size(grown), 42);
        int captured = getenv("HAKMEM_SITES") != NULL; /* then it goes where this call of realloc has its blocks */
        CHECK(grown && (slab_of(grown) != slab_of(plain) || (captured && sizes[i] * 3 <= 30000)));
        if (sizes[i] * 3 <= 1024) CHECK((slab_of(grown) == slab_of(other)) == !captured);
        free(grown);
        free(plain);
        free(other);
        free(p[0]);
        for (int a = 2; a < 5; a++) free(p[a]);
    }
    check_laws();
    rule("41:none", 0);
    void *p = alloc_at(100, 41), *q = malloc(100);
    CHECK(slab_of(p) == slab_of(q));
    free(p);
    free(q);
    CHECK(((int (*)(size_t))hak("malloc_trim"))(0) >= 0);
    check_laws();
}

static void lifetime_of_large_blocks_changes_nothing(void)
{
    load();
    rule("41:lifetime=long", 0);
    void *p = alloc_at(100000, 41), *q = alloc_at(3 * MIB, 41);
    CHECK(p && q);
    free(p);
    CHECK(malloc(100000) == p); /* from the stack that all share */
    free(q);
}

static void uncached_blocks_pass_the_stacks(void)
{
    load();
    rule("5:nocache", 0);
    for (size_t n = 8; n <= MIB; n *= 2) {
        void *p = alloc_at(n, 5), *plain = malloc(n);
        CHECK(p && plain && (n > 32768 || slab_of(p) != slab_of(plain)));
        uint64_t direct = in_class_of(p, "slab_frees"), cached = in_class_of(p, "cached_blocks");
        free(p);
        CHECK(in_class_of(plain, "slab_frees") == direct + 1 && in_class_of(plain, "cached_blocks") == cached, "%zu", n);
        free(plain);
    }
    check_laws();
}

static size_t kept(void)
{
    struct snapshot s;
    take_snapshot(&s);
    return of(&s, "kept_whale_bytes");
}

static void tick(void) /* slow paths enough for a look at the clock */
{
    static void *blocks[3000];
    for (size_t i = 0; i < COUNT_OF(blocks); i++) blocks[i] = malloc(20000);
    for (size_t i = 0; i < COUNT_OF(blocks); i++) free(blocks[i]);
}

static void large_blocks_are_kept_as_long_as_a_rule_says(void)
{
    unsigned char in_core[1];
    int (*set)(const char *, int64_t);
    load();
    *(void **)&set = hak("hak_option_set");
    rule("1:retain=0;2:retain=3600000;3:retain=50", 0);
    char *p = alloc_at(3 * MIB, 1);
    memset(p, 1, 3 * MIB);
    free(p);
    CHECK(mincore(p, 4096, in_core) != 0 && errno == ENOMEM && kept() == 0); /* not even mapped */
    CHECK(set("purge_ms", 0) == 0);
    p = alloc_at(4 * MIB, 2);
    free(p);
    sleep_ms(20);
    tick();
    CHECK(kept() == 4 * MIB, "%zu", kept()); /* the option would have had it unmapped */
    char *again = alloc_at(4 * MIB, 2);
    CHECK(again == p && kept() == 0);
    again = realloc(again, 5 * MIB); /* it is still such a block */
    free(again);
    tick();
    CHECK(kept() >= 5 * MIB, "%zu", kept());
    ((int (*)(size_t))hak("malloc_trim"))(0);
    CHECK(kept() == 0);
    CHECK(set("purge_ms", 3600000) == 0);
    free(alloc_at(6 * MIB, 3));
    CHECK(kept() == 6 * MIB);
    sleep_ms(150);
    tick();
    CHECK(kept() == 0, "%zu", kept());
    check_laws();
}

static void *free_all_of(void *argument)
{
    void **blocks = argument;
    for (int i = 0; blocks[i]; i++) free(blocks[i]);
    return NULL;
}

static void *make_all_of(void *argument)
{
    void **blocks = argument;
    for (int i = 0; i < 30000; i++) {
        blocks[i] = alloc_at(16 + (size_t)i % 5000, 5 + (uint64_t)i % 4);
        CHECK(blocks[i]);
        memset(blocks[i], i, 16);
    }
    return NULL;
}

/* What BigCache has from before the rule does not serve it. */
static void a_rule_for_retention_comes_late(void)
{
    load();
    for (int i = 0; i < 20; i++) free(alloc_at(2 * MIB, 42));
    CHECK(kept() >= 2 * MIB, "%zu", kept());
    rule("42:retain=0", 0);
    size_t before = kept();
    for (int i = 0; i < 20; i++) free(alloc_at(2 * MIB, 42));
    CHECK(kept() == before, "%zu", kept());
    char *p = alloc_at(2 * MIB, 42);
    unsigned char in_core[1];
    free(p);
    CHECK(mincore(p, 4096, in_core) != 0 && errno == ENOMEM); /* given back at once */
    check_laws();
}

static void a_thread_s_group_blocks_are_freed_by_another(void)
{
    void **blocks = own_pages(30001 * sizeof *blocks);
    load();
    free(malloc(1)); /* this heap is older than the rules */
    rule("5:nocache;6:lifetime=long;7:lifetime=short", 0);
    for (int round = 0; round < 6; round++) { /* orphans, adopted ones among them, and remote frees */
        pthread_t thread;
        void *(*make)(void *) = make_all_of, *(*end)(void *) = free_all_of;
        if (round % 2) make(blocks);
        else CHECK(pthread_create(&thread, NULL, make, blocks) == 0 && pthread_join(thread, NULL) == 0);
        check_laws();
        if (round % 3) end(blocks);
        else CHECK(pthread_create(&thread, NULL, end, blocks) == 0 && pthread_join(thread, NULL) == 0);
        check_laws();
    }
    struct snapshot s;
    ((int (*)(size_t))hak("malloc_trim"))(0);
    take_snapshot(&s);
    CHECK(of(&s, "orphan_slabs") <= 1 && /* of what the C library notes of a thread */ of(&s, "live_bytes") < MIB, "%llu orphans, %llu live",
          (unsigned long long)of(&s, "orphan_slabs"), (unsigned long long)of(&s, "live_bytes"));
}

/* ---- readers while rules and sites come */

static void *read_sites(void *argument)
{
    uint64_t random = (uint64_t)(uintptr_t)argument;
    void *(*get)(size_t, uint64_t) = alloc_at;
    void (*give)(void *) = *(void (**)(void *))argument;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        give(get(64, 1 + next_random(&random) % 3000));
    return NULL;
}

static void readers_need_no_lock(void)
{
    pthread_t threads[3];
    void (*give)(void *);
    load();
    *(void **)&give = hak("hak_free");
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, read_sites, &give) == 0);
    for (int i = 1; i < 600; i++) {
        char text[60];
        snprintf(text, sizeof text, "%d:%s;%d:none", i * 3 % 3000 + 1, i % 2 ? "lifetime=long" : "nocache", i % 90 + 1);
        rule(text, 0);
        if (i % 50 == 0) read_table();
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

/* ---- memory for what is known of blocks is refused: in the debug variant */

static void no_memory_for_the_table(void)
{
    static void *blocks[20000];
    uint64_t (*refuse)(uint32_t, uint64_t, uint64_t);
    struct snapshot s;
    load();
    *(void **)&refuse = hak("hak_debug_fail");
    for (size_t i = 0; i < 1000; i++) blocks[i] = alloc_at(50, 3); /* a superslab is there for them */
    for (size_t i = 0; i < 1000; i++) free(blocks[i]);
    struct counts before = sum_of(NULL, 3);
    refuse(1, 1, UINT64_MAX);
    for (size_t i = 0; i < 2000; i++) blocks[i] = alloc_at(20, 1000 + i); /* rows are there, or one for all */
    for (size_t i = 2000; i < COUNT_OF(blocks); i++) CHECK((blocks[i] = alloc_at(50, 3)) != NULL);
    for (size_t i = 0; i < COUNT_OF(blocks); i++) free(blocks[i]);
    refuse(0, 0, 0);
    struct counts c = sum_of(NULL, 3);
    take_snapshot(&s);
    CHECK(c.allocs - before.allocs == COUNT_OF(blocks) - 2000 && c.live == 0);
    check_laws();
    printf("%llu\n", (unsigned long long)of(&s, "site_blocks_untracked"));
}

/* ---- for rules from outside: where blocks of via_malloc stand, and the site's name */

static void show(void)
{
    load();
    void *p = via_malloc(NULL, 100), *q = malloc(100);
    read_table();
    for (int i = 0; i < rows_read; i++) {
        const void *r = table_row(i);
        if (strncmp(text_field("site", r, "function"), "via_malloc+", 11) == 0)
            printf("%s %s %s %lld %lld %llu\n", text_field("site", r, "place"), slab_of(p) == slab_of(q) ? "among" : "apart",
                   *text_field("site", r, "lifetime") ? text_field("site", r, "lifetime") : "-",
                   (long long)field("site", r, "retain"), (long long)field("site", r, "shard"),
                   (unsigned long long)field("site", r, "cached"));
    }
    free(p);
    free(q);
}

static const struct test_case CASES[] = {
    CASE(every_way_has_its_caller),
    CASE(a_block_is_its_last_caller_s),
    CASE(live_bytes_are_exact_over_threads_and_fork),
    CASE(more_sites_than_there_are_rows),
    CASE(lifetimes_stand_in_slabs_of_their_own),
    CASE(lifetime_of_large_blocks_changes_nothing),
    CASE(uncached_blocks_pass_the_stacks),
    CASE(large_blocks_are_kept_as_long_as_a_rule_says),
    CASE(a_rule_for_retention_comes_late),
    CASE(a_thread_s_group_blocks_are_freed_by_another),
    CASE(readers_need_no_lock),
    CASE(no_memory_for_the_table),
    CASE(show),
};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
