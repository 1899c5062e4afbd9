/* From a pointer to its segment, by its address and in the way that $HAKMEM_USE_REGISTRY says: both say the same, and
 * what a model of the blocks says. Compiled together with _hakmem_backend.c. Argument: a case. */
#include "common.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>

void *hak_malloc(size_t), *hak_realloc(void *, size_t), *hak_aligned_alloc(size_t, size_t);
void hak_free(void *);
size_t hak_usable_size(const void *), hak_trim(void);
uint64_t hak_stat(const char *);
int hak_owner_of(const void *, void *, size_t), hak_option_get(const char *, int64_t *);

typedef size_t lookup_function(const void *, uintptr_t *);
lookup_function hak_lookup_by_address, hak_lookup_by_registry, hak_lookup_by_scan;
static lookup_function *const ways[] = {hak_lookup_by_address, hak_lookup_by_registry, hak_lookup_by_scan};
static int64_t way;

enum { UNIT = 64 * 1024 };

static void owner_is(const char *p, const char *base, size_t size)
{
    _Alignas(16) char row_[256];
    CHECK(hak_owner_of(p, row_, record("owner")->size) == 0, "%p of %p", (void *)p, (void *)base);
    CHECK(field("owner", row_, "base") == (uintptr_t)base && field("owner", row_, "size") == size, "%p of %p, %zu bytes",
          (void *)p, (void *)base, size);
}

/* The other index is not kept, and the segment that both others find is the same. */
static size_t look(const void *p, uintptr_t *base)
{
    uintptr_t by_address = 0, by_way = 0, nothing;
    size_t len = hak_lookup_by_address(p, &by_address);
    if (way) CHECK(ways[way](p, &by_way) == len && (!len || by_way == by_address), "%p", p);
    for (int64_t other = 1; other < 3; other++) CHECK(other == way || ways[other](p, &nothing) == 0);
    CHECK(!len || (uintptr_t)p - by_address < len, "%p", p);
    *base = by_address;
    return len;
}

/* Every segment that the statistics know stands in the index. */
static void index_is_whole(void)
{
    uint64_t segments = hak_stat("slabs") + hak_stat("orphan_slabs") + hak_stat("large_blocks") + hak_stat("whale_blocks");
    CHECK(hak_stat("index_segments") == (way ? segments : 0), "%llu, %llu segments",
          (unsigned long long)hak_stat("index_segments"), (unsigned long long)segments);
    CHECK(way ? hak_stat("index_bytes") >= 16 * segments : hak_stat("index_bytes") == 0);
    CHECK(hak_stat("metadata_bytes") >= hak_stat("index_bytes"));
    CHECK(hak_stat("index_refusals") == 0 && hak_stat("index_missing") == 0);
}

static void nothing_is_at(const void *p)
{
    _Alignas(16) char row_[256];
    uintptr_t base;
    CHECK(look(p, &base) == 0 && hak_owner_of(p, row_, record("owner")->size) != 0, "%p", p);
}

static void look_at_foreign(void)
{
    static int here;
    int there;
    void *mine = own_pages(1);
    const void *foreign[] = {&here, &there, mine, NULL, (void *)16, (void *)-1, (void *)(1ull << 47), (void *)(1ull << 63)};
    for (size_t i = 0; i < COUNT_OF(foreign); i++) nothing_is_at(foreign[i]);
    munmap(mine, 1);
}

/* ---- a random program on all tiers */

struct block {
    char *p;
    size_t size;
};
enum { SLOTS = 260, STEPS = 6000 };
static struct block slots[SLOTS];

/* Of each tier as many: sizes even in the logarithm. Slots below 230 hold classes, the next 24 runs, the last whales. */
static size_t size_for(uint64_t *random, size_t slot)
{
    if (slot < 230) return random_between(random, 1, (size_t)8 << random_between(random, 0, 17));
    return slot < 254 ? random_between(random, MIB + 1, 2 * MIB << random_between(random, 0, 4))
                      : random_between(random, 64 * MIB, 64 * MIB << random_between(random, 0, 5));
}

static void look_round(const struct block *b, uint64_t *random)
{
    uintptr_t base, other;
    size_t len = look(b->p, &base), inside = random_between(random, 0, b->size - 1);
    CHECK(len >= b->size && (uintptr_t)b->p >= base && (uintptr_t)b->p + b->size <= base + len, "%p", (void *)b->p);
    owner_is(b->p + inside, b->p, b->size);
    owner_is(b->p + b->size - 1, b->p, b->size);
    uintptr_t there[] = {(uintptr_t)b->p + inside, (uintptr_t)b->p + b->size - 1, base, base + len - 1};
    for (size_t i = 0; i < COUNT_OF(there); i++) CHECK(look((void *)there[i], &other) == len && other == base);
    uintptr_t outside[] = {base - 1, base + len, base - UNIT, base + len + UNIT, base + len + inside};
    for (size_t i = 0; i < COUNT_OF(outside); i++) CHECK(!look((void *)outside[i], &other) || other != base);
}

static void put(struct block *b, void *p)
{
    CHECK(p);
    *b = (struct block){p, hak_usable_size(p)};
}

static void change(size_t slot, uint64_t *random)
{
    struct block *b = &slots[slot], old = *b;
    uint64_t what = next_random(random) % 4;
    if (!b->p) {
        size_t align = (size_t)16 << random_between(random, 0, slot < 254 ? 19 : 23), n = size_for(random, slot);
        put(b, what ? hak_malloc(n) : hak_aligned_alloc(align, n));
    } else if (what == 0) {
        size_t n = size_for(random, slot < 254 && next_random(random) % 32 == 0 ? SLOTS - 1 : slot);
        put(b, hak_realloc(b->p, n));
    } else {
        uintptr_t base;
        size_t len = look(b->p, &base);
        *b = (struct block){0};
        hak_free(old.p);
        if (len >= 64 * MIB) nothing_is_at(old.p + old.size / 2); /* it may be kept, but nobody's */
    }
    if (b->p) look_round(b, random);
}

static void *fill_and_leave(void *seed) /* its slabs become orphans */
{
    uint64_t random = (uintptr_t)seed;
    for (int i = 0; i < 40; i++) {
        size_t slot = random_between(&random, 0, 229);
        if (!slots[slot].p) put(&slots[slot], hak_malloc(size_for(&random, slot)));
    }
    return NULL;
}

static void a_random_program(void)
{
    uint64_t random = 7;
    pthread_t thread;
    size_t most = 0;

    look_at_foreign();
    for (int i = 0; i < STEPS; i++) {
        size_t slot = random_between(&random, 0, SLOTS - 1), other = random_between(&random, 0, SLOTS - 1);
        change(slot, &random);
        if (slots[other].p) look_round(&slots[other], &random);
        if (i % 500 == 0) {
            CHECK(pthread_create(&thread, NULL, fill_and_leave, (void *)(uintptr_t)(i + 1)) == 0);
            pthread_join(thread, NULL);
        }
        if (i % 1000 == 999) hak_trim();
        if (i % 50 == 0) index_is_whole();
        most = hak_stat("orphan_slabs") > most ? hak_stat("orphan_slabs") : most;
    }
    int64_t tls;
    CHECK(hak_option_get("enable_tls", &tls) == 0 && (most > 0 || !tls), "no slab was ever an orphan");
    for (size_t i = 0; i < SLOTS; i++) hak_free(slots[i].p);
    hak_trim();
    index_is_whole();
    CHECK(hak_stat("index_segments") == (way ? hak_stat("slabs") + hak_stat("orphan_slabs") : 0));
    look_at_foreign();
    check_laws();
}

/* ---- readers beside makers */

enum { STABLE = 40, MAKERS = 2, READERS = 2, MOVING = 8 };
static struct stable {
    char *p;
    uintptr_t base;
    size_t size, len;
} stable[STABLE];
static _Atomic(char *) moving[MAKERS][MOVING]; /* where blocks are or were */
static atomic_int making;
static int turns;

static void make_stable(void)
{
    static const size_t sizes[] = {24, 3000, 40000, UNIT, 300000, MIB, 3 * MIB, 20 * MIB, 70 * MIB, 200 * MIB};
    for (size_t i = 0; i < STABLE; i++) {
        struct stable *s = &stable[i];
        s->p = hak_malloc(sizes[i % COUNT_OF(sizes)]);
        CHECK(s->p);
        s->size = hak_usable_size(s->p);
        s->len = look(s->p, &s->base);
    }
}

static void check_stable(uint64_t *random)
{
    for (size_t i = 0; i < STABLE; i++) {
        const struct stable *s = &stable[i];
        const char *p = s->p + random_between(random, 0, s->size - 1);
        uintptr_t base;
        CHECK(ways[way](p, &base) == s->len && base == s->base, "%zu", s->size);
        size_t len = hak_lookup_by_address(p, &base);
        CHECK(len == s->len && base == s->base, "%p of %p, %zu, %zu: %zx %zx", (void *)p, (void *)s->p, s->size, s->len, len, base);
        owner_is(p, s->p, s->size);
    }
}

static void *make(void *argument)
{
    static const size_t sizes[] = {UNIT, UNIT, UNIT, 200000, MIB, 2 * MIB, 9 * MIB, 66 * MIB};
    size_t self = (uintptr_t)argument;
    uint64_t random = self + 1;
    char *blocks[64] = {0};
    for (int i = 0; i < turns; i++) {
        size_t at = random_between(&random, 0, 63), n = sizes[random_between(&random, 0, COUNT_OF(sizes) - 1)];
        if (blocks[at] && n > MIB && hak_usable_size(blocks[at]) > MIB) {
            blocks[at] = hak_realloc(blocks[at], n);
        } else if (blocks[at]) {
            hak_free(blocks[at]);
            blocks[at] = NULL;
        } else {
            blocks[at] = hak_malloc(n);
        }
        if (blocks[at]) atomic_store(&moving[self][at % MOVING], blocks[at]);
    }
    for (size_t i = 0; i < COUNT_OF(blocks); i++) hak_free(blocks[i]);
    atomic_fetch_sub(&making, 1);
    return NULL;
}

static void *read_on(void *argument)
{
    uint64_t random = (uintptr_t)argument + 100;
    _Alignas(16) char row_[256];
    do {
        check_stable(&random);
        for (size_t i = 0; i < MAKERS * MOVING; i++) {
            char *p = atomic_load(&moving[i / MOVING][i % MOVING]);
            if (!p) continue;
            p += random_between(&random, 0, UNIT - 1);
            uintptr_t base;
            size_t len = ways[way](p, &base);
            CHECK(!len || (uintptr_t)p - base < len);
            int code = hak_owner_of(p, row_, record("owner")->size);
            CHECK(code || (uintptr_t)p - field("owner", row_, "base") < field("owner", row_, "size"));
        }
    } while (atomic_load(&making));
    return NULL;
}

/* A run stands last in the array; then the first one ends, and the last takes its place: whoever scans in between has
 * passed there already, and must look again. */
enum { FILLERS = 400, MOVES = 100 };
static _Atomic(char *) last, seen[READERS];

static void *look_for_the_last(void *argument)
{
    for (char *p; (p = atomic_load(&last)); atomic_store(&seen[(uintptr_t)argument], p)) {
        uintptr_t base;
        for (int i = 0; i < 20; i++) CHECK(ways[way](p + MIB, &base) > MIB && base == (uintptr_t)p, "it was lost");
    }
    return NULL;
}

static void a_segment_that_moves_is_never_lost(void)
{
    static char *fillers[FILLERS];
    char *first = hak_malloc(2 * MIB), *next;
    pthread_t readers[READERS];
    for (size_t i = 0; i < FILLERS; i++) CHECK((fillers[i] = hak_malloc(2 * MIB)));
    atomic_store(&last, hak_malloc(2 * MIB));
    for (size_t i = 0; i < READERS; i++) CHECK(pthread_create(&readers[i], NULL, look_for_the_last, (void *)i) == 0);
    for (int i = 0; i < MOVES; i++) {
        for (size_t k = 0; k < READERS; k++)
            while (atomic_load(&seen[k]) != atomic_load(&last)) sched_yield();
        hak_free(first);
        first = atomic_load(&last);
        CHECK((next = hak_malloc(2 * MIB)));
        atomic_store(&last, next);
    }
    atomic_store(&last, NULL);
    for (size_t i = 0; i < READERS; i++) pthread_join(readers[i], NULL);
}

static pthread_t makers[MAKERS];

static void start_makers(int how_long)
{
    make_stable();
    turns = how_long;
    atomic_store(&making, MAKERS);
    for (size_t i = 0; i < MAKERS; i++) CHECK(pthread_create(&makers[i], NULL, make, (void *)i) == 0);
}

static void end_makers(void)
{
    for (size_t i = 0; i < MAKERS; i++) pthread_join(makers[i], NULL);
    index_is_whole();
}

static void readers_beside_makers(void)
{
    pthread_t readers[READERS];
    start_makers(5000);
    for (size_t i = 0; i < READERS; i++) CHECK(pthread_create(&readers[i], NULL, read_on, (void *)i) == 0);
    for (size_t i = 0; i < READERS; i++) pthread_join(readers[i], NULL);
    end_makers();
}

static void children_of_makers(void)
{
    start_makers(1 << 30);
    for (int i = 0; i < 25; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            uint64_t random = (uint64_t)i;
            char *blocks[100];
            alarm(60);
            check_stable(&random);
            index_is_whole();
            for (size_t k = 0; k < COUNT_OF(blocks); k++) blocks[k] = hak_malloc(k % 3 ? UNIT : 2 * MIB);
            check_stable(&random);
            index_is_whole();
            for (size_t k = 0; k < COUNT_OF(blocks); k++) hak_free(blocks[k]);
            for (size_t k = 0; k < STABLE; k++) hak_free(stable[k].p);
            index_is_whole();
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0, "child %d: status %x", i, status);
    }
    _exit(0);
}

/* ---- words on a bad pointer */

static void free_in_the_middle_of_a_run(void) { hak_free((char *)hak_malloc(3 * MIB) + MIB); }
static void free_in_the_middle_of_a_whale(void) { hak_free((char *)hak_malloc(200 * MIB) + 150 * MIB); }

static void free_what_is_foreign(void)
{
    hak_free(hak_malloc(200 * MIB));
    hak_free(own_pages(1));
}

/* ---- no memory for the index */

#ifdef HAK_DEBUG
uint64_t hak_debug_fail(uint32_t calls, uint64_t nth, uint64_t count);

/* Blocks that each are a slab, on units that have long been committed: only the index wants memory. */
static size_t take_units(char **blocks, size_t most)
{
    size_t n = 0;
    while (n < most && (blocks[n] = hak_malloc(UNIT))) n++;
    return n;
}

static size_t in_the_index(char **blocks, size_t count) /* all are found by who asks for their owner */
{
    size_t n = 0;
    CHECK(hak_stat("index_segments") + hak_stat("index_missing") == (way ? hak_stat("slabs") : 0));
    for (size_t i = 0; i < count; i++) {
        uintptr_t base = 0;
        if (!blocks[i]) continue;
        owner_is(blocks[i] + i % UNIT, blocks[i], UNIT);
        n += ways[way](blocks[i], &base) == UNIT && base == (uintptr_t)blocks[i];
    }
    return n;
}

static void no_memory_for_the_index(void)
{
    enum { MOST = 15000, RUNS = 16 };
    char **blocks = own_pages(MOST * sizeof *blocks), *runs[RUNS];
    for (size_t i = 0; i < RUNS; i++) runs[i] = hak_malloc(60 * MIB);
    for (size_t i = 0; i < RUNS; i++) hak_free(runs[i]);
    hak_debug_fail(1 /* mmap */, 1, UINT64_MAX >> 1);
    size_t count = take_units(blocks, MOST), found;
    CHECK(count == MOST, "%zu blocks", count);
    uint64_t refused = hak_stat("index_refusals");
    CHECK(way ? refused > 0 : refused == 0);
    found = in_the_index(blocks, count);
    CHECK(way ? found + refused >= count && found < count : found == count, "%zu of %zu, %llu refused", found, count,
          (unsigned long long)refused);
    for (size_t i = 0; i < count; i += 2) { /* some that are in the index, and some that are not */
        hak_free(blocks[i]);
        blocks[i] = NULL;
    }
    in_the_index(blocks, count);
    CHECK(hak_debug_fail(0, 0, 0) > 0 || !way);
    for (size_t i = 0; i < count; i += 2) CHECK((blocks[i] = hak_malloc(UNIT)));
    found = in_the_index(blocks, count);
    CHECK(found + refused >= count);
    for (size_t i = 0; i < count; i++) hak_free(blocks[i]);
    hak_trim();
    CHECK(take_units(blocks, MOST) == MOST); /* those that had no entry are gone: now each has one */
    CHECK(in_the_index(blocks, count) == count && hak_stat("index_refusals") == refused);
    CHECK(hak_stat("index_missing") == 0);
    for (size_t i = 0; i < count; i++) hak_free(blocks[i]);
    CHECK(hak_stat("index_segments") == (way ? hak_stat("slabs") : 0));
    check_laws();
}
#endif

static const struct test_case CASES[] = {
    CASE(a_random_program),
    CASE(readers_beside_makers),
    CASE(a_segment_that_moves_is_never_lost),
    CASE(children_of_makers),
    CASE(free_in_the_middle_of_a_run),
    CASE(free_in_the_middle_of_a_whale),
    CASE(free_what_is_foreign),
#ifdef HAK_DEBUG
    CASE(no_memory_for_the_index),
#endif
};

int main(int argc, char **argv)
{
    CHECK(hak_option_get("use_registry", &way) == 0 && about()); /* which the threads read */
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
