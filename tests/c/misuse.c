/* One fault a run. Before it, a line on stdout: the pointer that must be named, and what may be said of it, as
 * hak_error_text gives it; alternatives are separated by "|". The program must not reach the end. */
#include "common.h"

enum { FOREIGN = 1, INTERIOR = 2, ALREADY_FREE = 3 };

static const char *text(int code)
{
    const char *(*get)(int);
    *(void **)&get = dlsym(RTLD_DEFAULT, "hak_error_text");
    return get ? get(code) : "?";
}

static void expect(const void *p, int code, int other)
{
    dprintf(1, "0x%llx %s", (unsigned long long)(uintptr_t)p, text(code));
    if (other) dprintf(1, "|%s", text(other));
    dprintf(1, "\n");
}

static void free_(void *p) /* hides from the compiler what is freed */
{
    void *volatile hidden = p;
    free(hidden);
}

static void free_foreign(void *p)
{
    expect(p, FOREIGN, 0);
    free_(p);
}

/* Enough blocks of one size, freed by this thread, that whatever is in its stack is flushed. */
static void force_flush(size_t n)
{
    enum { MOST = 8000 };
    static void *p[MOST];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MOST; i++) p[i] = malloc(n);
        for (int i = 0; i < MOST; i++) free(p[i]);
    }
    malloc_trim(0);
}

/* ---- not ours */

static void foreign_stack(void)
{
    char here[64];
    free_foreign(here + 16);
}

static void foreign_static(void)
{
    static _Alignas(16) char there[64];
    free_foreign(there);
}

static void foreign_constant(void)
{
    free_foreign((void *)(uintptr_t)"text");
}

static void foreign_code(void)
{
    free_foreign((void *)(uintptr_t)foreign_stack);
}

static void foreign_mapping(void)
{
    free_foreign(own_pages(8 * MIB));
}

static void foreign_mapping_before_first_malloc(void)
{
    char *p = own_pages(200 * MIB);
    free_foreign(p + 64 * MIB);
}

static void wild_small(void)
{
    free_foreign((void *)0x10);
}

static void wild_minus_one(void)
{
    free_foreign((void *)-1);
}

static void wild_minus_sixteen(void)
{
    free_foreign((void *)-16);
}

static void wild_non_canonical(void)
{
    free_foreign((void *)0x8000000000000010);
}

static void wild_kernel(void)
{
    free_foreign((void *)0xffff800000000000);
}

static void wild_unmapped(void)
{
    char *p = own_pages(4 * MIB);
    munmap(p, 4 * MIB);
    free_foreign(p + 4096);
}

/* in or near the reserved range, where no block has ever been */
static void wild_in_range(void)
{
    char *p = malloc(64);
    free_foreign(p + 512 * MIB);
}

static void wild_in_range_next_unit(void)
{
    char *p = malloc(64);
    free_foreign(p + 40 * MIB + 64 * KIB);
}

static void realloc_foreign(void)
{
    static _Alignas(16) char there[64];
    void *volatile p = there;
    expect(there, FOREIGN, 0);
    free_(realloc(p, 100));
}

static void realloc_wild(void)
{
    void *volatile p = (void *)0x1230;
    expect((void *)0x1230, FOREIGN, 0);
    free_(realloc(p, 100));
}

static void realloc_foreign_to_zero(void)
{
    static _Alignas(16) char there[64];
    void *volatile p = there;
    expect(there, FOREIGN, 0);
    free_(realloc(p, 0));
}

/* ---- inside a block */

static void interior(size_t n, size_t at)
{
    char *p = malloc(n);
    expect(p + at, INTERIOR, 0);
    free_(p + at);
    force_flush(n);
}

static void interior_tiny(void) { interior(64, 16); }
static void interior_tiny_odd(void) { interior(64, 1); }
static void interior_l2(void) { interior(4096, 2048); }
static void interior_l25(void) { interior(256 * KIB, 128 * KIB); }
static void interior_2_mib(void) { interior(2 * MIB, 4096); }
static void interior_2_mib_unit(void) { interior(2 * MIB, MIB); }
static void interior_100_mib(void) { interior(100 * MIB, 4096); }
static void interior_100_mib_far(void) { interior(100 * MIB, 64 * MIB); }

static void realloc_interior_100_mib(void)
{
    char *p = malloc(100 * MIB);
    void *volatile inside = p + MIB;
    expect(inside, INTERIOR, 0);
    free_(realloc(inside, 100));
}

static void *free_in_thread(void *p)
{
    free_(p);
    return NULL;
}

static void in_thread(void *p)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, free_in_thread, p) == 0);
    CHECK(pthread_join(thread, NULL) == 0); /* its exit posts what it freed */
}

static void interior_from_another_thread(void)
{
    char *p = malloc(64);
    expect(p + 16, INTERIOR, 0);
    in_thread(p + 16);
    force_flush(64);
}

/* ---- already free */

static void twice(size_t n, int other)
{
    void *p = malloc(n);
    expect(p, ALREADY_FREE, other);
    free_(p);
    free_(p);
}

static void double_free_top_8(void) { twice(8, 0); }
static void double_free_top_64(void) { twice(64, 0); }
static void double_free_top_1_kib(void) { twice(KIB, 0); }
static void double_free_top_16_kib(void) { twice(16 * KIB, 0); }
static void double_free_256_kib(void) { twice(256 * KIB, 0); }
static void double_free_2_mib(void) { twice(2 * MIB, FOREIGN); }
static void double_free_100_mib(void) { twice(100 * MIB, FOREIGN); }
static void double_free_aligned(void)
{
    void *p = aligned_alloc(4096, 100);
    expect(p, ALREADY_FREE, 0);
    free_(p);
    free_(p);
}

static void below_the_top(size_t n)
{
    void *p = malloc(n), *q = malloc(n);
    expect(p, ALREADY_FREE, 0);
    free_(p);
    free_(q);
    free_(p);
    force_flush(n);
}

static void double_free_at_flush_64(void) { below_the_top(64); }
static void double_free_at_flush_16_kib(void) { below_the_top(16 * KIB); }

static void double_free_after_trim(void)
{
    void *p = malloc(64), *keeps_slab = malloc(64);
    expect(p, ALREADY_FREE, FOREIGN);
    free_(p);
    malloc_trim(0);
    free_(p);
    force_flush(64);
    free_(keeps_slab);
}

static void double_free_from_another_thread(void)
{
    void *p = malloc(64), *keeps_slab = malloc(64);
    expect(p, ALREADY_FREE, 0);
    in_thread(p);
    malloc_trim(0);
    in_thread(p);
    malloc_trim(0);
    force_flush(64);
    free_(keeps_slab);
}

static void double_free_by_realloc(void)
{
    void *p = malloc(300 * KIB);
    void *volatile again = p;
    expect(p, ALREADY_FREE, FOREIGN);
    free_(p);
    void *q = realloc(again, 3 * MIB);
    free_(again);
    malloc_trim(0);
    free_(q);
}

static const struct test_case CASES[] = {
    CASE(foreign_stack),
    CASE(foreign_static),
    CASE(foreign_constant),
    CASE(foreign_code),
    CASE(foreign_mapping),
    CASE(foreign_mapping_before_first_malloc),
    CASE(wild_small),
    CASE(wild_minus_one),
    CASE(wild_minus_sixteen),
    CASE(wild_non_canonical),
    CASE(wild_kernel),
    CASE(wild_unmapped),
    CASE(wild_in_range),
    CASE(wild_in_range_next_unit),
    CASE(realloc_foreign),
    CASE(realloc_wild),
    CASE(realloc_foreign_to_zero),
    CASE(interior_tiny),
    CASE(interior_tiny_odd),
    CASE(interior_l2),
    CASE(interior_l25),
    CASE(interior_2_mib),
    CASE(interior_2_mib_unit),
    CASE(interior_100_mib),
    CASE(interior_100_mib_far),
    CASE(realloc_interior_100_mib),
    CASE(interior_from_another_thread),
    CASE(double_free_top_8),
    CASE(double_free_top_64),
    CASE(double_free_top_1_kib),
    CASE(double_free_top_16_kib),
    CASE(double_free_256_kib),
    CASE(double_free_2_mib),
    CASE(double_free_100_mib),
    CASE(double_free_aligned),
    CASE(double_free_at_flush_64),
    CASE(double_free_at_flush_16_kib),
    CASE(double_free_after_trim),
    CASE(double_free_from_another_thread),
    CASE(double_free_by_realloc),
};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
