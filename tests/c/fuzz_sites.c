/* For fuzzers: what hakmem makes of texts for rules, and how far it looks for a site. Holds _hakmem_backend.c itself,
 * whose calls of write come here. For libFuzzer with -DFUZZ_LIBFUZZER=1, else with a main of its own: fuzz_sites SEED
 * COUNT, or fuzz_sites full. Compiled with -Dwrite=fuzz_write -DHAK_NO_OVERRIDE=1. */
#include "../../_hakmem_backend.c"

static struct {
    char text[1 << 20];
    size_t length;
} said;

ssize_t write(int fd, const void *text, size_t n) /* hakmem's; see above */
{
    if (fd != STDERR_FILENO || said.length + n > sizeof said.text) __builtin_trap();
    memcpy(said.text + said.length, text, n);
    said.length += n;
    return (ssize_t)n;
}

static __attribute__((noreturn)) void failed(const char *what, int line)
{
    fprintf(stderr, "fuzz_sites.c:%d: %s\n", line, what);
    abort();
}
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) failed(#condition, __LINE__);                                                                \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

/* What the library says of a rule, written as a rule, means the same rule. */
static void check_round_trip(const hak_rule_row_t *r)
{
    char text[HAK_SITE_WHERE + 100];
    hak_rule_t again = {.id = 0};
    int n = snprintf(text, sizeof text, "%s:", r->where);
    if (*r->lifetime) n += snprintf(text + n, sizeof text - (size_t)n, "lifetime=%s,", r->lifetime);
    if (!r->cached) n += snprintf(text + n, sizeof text - (size_t)n, "nocache,");
    if (r->retain >= 0) n += snprintf(text + n, sizeof text - (size_t)n, "retain=%lld,", (long long)r->retain);
    if (r->shard >= 0) n += snprintf(text + n, sizeof text - (size_t)n, "shard=%lld,", (long long)r->shard);
    CHECK(text[n - 1] == ','); /* a rule says something */
    CHECK(hak_rule_parse(&again, text, text + n - 1));
    CHECK(strcmp(again.where, r->where) == 0);
    CHECK((int64_t)hak_policy_keep(again.policy) - 1 == r->retain && (int64_t)hak_policy_shard(again.policy) - 1 == r->shard);
    CHECK(r->retain <= HAK_RETAIN_MOST && r->shard <= HAK_SHARD_MOST);
    CHECK(strcmp(hak_group_names[hak_policy_group(again.policy)], r->lifetime) == 0);
    CHECK(!(again.policy & HAK_POLICY_UNCACHED) == (r->cached != 0));
    for (const char *at = r->where; *at; at++) CHECK(*at > ' ' && *at <= '~' && *at != ':' && *at != ';');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static hak_rule_row_t rows[HAK_SITE_RULES];
    if (size < 1) return 0;
    hak_boot_init();
    hak_option.sites = data[0] & 1;
    bool say = data[0] & 2;
    char *text = malloc(size); /* a string that ends where its memory ends */
    CHECK(text);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    said.length = 0;

    int before = hak_rule_table(NULL, sizeof *rows, 0), code = hak_rules_add(text, say);
    CHECK(code == HAK_ERR_OK || (!say && (code == HAK_ERR_RULE || code == HAK_ERR_NO_SITES || code == HAK_ERR_MANY_RULES)));
    CHECK(code != HAK_ERR_NO_SITES || !hak_option.sites);
    if (!say) CHECK(said.length == 0);
    for (size_t i = 0; i < said.length;) { /* whole lines, each of its own rule */
        static const char begins[] = "hakmem: HAKMEM_SITE_RULES: ";
        const char *end = memchr(said.text + i, '\n', said.length - i);
        CHECK(end && said.length - i > sizeof begins && memcmp(said.text + i, begins, sizeof begins - 1) == 0);
        for (; said.text + i < end; i++) CHECK(said.text[i] >= ' ' && said.text[i] <= '~');
        i++;
    }
    int count = hak_rule_table(rows, sizeof *rows, HAK_SITE_RULES);
    CHECK(count >= 0 && count <= HAK_SITE_RULES && hak_sites.rules <= HAK_SITE_RULES);
    CHECK(code == HAK_ERR_OK || count >= 0);
    for (int i = 0; i < count; i++)
        if (i >= before || data[0] & 4) check_round_trip(&rows[i]);
    for (uint32_t i = 0; i < hak_sites.rules; i++) { /* a site with a number is found, and has what its rule says */
        const hak_rule_t *r = &hak_sites.rule[i];
        if (r->kind != HAK_RULE_NUMBER) continue;
        uint32_t n = hak_site_find(r->id, false);
        CHECK(n && hak_policy_class(hak_site_policy(n), 7) == hak_policy_class(r->policy, 7));
    }
    hak_option.sites = 1;
    uint32_t here = hak_site_meet((uintptr_t)__builtin_return_address(0), true);
    CHECK(here);
    hak_site_policy(here);
    free(text);
    return 0;
}

#ifndef FUZZ_LIBFUZZER
static uint64_t random_state;

static unsigned next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33);
}

/* Every row is taken: how far from its hash a site stands, and one that is not there is missed. */
static int fill(void)
{
    uint64_t sum = 0, missed = 0, longest = 0, farthest = 0;
    hak_boot_init();
    for (uint64_t i = 1; i < HAK_SITES_MAX; i++)
        CHECK(hak_site_meet(i % 2 ? i : i << 12, i % 2) == i); /* code close together, as it is, and numbers in steps */
    CHECK(hak_site_meet(1u << 31, false) == 0);
    for (uint32_t i = 0; i < HAK_SITE_BUCKETS; i++) {
        uint32_t n = hak_sites.bucket[i];
        if (!n) continue;
        CHECK(hak_site_find(hak_sites.row[n].id, hak_sites.row[n].code) == n);
        uint64_t steps = (i - hak_site_hash(hak_sites.row[n].id)) % HAK_SITE_BUCKETS;
        sum += steps;
        if (steps > longest) longest = steps;
    }
    for (uint32_t i = 0; i < HAK_SITE_BUCKETS; i++) {
        uint64_t steps = 0;
        while (hak_sites.bucket[(i + steps) % HAK_SITE_BUCKETS]) steps++;
        missed += steps;
        if (steps > farthest) farthest = steps;
    }
    printf("found after %.2f steps, %llu at most; missed after %.2f, %llu at most\n", (double)sum / HAK_SITES_MAX,
           (unsigned long long)longest, (double)missed / HAK_SITE_BUCKETS, (unsigned long long)farthest);
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const pieces[] = {"42", "0", "0x1f", "18446744073709551615", "18446744073709551616", "007", ":",
        ":", ":", ";", ";", ",", "=", "lifetime=long", "lifetime=short", "lifetime=", "retain=0", "retain=3600000",
        "retain=3600001", "retain=", "shard=", "shard=65535", "shard=3", "nocache", "none", "name", "_ZN3fooEv", "lib.so",
        "+0x", "+0x1a2b", "+", "libstdc++.so.6", " ", "\n", "\033[2J", "\xff", "-1", "9", "a", ":nocache", "1:", "f:none"};
    if (argc == 2 && strcmp(argv[1], "full") == 0) return fill();
    CHECK(argc == 3);
    uint64_t seed = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10), taken = 0;
    uint8_t data[4096];
    for (uint64_t i = seed; i < seed + count; i++) {
        size_t n = 1, parts;
        random_state = i * 0x9e3779b97f4a7c15u;
        next_random();
        data[0] = (uint8_t)next_random();
        parts = next_random() % 60 ? next_random() % 9 : next_random() % 300;
        for (size_t k = 0; k < parts && n < sizeof data - 64; k++) {
            const char *piece = pieces[next_random() % (sizeof pieces / sizeof *pieces)];
            if (next_random() % 16 == 0) data[n++] = (uint8_t)next_random();
            memcpy(data + n, piece, strlen(piece));
            n += strlen(piece);
        }
        LLVMFuzzerTestOneInput(data, n);
        taken = hak_sites.rules;
    }
    printf("%llu inputs, %llu rules\n", (unsigned long long)count, (unsigned long long)taken);
    return 0;
}
#endif
