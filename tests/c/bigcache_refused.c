/* BigCache while the system refuses memory.  Compiled together with _hakmem_backend.c in its debug variant. */
#include "common.h"

void *hak_malloc(size_t), *hak_alloc_at(size_t, uint64_t);
void hak_free(void *);
uint64_t hak_stat(const char *), hak_debug_fail(uint32_t calls, uint64_t nth, uint64_t count);
int hak_option_set(const char *, int64_t);

enum { MMAP = 1, MUNMAP = 8 };

static void ask(uint64_t site)
{
    void *p = hak_alloc_at(2 * MIB, site);
    CHECK(p, "site %llu", (unsigned long long)site);
    hak_free(p);
}

static void a_table_that_cannot_grow_stays_as_it_is(void)
{
    void *p[12];
    for (uint64_t i = 0; i < 12; i++) CHECK((p[i] = hak_alloc_at(2 * MIB, i + 1)));
    for (uint64_t i = 0; i < 12; i++) hak_free(p[i]);
    for (uint64_t site = 13; site <= 190; site++) ask(site);
    uint64_t kept = hak_stat("big_entries"), metadata = hak_stat("metadata_bytes");
    CHECK(kept >= 8 && hak_stat("big_buckets") == 256, "%llu kept", (unsigned long long)kept);
    hak_debug_fail(MMAP, 1, UINT64_MAX);
    for (uint64_t site = 191; site <= 230; site++) ask(site);
    CHECK(hak_debug_fail(0, 0, 0) == 1, "asked for more than once, or not at all");
    CHECK(hak_stat("big_buckets") == 256 && hak_stat("big_keys") == 230 && hak_stat("metadata_bytes") == metadata);
    check_laws();
    for (uint64_t site = 231; site <= 280; site++) ask(site);
    CHECK(hak_stat("big_buckets") == 512, "%llu keys", (unsigned long long)hak_stat("big_keys"));
    CHECK(hak_stat("metadata_bytes") > metadata);
    check_laws();
}

static void a_mapping_that_cannot_be_unmapped_is_kept_whatever_the_budget(void)
{
    hak_option_set("bigcache", 0);
    char *p = hak_malloc(80 * MIB), *q;
    memset(p, 1, MIB);
    hak_debug_fail(MUNMAP, 1, UINT64_MAX);
    hak_free(p);
    hak_debug_fail(0, 0, 0);
    CHECK(hak_stat("kept_whale_bytes") == 80 * MIB && hak_stat("big_entries") == 1);
    check_laws();
    q = hak_malloc(80 * MIB);
    CHECK(q == p && *q == 0 && hak_stat("whale_hits") == 1 && hak_stat("big_entries") == 0);
    hak_free(q);
    CHECK(hak_stat("kept_whale_bytes") == 0);
    check_laws();
}

static const struct test_case cases[] = {
    CASE(a_table_that_cannot_grow_stays_as_it_is),
    CASE(a_mapping_that_cannot_be_unmapped_is_kept_whatever_the_budget),
};

int main(int argc, char **argv) { return run_case(argc, argv, cases, COUNT_OF(cases)); }
