/* Size to class, for every size: hakmem's own class table against what malloc_usable_size says of each block. */
#include "common.h"

static struct rows classes;
static uint64_t sizes[1024];
static int count;

static void load(void)
{
    take_rows(&classes, "hak_class_table", "class");
    CHECK(classes.count <= (int)COUNT_OF(sizes), "%d", classes.count);
    for (int i = 0; i < classes.count; i++) {
        CHECK(field("class", row(&classes, i), "index") == (uint64_t)i, "row %d", i);
        sizes[i] = field("class", row(&classes, i), "size");
    }
    count = classes.count;
}

static void table(void)
{
    static const uint64_t wanted[] = {8,        16,       32,       64,        128,       256,       512,      1024, 2 * KIB,
                                      4 * KIB,  8 * KIB,  16 * KIB, 32 * KIB,  64 * KIB,  128 * KIB, 256 * KIB,
                                      512 * KIB, MIB};
    load();
    for (int i = 1; i < count; i++) CHECK(sizes[i] > sizes[i - 1], "class %d", i);
    for (size_t w = 0; w < COUNT_OF(wanted); w++) {
        int found = 0;
        for (int i = 0; i < count; i++) found |= sizes[i] == wanted[w];
        CHECK(found, "no class of %llu bytes", (unsigned long long)wanted[w]);
    }
    for (int i = 0; i < count; i++) {
        const void *r = row(&classes, i);
        const char *tier = text_field("class", r, "tier");
        const char *expected = sizes[i] <= KIB ? "tiny" : sizes[i] <= 32 * KIB ? "l2" : sizes[i] <= MIB ? "l25" : "whale";
        CHECK(strcmp(tier, expected) == 0, "class of %llu is of tier %s", (unsigned long long)sizes[i], tier);
        CHECK(field("class", r, "slab_bytes") >= sizes[i] * field("class", r, "blocks_per_slab"), "class %d", i);
        CHECK(field("class", r, "blocks_per_slab") >= 1, "class %d", i);
        CHECK(sizes[i] % (sizes[i] <= 8 ? 8 : 16) == 0, "class %d", i);
    }
}

static void every_size(void)
{
    load();
    int c = 0;
    for (size_t n = 1; n <= MIB; n++) {
        while (sizes[c] < n) c++;
        void *p = malloc(n);
        size_t usable = malloc_usable_size(p);
        CHECK(usable == sizes[c], "malloc(%zu) has %zu bytes, the class table says %llu", n, usable,
              (unsigned long long)sizes[c]);
        CHECK(usable - n <= (n / 4 > 15 ? n / 4 : 15), "%zu wastes %zu", n, usable - n);
        free(p);
    }
    for (size_t n = MIB + 1; n <= 200 * MIB; n += n / 7) {
        void *p = malloc(n);
        size_t usable = malloc_usable_size(p);
        CHECK(usable >= n && usable - n <= n / 4, "%zu has %zu", n, usable);
        free(p);
    }
}

static void owners(void)
{
    static unsigned char out[4096];
    int (*owner_of)(const void *, void *, size_t);
    *(void **)&owner_of = hak("hak_owner_of");
    load();
    uint32_t size = record("owner")->size;
    CHECK(size <= sizeof out, "%u", size);
    for (int i = 0; i < count; i++) {
        char *p = malloc(sizes[i]);
        for (size_t at = 0; at < sizes[i]; at += sizes[i] / 3 + 1) {
            CHECK(owner_of(p + at, out, size) == 0, "class %d", i);
            CHECK(field("owner", out, "base") == (uintptr_t)p, "class %d at %zu", i, at);
            CHECK(field("owner", out, "size") == sizes[i], "class %d", i);
            CHECK(field("owner", out, "class") == (uint64_t)i, "class %d", i);
            CHECK(strcmp(text_field("owner", out, "tier"), text_field("class", row(&classes, i), "tier")) == 0, "class %d",
                  i);
            CHECK(strcmp(text_field("owner", out, "state"), "live") == 0, "%s", text_field("owner", out, "state"));
        }
        free(p);
        if (owner_of(p, out, size) == 0)
            CHECK(strcmp(text_field("owner", out, "state"), "live") != 0, "class %d is live after free", i);
    }
    static int elsewhere;
    CHECK(owner_of(&elsewhere, out, size) == 1, "a static variable");
    CHECK(owner_of(&size, out, size) == 1, "the stack");
    CHECK(owner_of(NULL, out, size) == 1, "NULL");
    char *big = malloc(100 * MIB);
    CHECK(owner_of(big + 50 * MIB, out, size) == 0, "inside a whale");
    CHECK(field("owner", out, "base") == (uintptr_t)big && field("owner", out, "size") >= 100 * MIB);
    CHECK(strcmp(text_field("owner", out, "tier"), "whale") == 0);
    free(big);
}

/* 300 slabs of each class at once (up to 200 MiB), each block with its own number in it. */
static void many_slabs(void)
{
    static struct rows now;
    load();
    enum { MOST = 4 << 20 };
    uint64_t **blocks = own_pages(MOST * sizeof *blocks);
    for (int c = 0; c < count; c += c < 8 ? 1 : 3) {
        size_t slabs = 300, per_slab = field("class", row(&classes, c), "blocks_per_slab");
        while (slabs * per_slab * sizes[c] > 200 * MIB && slabs > 40) slabs -= 10;
        size_t n = slabs * per_slab;
        if (n * sizes[c] > 600 * MIB || n > MOST) continue;
        for (size_t i = 0; i < n; i++) {
            blocks[i] = malloc(sizes[c]);
            CHECK(blocks[i], "class %d, block %zu", c, i);
            *blocks[i] = i;
            blocks[i][sizes[c] / 8 - 1] = i;
        }
        take_rows(&now, "hak_class_table", "class");
        CHECK(field("class", row(&now, c), "slabs") >= slabs, "class %d has %llu slabs", c,
              (unsigned long long)field("class", row(&now, c), "slabs"));
        CHECK(field("class", row(&now, c), "live_blocks") >= n, "class %d", c);
        check_laws();
        for (size_t i = 0; i < n; i++) {
            CHECK(*blocks[i] == i && blocks[i][sizes[c] / 8 - 1] == i, "class %d, block %zu of %zu", c, i, n);
            free(blocks[i]);
        }
        check_laws();
    }
}

/* "index tier size max_cached cached_blocks" a line, after a little use; the test reads what a switch did to it. */
static void show(void)
{
    static void *p[8];
    load();
    for (int c = 0; c < count; c++) {
        for (size_t i = 0; i < COUNT_OF(p); i++) p[i] = malloc(sizes[c]);
        for (size_t i = 0; i < COUNT_OF(p); i++) free(p[i]);
        take_rows(&classes, "hak_class_table", "class");
        const void *r = row(&classes, c);
        dprintf(1, "%d %s %llu %llu %llu\n", c, text_field("class", r, "tier"), (unsigned long long)sizes[c],
                (unsigned long long)field("class", r, "max_cached"),
                (unsigned long long)field("class", r, "cached_blocks"));
    }
}

static const struct test_case CASES[] = {CASE(table), CASE(every_size), CASE(owners), CASE(many_slabs), CASE(show)};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
