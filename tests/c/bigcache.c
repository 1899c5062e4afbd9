/* BigCache: freed blocks above 1 MiB that stay whole.  One case for each thing that may happen to one. */
#include "common.h"

static uint64_t stat_of(const char *name)
{
    struct snapshot s;
    take_snapshot(&s);
    return of(&s, name);
}

static void set(const char *name, int64_t value)
{
    int (*option_set)(const char *, int64_t);
    *(void **)&option_set = hak("hak_option_set");
    CHECK(option_set(name, value) == 0, "%s", name);
}

static void *alloc_at(size_t n, uint64_t site)
{
    void *(*get)(size_t, uint64_t);
    *(void **)&get = hak("hak_alloc_at");
    void *p = get(n, site);
    CHECK(p, "%zu bytes", n);
    return p;
}

static uint64_t of_key(uint64_t site, size_t size, const char *field_name) /* 0: not known */
{
    static struct rows r;
    int (*get)(void *, size_t, int);
    *(void **)&get = hak("hak_big_table");
    r.row_size = record("big")->size;
    r.count = get(r.bytes, r.row_size, (int)(sizeof r.bytes / r.row_size));
    for (int i = 0; i < r.count; i++)
        if (field("big", row(&r, i), "site") == site && field("big", row(&r, i), "size") == size)
            return field("big", row(&r, i), field_name);
    return 0;
}

/* ---- by key */

static void a_block_comes_back_to_its_size(void)
{
    char *p = malloc(3 * MIB), *q;
    uint64_t hits = stat_of("big_hits"), locks;
    free(p);
    CHECK(stat_of("big_entries") == 1 && stat_of("kept_whale_bytes") == 3 * MIB && stat_of("live_bytes") < MIB);
    check_laws();
    q = malloc(4 * MIB); /* another size: it may take the memory, but not the block as it is */
    CHECK(stat_of("big_hits") == hits);
    free(q);
    q = malloc(3 * MIB + 1);
    CHECK(stat_of("big_hits") == hits && malloc_usable_size(q) == 3 * MIB + 64 * KIB, "%zu", malloc_usable_size(q));
    free(q);
    locks = stat_of("shared_locks");
    for (int i = 0; i < 100; i++) {
        q = malloc(3 * MIB + 1);
        free(q);
    }
    CHECK(stat_of("big_hits") == hits + 100);
    CHECK(stat_of("shared_locks") <= locks + 200, "%llu locks", (unsigned long long)(stat_of("shared_locks") - locks));
    CHECK(of_key(0, 3 * MIB + 64 * KIB, "hits") == 100);
    check_laws();
}

static void a_mapping_comes_back_to_its_size(void)
{
    set("retain", 1 << 30);
    char *p = malloc(80 * MIB), *q;
    memset(p, 1, MIB);
    free(p);
    CHECK(stat_of("kept_whale_bytes") == 80 * MIB && stat_of("whale_blocks") == 0);
    check_laws();
    q = malloc(60 * MIB); /* not one that is more than an eighth longer */
    CHECK(malloc_usable_size(q) == 60 * MIB && stat_of("whale_hits") == 0);
    free(q);
    q = calloc(1, 76 * MIB);
    CHECK(q == p && is_zero(q, 76 * MIB) && stat_of("whale_hits") == 1);
    free(q);
    CHECK(malloc(82 * MIB) && stat_of("whale_hits") == 1); /* nor one that is shorter */
    check_laws();
}

static void sites_are_apart(void)
{
    void *one = alloc_at(3 * MIB, 1), *two = alloc_at(3 * MIB, 2), *keep = malloc(2 * MIB);
    uint64_t hits = stat_of("big_hits");
    free(one);
    free(two);
    CHECK(of_key(1, 3 * MIB, "entries") == 1 && of_key(2, 3 * MIB, "bytes") == 3 * MIB);
    CHECK(alloc_at(3 * MIB, 2) == two && alloc_at(3 * MIB, 1) == one, "not the site's own block");
    CHECK(stat_of("big_hits") == hits + 2);
    CHECK(of_key(1, 3 * MIB, "hits") == 1 && of_key(2, 3 * MIB, "hits") == 1 && of_key(2, 3 * MIB, "entries") == 0);
    free(one);
    CHECK(malloc(3 * MIB) && stat_of("big_hits") == hits + 2, "a block of site 1 went to site 0");
    free(keep);
    check_laws();
}

static void sizes_that_hardly_come_again_are_not_kept(void)
{
    uint64_t seed = 1, superslabs = 0;
    void *p[24] = {0};
    for (int i = 0; i < 4000; i++) {
        size_t at = random_between(&seed, 0, COUNT_OF(p) - 1);
        free(p[at]);
        p[at] = malloc(random_between(&seed, 17, 128) * 64 * KIB);
        CHECK(p[at]);
        if (i == 2000) superslabs = stat_of("superslabs");
    }
    CHECK(stat_of("big_entries") <= 4, "%llu kept", (unsigned long long)stat_of("big_entries"));
    CHECK(stat_of("superslabs") <= superslabs + superslabs / 10);
    for (size_t i = 0; i < COUNT_OF(p); i++) free(p[i]);
    uint64_t hits = stat_of("big_hits");
    for (int i = 0; i < 400; i++) free(malloc(2 * MIB)); /* and then one does */
    CHECK(stat_of("big_hits") >= hits + 350, "%llu hits", (unsigned long long)(stat_of("big_hits") - hits));
    check_laws();
}

static void alignment_holds(void)
{
    void *p[8];
    for (int i = 0; i < 8; i++) CHECK((p[i] = malloc(3 * MIB)));
    for (int i = 0; i < 8; i++) free(p[i]);
    for (size_t align = 64 * KIB; align <= 8 * MIB; align *= 2) {
        void *q = aligned_alloc(align, 3 * MIB);
        CHECK(q && ((uintptr_t)q & (align - 1)) == 0, "%p", q);
        memset(q, 1, 3 * MIB);
        uint64_t hits = stat_of("big_hits");
        free(q);
        CHECK(aligned_alloc(align, 3 * MIB) == q && stat_of("big_hits") == hits + 1);
        free(q);
    }
    check_laws();
}

static void calloc_is_zero(void)
{
    for (int i = 0; i < 3; i++) {
        char *p = malloc(3 * MIB);
        memset(p, 0x5a, 3 * MIB);
        free(p);
        char *q = calloc(3, MIB);
        CHECK(q == p && is_zero(q, 3 * MIB));
        free(q);
    }
    CHECK(stat_of("big_hits") >= 5);
}

static void growth_takes_a_kept_neighbour(void)
{
    char *p = malloc(2 * MIB), *next = malloc(2 * MIB);
    CHECK(next == p + 2 * MIB, "the case tests nothing");
    memset(p, 7, 2 * MIB);
    free(next);
    CHECK(stat_of("big_entries") == 1);
    CHECK(realloc(p, 3 * MIB) == p && stat_of("big_entries") == 0 && stat_of("big_evicted_need") == 1);
    CHECK(p[2 * MIB - 1] == 7);
    check_laws();
}

/* ---- what leaves it */

static void what_is_beyond_the_budget_goes(void)
{
    void *p[8];
    set("bigcache", 10 * MIB);
    for (int i = 0; i < 8; i++) p[i] = malloc(3 * MIB);
    for (int i = 0; i < 8; i++) {
        free(p[i]);
        CHECK(stat_of("kept_whale_bytes") <= 10 * MIB);
    }
    CHECK(stat_of("big_entries") == 3 && stat_of("big_evicted_budget") == 5);
    check_laws();
    CHECK(malloc(3 * MIB) == p[7] && malloc(3 * MIB) == p[6] && malloc(3 * MIB) == p[5], "not the youngest");
    set("bigcache", 0);
    uint64_t misses = stat_of("big_misses");
    for (int i = 5; i < 8; i++) free(p[i]);
    free(malloc(3 * MIB));
    free(malloc(100 * MIB));
    CHECK(stat_of("kept_whale_bytes") == 0 && stat_of("big_misses") == misses);
    check_laws();
}

static void what_is_beyond_what_may_be_retained_goes(void)
{
    set("retain", 16 * MIB);
    void *p[32];
    for (int i = 0; i < 32; i++) memset(p[i] = malloc(2 * MIB), 1, 2 * MIB);
    size_t rss = rss_bytes();
    for (int i = 0; i < 32; i++) free(p[i]);
    CHECK(stat_of("kept_whale_bytes") + stat_of("free_dirty_bytes") <= 17 * MIB, "%llu kept",
          (unsigned long long)(stat_of("kept_whale_bytes") + stat_of("free_dirty_bytes")));
    CHECK(rss_bytes() + 44 * MIB < rss, "%zu of %zu", rss_bytes(), rss);
    check_laws();
}

static void what_has_grown_old_goes(void)
{
    set("retain", 1 << 30);
    set("purge_ms", 20);
    char *run = malloc(3 * MIB), *whale = malloc(80 * MIB), *next = malloc(2 * MIB);
    memset(run, 1, 3 * MIB);
    memset(whale, 1, 3 * MIB);
    free(run);
    free(whale);
    CHECK(stat_of("big_entries") == 2);
    for (int i = 0; i < 500 && stat_of("big_evicted_age") < 2; i++) { /* the next free looks */
        sleep_ms(10);
        free(next);
        next = malloc(2 * MIB);
    }
    CHECK(stat_of("big_evicted_age") >= 2 && stat_of("purged_bytes") >= 3 * MIB);
    CHECK(stat_of("kept_whale_bytes") <= 2 * MIB);
    check_laws();
}

static void what_others_need_goes_before_clean_memory(void)
{
    void *p[8];
    for (int i = 0; i < 8; i++) memset(p[i] = malloc(3 * MIB), 1, 3 * MIB);
    for (int i = 0; i < 8; i++) free(p[i]);
    uint64_t superslabs = stat_of("superslabs");
    CHECK(stat_of("big_entries") == 8);
    for (int i = 0; i < 4; i++) CHECK((p[i] = malloc(5 * MIB)));
    CHECK(stat_of("big_evicted_need") >= 4 && stat_of("superslabs") <= superslabs + 1);
    void *small[64];
    for (int i = 0; i < 64; i++) CHECK((small[i] = malloc(64 * KIB)));
    CHECK(stat_of("superslabs") <= superslabs + 1);
    check_laws();
}

static void trim_takes_all(void)
{
    set("retain", 1 << 30);
    free(malloc(3 * MIB));
    free(malloc(80 * MIB));
    CHECK(stat_of("big_entries") == 2);
    malloc_trim(0);
    CHECK(stat_of("big_entries") == 0 && stat_of("kept_whale_bytes") == 0);
    check_laws();
}

/* ---- thousands of keys, each with a block: mappings that nobody touches */

enum { KEYS = 900 };

static void the_table_grows(void)
{
    static void *p[KEYS];
    set("retain", (int64_t)1 << 40);
    for (int i = 0; i < KEYS; i++) {
        void *(*get)(size_t, uint64_t);
        *(void **)&get = hak("hak_alloc_at");
        if (!(p[i] = get(65 * MIB, (uint64_t)i + 1))) { /* a machine that counts address space */
            dprintf(1, "no room\n");
            return;
        }
    }
    CHECK(stat_of("big_buckets") == 512 && stat_of("big_keys") <= 257, "keys without blocks are bounded");
    for (int i = 0; i < KEYS; i++) free(p[i]);
    CHECK(stat_of("big_entries") == KEYS && stat_of("big_keys") >= KEYS);
    CHECK(stat_of("big_buckets") == 2048, "%llu", (unsigned long long)stat_of("big_buckets"));
    check_laws();
    for (int i = 0; i < KEYS; i += 7) CHECK(alloc_at(65 * MIB, (uint64_t)i + 1) == p[i], "site %d", i + 1);
    for (int i = 0; i < KEYS; i += 7) free(p[i]);
    malloc_trim(0);
    CHECK(stat_of("big_entries") == 0 && stat_of("kept_whale_bytes") == 0);
    uint64_t metadata = stat_of("metadata_bytes");
    for (int i = 0; i < 3 * KEYS; i++) free(alloc_at(65 * MIB, (uint64_t)i + 10000)); /* other keys take the old ones' place */
    malloc_trim(0);
    CHECK(stat_of("metadata_bytes") <= metadata + MIB && stat_of("big_buckets") <= 8192);
    for (int i = 0; i < 3 * KEYS; i++) free(alloc_at(65 * MIB, (uint64_t)i + 20000)), malloc_trim(0);
    CHECK(stat_of("metadata_bytes") <= metadata + MIB, "keys are not recycled");
    check_laws();
}

/* ---- misuse */

static void a_kept_block_is_free(void)
{
    int (*free_checked)(void *);
    const char *(*name)(int);
    *(void **)&free_checked = hak("hak_free_checked");
    *(void **)&name = hak("hak_error_name");
    char *p = malloc(3 * MIB);
    free(p);
    CHECK(stat_of("big_entries") == 1);
    CHECK(strcmp(name(free_checked(p)), "ALREADY_FREE") == 0, "%s", name(free_checked(p)));
    CHECK(strcmp(name(free_checked(p + MIB)), "ALREADY_FREE") == 0, "%s", name(free_checked(p + MIB)));
    CHECK(stat_of("big_entries") == 1);
}

static void double_free(void)
{
    void *volatile p = malloc(3 * MIB);
    free(p);
    free(p);
}

static void free_inside_of_a_freed_one(void)
{
    char *volatile p = malloc(3 * MIB);
    free(p);
    free(p + MIB);
}

/* ---- threads, and fork among them */

static volatile int stop;

static void *churn(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    struct { unsigned char *p; size_t n; uint32_t key; } slot[6] = {0};
    static const size_t sizes[] = {2 * MIB, 2 * MIB, 3 * MIB, 5 * MIB, 70 * MIB};
    for (int i = 0; i < 1500 && !stop; i++) {
        size_t at = random_between(&seed, 0, COUNT_OF(slot) - 1), n = sizes[random_between(&seed, 0, 4)];
        if (slot[at].p)
            CHECK(pattern_wrong(slot[at].p, 4096, slot[at].key, 4096) == SIZE_MAX
                  && slot[at].p[slot[at].n - 1] == (unsigned char)slot[at].key);
        switch (random_between(&seed, 0, 9)) {
        case 0:
            malloc_trim(0);
            break;
        case 1:
            CHECK((slot[at].p = realloc(slot[at].p, n)));
            break;
        default:
            free(slot[at].p);
            CHECK((slot[at].p = malloc(n)));
        }
        if (!slot[at].p) continue;
        if (malloc_usable_size(slot[at].p) < n) n = slot[at].n; /* trimmed: it is as it was */
        slot[at].n = n;
        slot[at].key = (uint32_t)next_random(&seed);
        pattern_write(slot[at].p, 4096, slot[at].key);
        slot[at].p[n - 1] = (unsigned char)slot[at].key;
    }
    for (size_t i = 0; i < COUNT_OF(slot); i++) free(slot[i].p);
    return NULL;
}

#include <sys/wait.h>

static void threads_and_forks(void)
{
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0);
    for (int i = 0; i < 10; i++) {
        sleep_ms(5);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            check_laws();
            for (int k = 0; k < 50; k++) free(malloc((size_t)(2 + k % 3) * MIB));
            malloc_trim(0);
            CHECK(stat_of("big_entries") == 0);
            check_laws();
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0, "child %d: status %d", i, status);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    check_laws();
    CHECK(stat_of("big_entries") == 0 || stat_of("kept_whale_bytes") > 0);
    CHECK(stat_of("large_blocks") == 0 && stat_of("whale_blocks") == 0);
}

static const struct test_case cases[] = {
    CASE(a_block_comes_back_to_its_size),
    CASE(a_mapping_comes_back_to_its_size),
    CASE(sites_are_apart),
    CASE(sizes_that_hardly_come_again_are_not_kept),
    CASE(alignment_holds),
    CASE(calloc_is_zero),
    CASE(growth_takes_a_kept_neighbour),
    CASE(what_is_beyond_the_budget_goes),
    CASE(what_is_beyond_what_may_be_retained_goes),
    CASE(what_has_grown_old_goes),
    CASE(what_others_need_goes_before_clean_memory),
    CASE(trim_takes_all),
    CASE(the_table_grows),
    CASE(a_kept_block_is_free),
    CASE(double_free),
    CASE(free_inside_of_a_freed_one),
    CASE(threads_and_forks),
};

int main(int argc, char **argv) { return run_case(argc, argv, cases, COUNT_OF(cases)); }
