/* The allocation functions of libc and their edge cases; one case a run. */
#include "common.h"

void *pvalloc(size_t);

static const size_t TIERS[] = {1,         7,         8,         9,          16,         24,         100,      128,
                               1000,      1024,      1025,      4096,       5000,       32 * KIB,   40000,    64 * KIB,
                               65 * KIB,  256 * KIB, MIB,       MIB + 1,    2 * MIB,    5 * MIB,    33 * MIB, 64 * MIB,
                               65 * MIB,  200 * MIB};
static const size_t TOO_BIG[] = {SIZE_MAX, SIZE_MAX - 15, SIZE_MAX - 4096, SIZE_MAX - 65536, (size_t)PTRDIFF_MAX + 1};

static volatile size_t zero = 0; /* so that no compiler sees the argument */

static void check_aligned(const void *p, size_t n)
{
    CHECK(((uintptr_t)p & (n <= 8 ? 7 : 15)) == 0, "%p for %zu", p, n);
}

static void check_writable(void *p, size_t n)
{
    size_t usable = malloc_usable_size(p);
    CHECK(usable >= n, "%zu for %zu", usable, n);
    pattern_write(p, usable, (uint32_t)n);
    size_t wrong = pattern_wrong(p, usable, (uint32_t)n, usable);
    CHECK(wrong == SIZE_MAX, "byte %zu of %zu", wrong, usable);
}

static void size_zero(void)
{
    enum { N = 1000 };
    static void *p[6 * N];
    for (size_t i = 0; i < N; i++) {
        p[6 * i] = malloc(zero);
        p[6 * i + 1] = calloc(zero, 8);
        p[6 * i + 2] = calloc(8, zero);
        p[6 * i + 3] = realloc(NULL, zero);
        p[6 * i + 4] = aligned_alloc(64, zero);
        CHECK(posix_memalign(&p[6 * i + 5], 64, zero) == 0);
    }
    for (size_t i = 0; i < 6 * N; i++) {
        CHECK(p[i], "block %zu", i);
        for (size_t j = i + 1; i < 300 && j < 6 * N; j++) CHECK(p[i] != p[j], "%zu and %zu", i, j);
    }
    for (size_t i = 0; i < 6 * N; i++) free(p[i]);
}

#define REFUSED(expression)                                                                                            \
    do {                                                                                                               \
        errno = 0;                                                                                                     \
        void *refused = (expression);                                                                                  \
        CHECK(refused == NULL, "%s gave %p", #expression, refused);                                                    \
        CHECK(errno == ENOMEM, "%s: errno %d", #expression, errno);                                                    \
    } while (0)

static void too_big(void)
{
    for (size_t i = 0; i < COUNT_OF(TOO_BIG); i++) {
        size_t n = TOO_BIG[i] - zero;
        void *unchanged = &n;
        REFUSED(malloc(n));
        REFUSED(calloc(1, n));
        REFUSED(calloc(n, 1));
        REFUSED(realloc(NULL, n));
        REFUSED(reallocarray(NULL, 1, n));
        REFUSED(aligned_alloc(16, n));
        REFUSED(aligned_alloc(MIB, n));
        REFUSED(memalign(4096, n));
        REFUSED(valloc(n));
        REFUSED(pvalloc(n));
        CHECK(posix_memalign(&unchanged, 64, n) == ENOMEM);
        CHECK(unchanged == &n, "posix_memalign wrote its result");
        for (size_t t = 0; t < COUNT_OF(TIERS); t += 3) {
            char *p = malloc(TIERS[t]);
            pattern_write(p, TIERS[t], 9);
            REFUSED(realloc(p, n));
            CHECK(pattern_wrong(p, TIERS[t], 9, TIERS[t]) == SIZE_MAX, "a failed realloc touched the block");
            free(p);
        }
    }
    void *p = malloc(100);
    CHECK(p);
    free(p);
}

static void overflow(void)
{
    static const struct {
        size_t n, size;
    } products[] = {{SIZE_MAX, 2},
                    {2, SIZE_MAX},
                    {SIZE_MAX / 2 + 1, 2},
                    {SIZE_MAX / 16 + 1, 16},
                    {(size_t)1 << 32, (size_t)1 << 32},
                    {((size_t)1 << 32) + 1, ((size_t)1 << 32) + 1},
                    {SIZE_MAX / 3 + 1, 3},
                    {SIZE_MAX, SIZE_MAX}};
    for (size_t i = 0; i < COUNT_OF(products); i++) {
        REFUSED(calloc(products[i].n, products[i].size));
        REFUSED(reallocarray(NULL, products[i].n, products[i].size));
        char *p = malloc(50);
        memset(p, 7, 50);
        REFUSED(reallocarray(p, products[i].n, products[i].size));
        for (int j = 0; j < 50; j++) CHECK(p[j] == 7);
        free(p);
    }
    int *p = reallocarray(NULL, 10, sizeof *p);
    for (int i = 0; i < 10; i++) p[i] = i;
    p = reallocarray(p, 100000, sizeof *p);
    for (int i = 0; i < 10; i++) CHECK(p[i] == i);
    check_writable(p, 100000 * sizeof *p);
    free(p);
}

static void alignments(void)
{
    static const size_t sizes[] = {1, 8, 40, 100, 1024, 5000, 65536, 100000, MIB, 3 * MIB, 70 * MIB};
    for (size_t align = 1; align <= 64 * MIB; align *= 2) {
        for (size_t s = 0; s < COUNT_OF(sizes); s++) {
            void *p[4] = {0};
            if (sizes[s] > 64 * MIB && align != 16 && align != 4096 && align != 64 * MIB) continue;
            p[0] = memalign(align, sizes[s]);
            p[1] = aligned_alloc(align, sizes[s]);
            p[2] = aligned_alloc(align, (sizes[s] + align - 1) & ~(align - 1));
            if (align >= sizeof(void *)) CHECK(posix_memalign(&p[3], align, sizes[s]) == 0);
            for (size_t i = 0; i < 4; i++) {
                if (i == 3 && align < sizeof(void *)) continue;
                CHECK(p[i], "alignment %zu, size %zu", align, sizes[s]);
                CHECK(((uintptr_t)p[i] & (align - 1)) == 0, "%p: alignment %zu, size %zu", p[i], align, sizes[s]);
                CHECK(malloc_usable_size(p[i]) >= sizes[s], "%zu", malloc_usable_size(p[i]));
                pattern_write(p[i], sizes[s], (uint32_t)i);
            }
            for (size_t i = 0; i < 4; i++)
                CHECK(!p[i] || pattern_wrong(p[i], sizes[s], (uint32_t)i, sizes[s]) == SIZE_MAX,
                      "alignment %zu, size %zu, block %zu", align, sizes[s], i);
            /* an aligned block may be grown and shrunk like any other */
            if (sizes[s] <= MIB) {
                p[0] = realloc(p[0], sizes[s] * 3);
                CHECK(p[0] && pattern_wrong(p[0], sizes[s], 0, sizes[s]) == SIZE_MAX, "alignment %zu", align);
                p[1] = realloc(p[1], sizes[s] / 2 + 1);
                CHECK(p[1] && pattern_wrong(p[1], sizes[s], 1, sizes[s] / 2 + 1) == SIZE_MAX, "alignment %zu", align);
            }
            for (size_t i = 0; i < 4; i++) free(p[i]);
        }
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        void *v = valloc(sizes[s]), *pv = pvalloc(sizes[s]);
        CHECK(v && ((uintptr_t)v & (page - 1)) == 0, "%p", v);
        CHECK(pv && ((uintptr_t)pv & (page - 1)) == 0, "%p", pv);
        CHECK(malloc_usable_size(pv) >= ((sizes[s] + page - 1) & ~(page - 1)), "pvalloc rounds to pages");
        free(v);
        free(pv);
    }
}

static void alignment_refused(void)
{
    static const size_t odd[] = {0, 3, 5, 6, 7, 9, 12, 24, 48, 100, 4095, 4097, 3 * MIB, SIZE_MAX, SIZE_MAX - 1};
    for (size_t i = 0; i < COUNT_OF(odd); i++) {
        void *p = &p;
        CHECK(posix_memalign(&p, odd[i], 100) == EINVAL, "%zu", odd[i]);
        CHECK(p == &p, "posix_memalign wrote its result");
        /* glibc before 2.38 rounds up what it later refuses: both are correct, a block that is not aligned is not */
        size_t up = 1;
        while (up < odd[i] && up <= SIZE_MAX / 2) up *= 2;
        errno = 0;
        p = aligned_alloc(odd[i] - zero, 100);
        CHECK(p ? ((uintptr_t)p & (up - 1)) == 0 : errno == EINVAL || errno == ENOMEM, "%zu: %p, errno %d", odd[i], p,
              errno);
        free(p);
        errno = 0;
        p = memalign(odd[i] - zero, 100);
        CHECK(p ? ((uintptr_t)p & (up - 1)) == 0 : errno == EINVAL || errno == ENOMEM, "%zu: %p, errno %d", odd[i], p,
              errno);
        free(p);
    }
    for (size_t align = 1; align < sizeof(void *); align *= 2) {
        void *p = &p;
        CHECK(posix_memalign(&p, align, 100) == EINVAL, "%zu", align);
    }
    for (int shift = 40; shift < 64; shift++) { /* more than the address space has */
        void *p = NULL;
        int code = posix_memalign(&p, (size_t)1 << shift, 100);
        CHECK(code == ENOMEM || (code == 0 && ((uintptr_t)p & (((size_t)1 << shift) - 1)) == 0), "2^%d: %d", shift,
              code);
        if (code == 0) free(p);
    }
}

static void errno_kept(void)
{
    enum { N = 40 };
    void *p[N];
    errno = 12345;
    free(NULL);
    CHECK(errno == 12345);
    for (size_t t = 0; t < COUNT_OF(TIERS); t++) {
        size_t count = TIERS[t] <= 5 * MIB ? N : 3;
        for (int round = 0; round < 3; round++) {
            for (size_t i = 0; i < count; i++) p[i] = malloc(TIERS[t]);
            errno = 12345;
            for (size_t i = 0; i < count; i++) free(p[i]);
            CHECK(errno == 12345, "free of %zu bytes set errno to %d", TIERS[t], errno);
        }
    }
    errno = 12345;
    for (size_t t = 0; t < COUNT_OF(TIERS); t++) free(memalign(1024, TIERS[t]));
    CHECK(errno == 12345, "%d", errno);
}

static void realloc_edges(void)
{
    for (size_t t = 0; t < COUNT_OF(TIERS); t++) {
        void *p = malloc(TIERS[t]);
        CHECK(p);
        p = realloc(p, zero);
        CHECK(p == NULL, "realloc(p, 0) of %zu gave %p", TIERS[t], p);
        p = realloc(NULL, TIERS[t]);
        CHECK(p);
        check_aligned(p, TIERS[t]);
        void *same = realloc(p, TIERS[t]);
        CHECK(same);
        free(same);
    }
    /* it freed: 2,000 times 1 MiB would show */
    size_t before = rss_bytes();
    for (int i = 0; i < 2000; i++) {
        char *p = malloc(MIB);
        memset(p, 1, MIB);
        CHECK(realloc(p, zero) == NULL);
    }
    CHECK(rss_bytes() < before + 200 * MIB, "realloc(p, 0) did not free");
}

static void realloc_contents(void)
{
    /* from every tier to every other, then a walk */
    for (size_t a = 0; a < COUNT_OF(TIERS); a++) {
        for (size_t b = 0; b < COUNT_OF(TIERS); b++) {
            if (TIERS[a] + TIERS[b] > 30 * MIB && (a + b) % 5 != 0) continue; /* big copies take their time */
            size_t both = TIERS[a] < TIERS[b] ? TIERS[a] : TIERS[b];
            unsigned char *p = malloc(TIERS[a]);
            pattern_write(p, TIERS[a], (uint32_t)a);
            p = realloc(p, TIERS[b]);
            CHECK(p, "%zu to %zu", TIERS[a], TIERS[b]);
            check_aligned(p, TIERS[b]);
            size_t wrong = pattern_wrong(p, TIERS[a], (uint32_t)a, both);
            CHECK(wrong == SIZE_MAX, "%zu to %zu: byte %zu", TIERS[a], TIERS[b], wrong);
            pattern_write(p, TIERS[b], (uint32_t)b);
            free(p);
        }
    }
    uint64_t seed = 5;
    size_t n = 1;
    unsigned char *p = malloc(n);
    pattern_write(p, n, 1);
    for (int i = 0; i < 3000; i++) {
        size_t m = i % 50 == 49 ? random_between(&seed, 1, 100) : n + n / 4 + random_between(&seed, 0, 30);
        if (m > 200 * MIB) m = random_between(&seed, 1, 100 * KIB);
        p = realloc(p, m);
        CHECK(p);
        size_t wrong = pattern_wrong(p, n, (uint32_t)i + 1, n < m ? n : m);
        CHECK(wrong == SIZE_MAX, "step %d, %zu to %zu: byte %zu", i, n, m, wrong);
        n = m;
        pattern_write(p, n, (uint32_t)i + 2);
    }
    free(p);
    /* two blocks that grow in turn, so that neither can stay where it is */
    unsigned char *q[2] = {malloc(10), malloc(10)};
    size_t size[2] = {10, 10};
    pattern_write(q[0], 10, 0);
    pattern_write(q[1], 10, 1);
    for (int i = 0; size[0] < 60 * MIB; i++) {
        size_t m = size[i & 1] * 5 / 4 + 8;
        q[i & 1] = realloc(q[i & 1], m);
        CHECK(pattern_wrong(q[i & 1], size[i & 1], (uint32_t)i & 1, size[i & 1]) == SIZE_MAX, "%zu", m);
        size[i & 1] = m;
        pattern_write(q[i & 1], m, (uint32_t)i & 1);
    }
    free(q[0]);
    free(q[1]);
}

static void alignment_of_blocks(void)
{
    static void *kept[40000];
    for (size_t n = 0; n < COUNT_OF(kept); n++) {
        kept[n] = malloc(n);
        check_aligned(kept[n], n);
        void *p = calloc(1, n);
        check_aligned(p, n);
        p = realloc(p, n + 9);
        check_aligned(p, n + 9);
        free(p);
        if (n >= 2000) free(kept[n - 1000]);
    }
    for (size_t n = 1 * MIB; n < 8 * MIB; n += 123457) {
        void *p = malloc(n);
        check_aligned(p, n);
        free(p);
    }
}

static void usable(void)
{
    static void *neighbours[64];
    CHECK(malloc_usable_size(NULL) == 0);
    for (size_t n = 0; n <= 3000; n++) {
        void **p = &neighbours[n % COUNT_OF(neighbours)];
        free(*p);
        *p = malloc(n);
        check_writable(*p, n);
    }
    for (size_t i = 0; i < COUNT_OF(neighbours); i++) free(neighbours[i]);
    for (size_t t = 0; t < COUNT_OF(TIERS); t++) {
        for (size_t n = TIERS[t] - 1; n <= TIERS[t] + 1; n++) {
            void *a = malloc(n), *b = malloc(n);
            check_writable(a, n);
            check_writable(b, n);
            size_t all = malloc_usable_size(a);
            CHECK(pattern_wrong(a, all, (uint32_t)n, all) == SIZE_MAX, "two blocks of %zu overlap", n);
            /* growing to what is there already need not move, and must not lose anything */
            a = realloc(a, all);
            CHECK(pattern_wrong(a, all, (uint32_t)n, all) == SIZE_MAX, "%zu", n);
            free(a);
            free(b);
        }
    }
}

static void calloc_is_zero(size_t n, int count)
{
    static void *p[64];
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < count; i++) {
            p[i] = malloc(n);
            CHECK(p[i], "%zu", n);
            memset(p[i], 0xa5, malloc_usable_size(p[i]));
        }
        for (int i = 0; i < count; i++) free(p[i]);
        for (int i = 0; i < count; i++) {
            p[i] = i & 1 ? calloc(n, 1) : calloc(1, n);
            CHECK(p[i] && is_zero(p[i], n), "%zu bytes, block %d", n, i);
            check_aligned(p[i], n);
            memset(p[i], 0x5a, n);
        }
        for (int i = count; i-- > 0;) free(p[i]);
    }
}

static void calloc_zero(void)
{
    for (size_t n = 1; n <= 4200; n += n < 1100 ? 1 : 13) calloc_is_zero(n, 8);
    for (size_t n = 4096; n <= 40 * KIB; n += 1021) calloc_is_zero(n, 8);
    for (size_t n = 40 * KIB; n <= 1100 * KIB; n += 37777) calloc_is_zero(n, 6);
    for (size_t t = 0; t < COUNT_OF(TIERS); t++)
        for (size_t n = TIERS[t] - 1; n <= TIERS[t] + 1; n += TIERS[t] < 10 * MIB ? 1 : 2)
            calloc_is_zero(n, n < MIB ? 20 : n < 10 * MIB ? 4 : n < 70 * MIB ? 2 : 1);
    /* dirty blocks of one size, zeroed ones of others, cut from the same memory */
    uint64_t seed = 3;
    for (int i = 0; i < 80; i++) {
        void *p[8];
        for (int j = 0; j < 8; j++) {
            p[j] = malloc(random_between(&seed, 1, 3 * MIB));
            memset(p[j], 0xff, malloc_usable_size(p[j]));
        }
        if (i % 3 == 0) p[0] = realloc(p[0], 4 * MIB);
        for (int j = 0; j < 8; j++) free(p[j]);
        if (i % 20 == 0) malloc_trim(0);
        for (int j = 0; j < 8; j++) {
            size_t n = random_between(&seed, 1, 3 * MIB);
            p[j] = calloc(1, n);
            CHECK(is_zero(p[j], n), "%zu", n);
        }
        for (int j = 0; j < 8; j++) free(p[j]);
    }
}

static void statistics_calls(void)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    enum { N = 20000 };
    static void *p[N];
    struct mallinfo2 before = mallinfo2();
    for (int i = 0; i < N; i++) p[i] = malloc(1000);
    struct mallinfo2 after = mallinfo2();
    size_t grown = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
    CHECK(grown >= 20000000 && grown < 30000000, "mallinfo2 grew by %zu", grown);
    struct mallinfo narrow = mallinfo();
    CHECK((size_t)narrow.uordblks + (size_t)narrow.hblkhd == after.uordblks + after.hblkhd, "%d %d", narrow.uordblks,
          narrow.hblkhd);
    for (int i = 0; i < N; i++) free(p[i]);
    struct mallinfo2 end = mallinfo2();
    CHECK(end.uordblks + end.hblkhd < after.uordblks + after.hblkhd - 19000000, "mallinfo2 did not shrink");
#pragma GCC diagnostic pop
    int trimmed = malloc_trim(0);
    CHECK(trimmed == 0 || trimmed == 1, "%d", trimmed);
    int option = mallopt(M_MMAP_THRESHOLD, 1 << 20);
    CHECK(option == 0 || option == 1, "%d", option);
    mallopt(M_ARENA_MAX, 1);
    mallopt(-9999, 0);

    FILE *f = tmpfile();
    CHECK(f, "errno %d", errno);
    CHECK(malloc_info(0, f) == 0);
    rewind(f);
    char start[8] = "";
    CHECK(fread(start, 1, 7, f) == 7, "malloc_info wrote nothing");
    CHECK(strcmp(start, "<malloc") == 0, "malloc_info starts with %s", start);
    fclose(f);
    malloc_stats(); /* on stderr; the test looks */
}

static void trim_gives_back(void)
{
    enum { N = 100000 };
    static char *p[N];
    for (int i = 0; i < N; i++) memset(p[i] = malloc(1500), 1, 1500);
    for (int i = 0; i < N; i++) free(p[i]);
    malloc_trim(0);
    CHECK(rss_bytes() < 30 * MIB, "%zu KiB after malloc_trim", rss_bytes() / KIB);
    /* and what it gave back works */
    for (int i = 0; i < N; i++) memset(p[i] = malloc(1500), 1, 1500);
    for (int i = 0; i < N; i++) free(p[i]);
}

/* Under preload, every name comes from one library: an allocation by one malloc and a free by another is fatal. */
static void one_library(void)
{
    static const char *const names[] = {
        "malloc", "free", "calloc", "realloc", "reallocarray", "posix_memalign", "aligned_alloc", "memalign", "valloc",
        "pvalloc", "malloc_usable_size", "malloc_trim", "mallinfo", "mallinfo2", "mallopt", "malloc_stats",
        "malloc_info", "cfree",
        /* C++: new, new[], nothrow, aligned, both; delete, delete[], the same, and sized */
        "_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZnamRKSt9nothrow_t", "_ZnwmSt11align_val_t", "_ZnamSt11align_val_t",
        "_ZnwmSt11align_val_tRKSt9nothrow_t", "_ZnamSt11align_val_tRKSt9nothrow_t", "_ZdlPv", "_ZdaPv",
        "_ZdlPvRKSt9nothrow_t", "_ZdaPvRKSt9nothrow_t", "_ZdlPvm", "_ZdaPvm", "_ZdlPvSt11align_val_t",
        "_ZdaPvSt11align_val_t", "_ZdlPvmSt11align_val_t", "_ZdaPvmSt11align_val_t",
        "_ZdlPvSt11align_val_tRKSt9nothrow_t", "_ZdaPvSt11align_val_tRKSt9nothrow_t"};
    if (!about()) return;
    Dl_info ours, theirs;
    CHECK(dladdr(hak("hak_malloc"), &ours));
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        void *p = dlsym(RTLD_DEFAULT, names[i]);
        CHECK(p && dladdr(p, &theirs), "%s is not exported", names[i]);
        CHECK(strcmp(ours.dli_fname, theirs.dli_fname) == 0, "%s comes from %s", names[i], theirs.dli_fname);
    }
}

static void cfree_frees(void)
{
    void (*cfree_)(void *);
    *(void **)&cfree_ = dlsym(RTLD_DEFAULT, "cfree");
    if (!cfree_) return;
    for (int i = 0; i < 1000; i++) {
        char *p = malloc(100000);
        memset(p, 1, 100000);
        cfree_(p);
    }
    cfree_(NULL);
    CHECK(rss_bytes() < 60 * MIB, "cfree did not free");
}

static const struct test_case CASES[] = {
    CASE(size_zero),       CASE(too_big),       CASE(overflow),         CASE(alignments),          CASE(alignment_refused),
    CASE(errno_kept),      CASE(realloc_edges), CASE(realloc_contents), CASE(alignment_of_blocks), CASE(usable),
    CASE(calloc_zero),     CASE(statistics_calls), CASE(trim_gives_back), CASE(one_library),       CASE(cfree_frees),
};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
