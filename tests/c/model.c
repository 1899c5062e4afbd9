/* Random operations against a naive model: a table of what every block should hold, and a sorted list of the
 * addresses in use. Arguments: seed, operations, MiB alive at most, flags: "exact" leaves out realloc and aligned
 * blocks, so that hakmem's counts must equal ours to the last one. */
#include "common.h"

struct slot {
    unsigned char *p;
    size_t n, usable;
    uint32_t key;
};

enum { SLOTS = 6000 };
static struct slot slots[SLOTS];
static struct {
    uintptr_t low, high;
} in_use[SLOTS + 1];
static size_t used, live_bytes, asked_bytes; /* what is asked for does not depend on the allocator */
static uint64_t seed, sum;
static uint64_t own_allocs, own_frees, own_reallocs;
static uint32_t keys;

static size_t position(uintptr_t address)
{
    size_t low = 0, high = used;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (in_use[middle].low < address) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void enter(struct slot *s)
{
    uintptr_t low = (uintptr_t)s->p, high = low + (s->usable ? s->usable : 1);
    size_t i = position(low);
    CHECK(i == used || in_use[i].low >= high, "%p of %zu overlaps the block at %p", (void *)s->p, s->n,
          (void *)in_use[i].low);
    CHECK(i == 0 || in_use[i - 1].high <= low, "%p of %zu lies in the block at %p", (void *)s->p, s->n,
          (void *)in_use[i - 1].low);
    memmove(&in_use[i + 1], &in_use[i], (used - i) * sizeof *in_use);
    in_use[i].low = low;
    in_use[i].high = high;
    used++;
    live_bytes += s->usable;
    asked_bytes += s->n;
}

static void leave(struct slot *s)
{
    size_t i = position((uintptr_t)s->p);
    CHECK(i < used && in_use[i].low == (uintptr_t)s->p, "the model has lost %p", (void *)s->p);
    used--;
    memmove(&in_use[i], &in_use[i + 1], (used - i) * sizeof *in_use);
    live_bytes -= s->usable;
    asked_bytes -= s->n;
}

static void check_block(const struct slot *s, size_t limit)
{
    size_t wrong = pattern_wrong(s->p, s->n, s->key, limit);
    CHECK(wrong == SIZE_MAX, "%p of %zu bytes: byte %zu was overwritten", (void *)s->p, s->n, wrong);
    if (limit) sum = (sum ^ s->p[limit / 3 < DENSE ? limit / 3 : 0] ^ s->n) * 0x100000001b3u;
}

static void write_block(struct slot *s)
{
    s->usable = malloc_usable_size(s->p);
    CHECK(s->usable >= s->n, "%zu of %zu", s->usable, s->n);
    CHECK(((uintptr_t)s->p & (s->n <= 8 ? 7 : 15)) == 0, "%p", (void *)s->p);
    s->key = ++keys * 2654435761u;
    pattern_write(s->p, s->n, s->key);
    enter(s);
}

static void drop(struct slot *s)
{
    check_block(s, s->n);
    leave(s);
    free(s->p);
    s->p = NULL;
    own_frees++;
}

static size_t pick_size(void)
{
    size_t r = random_between(&seed, 0, 9999);
    if (r < 100) return 0;
    if (r < 600) { /* next to a power of two */
        size_t n = (size_t)1 << random_between(&seed, 0, 21);
        return n - 1 + random_between(&seed, 0, 2);
    }
    if (r < 6500) return random_between(&seed, 1, KIB);
    if (r < 8700) return random_between(&seed, KIB, 32 * KIB);
    if (r < 9900) return random_between(&seed, 32 * KIB, MIB);
    if (r < 9990) return random_between(&seed, MIB, 8 * MIB);
    return random_between(&seed, 8 * MIB, 80 * MIB);
}

int main(int argc, char **argv)
{
    CHECK(argc >= 4);
    seed = strtoull(argv[1], NULL, 10);
    uint64_t operations = strtoull(argv[2], NULL, 10);
    size_t most = strtoull(argv[3], NULL, 10) * MIB;
    int exact = argc > 4 && strcmp(argv[4], "exact") == 0;
    static struct snapshot before, after;
    if (about()) {
        free(malloc(1));
        check_laws();
        take_snapshot(&before);
    }
    for (uint64_t i = 0; i < operations; i++) {
        struct slot *s = &slots[random_between(&seed, 0, SLOTS - 1)];
        size_t n = pick_size(), r = random_between(&seed, 0, 99);
        while (asked_bytes + n > most) {
            struct slot *victim = &slots[random_between(&seed, 0, SLOTS - 1)];
            if (victim->p) drop(victim);
        }
        if (s->p && !exact && r < 40) {
            struct slot old = *s;
            if (n == 0) n = 1;
            check_block(s, s->n);
            leave(s);
            s->p = realloc(s->p, n);
            CHECK(s->p, "realloc to %zu", n);
            s->n = old.n;
            check_block(s, old.n < n ? old.n : n);
            s->n = n;
            own_reallocs++;
            write_block(s);
            continue;
        }
        if (s->p) {
            drop(s);
            continue;
        }
        s->n = n;
        if (r < 25) {
            s->p = calloc(r & 1 ? 1 : n, r & 1 ? n : 1);
            CHECK(s->p, "calloc of %zu", n);
            CHECK(is_zero(s->p, n), "calloc of %zu is dirty", n);
        } else if (r < 35 && !exact) {
            size_t align = (size_t)1 << random_between(&seed, 3, r == 34 ? 23 : 13);
            void *p = NULL;
            CHECK(posix_memalign(&p, align, n) == 0, "alignment %zu, size %zu", align, n);
            CHECK(((uintptr_t)p & (align - 1)) == 0, "%p, alignment %zu", p, align);
            s->p = p;
        } else {
            s->p = malloc(n);
            CHECK(s->p, "malloc of %zu", n);
        }
        own_allocs++;
        write_block(s);
    }
    uint64_t alive = 0;
    for (size_t i = 0; i < SLOTS; i++) alive += slots[i].p != NULL;
    CHECK(alive == own_allocs - own_frees && alive == used, "the model itself");
    if (about()) {
        check_laws();
        take_snapshot(&after);
#define GREW(name) ((long long)(of(&after, name) - of(&before, name)))
        CHECK(GREW("live_blocks") == (long long)alive, "%lld, ours %llu", GREW("live_blocks"), (unsigned long long)alive);
        CHECK(GREW("allocs") >= (long long)own_allocs && GREW("allocs") <= (long long)(own_allocs + own_reallocs),
              "%lld, ours %llu + %llu", GREW("allocs"), (unsigned long long)own_allocs, (unsigned long long)own_reallocs);
        if (exact) {
            CHECK(GREW("frees") == (long long)own_frees, "%lld, ours %llu", GREW("frees"), (unsigned long long)own_frees);
            CHECK(GREW("live_bytes") == (long long)live_bytes, "%lld, ours %zu", GREW("live_bytes"), live_bytes);
        } else {
            CHECK(GREW("live_bytes") >= (long long)live_bytes, "%lld, ours %zu", GREW("live_bytes"), live_bytes);
        }
        static struct rows classes;
        take_rows(&classes, "hak_class_table", "class");
        uint64_t live = 0;
        for (int c = 0; c < classes.count; c++) {
            const void *r = row(&classes, c);
            CHECK(field("class", r, "allocs") - field("class", r, "frees") == field("class", r, "live_blocks"), "class %d", c);
            CHECK(field("class", r, "live_blocks") + field("class", r, "cached_blocks") + field("class", r, "transit_blocks") ==
                      field("class", r, "used_blocks"), "class %d", c);
            CHECK(field("class", r, "used_blocks") <= field("class", r, "slabs") * field("class", r, "blocks_per_slab"),
                  "class %d", c);
            live += field("class", r, "live_blocks");
        }
        CHECK(live <= of(&after, "live_blocks"), "%llu", (unsigned long long)live);
    }
    for (size_t i = 0; i < SLOTS; i++)
        if (slots[i].p) drop(&slots[i]);
    if (about()) {
        for (int trimmed = 0; trimmed < 2; trimmed++) {
            check_laws();
            take_snapshot(&after);
            CHECK(GREW("live_blocks") == 0 && GREW("live_bytes") == 0, "%lld blocks, %lld bytes", GREW("live_blocks"),
                  GREW("live_bytes"));
            malloc_trim(0);
        }
    }
    dprintf(1, "%llu allocations, %llu reallocs, sum %016llx\n", (unsigned long long)own_allocs,
            (unsigned long long)own_reallocs, (unsigned long long)sum);
    return 0;
}
