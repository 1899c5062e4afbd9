/* What every test program shares: a check that says where it failed, a table of cases run by name, a generator,
 * patterns, RSS, and hakmem's self-description when it is loaded (without it the programs run on any malloc). */
#ifndef TESTS_COMMON_H
#define TESTS_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "about.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define COUNT_OF(a) (sizeof(a) / sizeof *(a))
#define UNUSED __attribute__((unused))

/* ---- checks: dprintf and _exit, because a failing allocator must still be able to say so */

static UNUSED __attribute__((format(printf, 3, 4), noreturn)) void fail(const char *what, int line, const char *format,
                                                                        ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    dprintf(2, "line %d: %s: %s\n", line, what, text);
    _exit(1);
}

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) fail(#condition, __LINE__, " " __VA_ARGS__);                                                 \
    } while (0)

/* ---- cases */

struct test_case {
    const char *name;
    void (*run)(void);
};
#define CASE(function) {#function, function}

static UNUSED int run_case(int argc, char **argv, const struct test_case *cases, size_t count)
{
    for (size_t i = 0; argc > 1 && i < count; i++) {
        if (strcmp(argv[1], cases[i].name) == 0) {
            cases[i].run();
            return 0;
        }
    }
    fail("case", 0, "no case of this name: %s", argc > 1 ? argv[1] : "(none)");
}

/* ---- numbers and patterns */

static UNUSED uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static UNUSED size_t random_between(uint64_t *state, size_t low, size_t high)
{
    return low + (size_t)(next_random(state) % (high - low + 1));
}

static inline unsigned char pattern_at(uint32_t key, size_t i)
{
    return (unsigned char)((key >> (8 * (i & 3))) + i + (i >> 8) * 7 + (i >> 16) * 13);
}

/* Every byte of the first and last 32 KiB, then 16 bytes of each page: what lies between is as likely to be right. */
#define DENSE (32 * KIB)

static inline size_t pattern_next(size_t i, size_t n)
{
    i++;
    if (i < DENSE || i + DENSE >= n || (i & 4095) < 16) return i;
    size_t page = (i | 4095) + 1;
    return page + DENSE < n ? page : n - DENSE;
}

static UNUSED void pattern_write(void *block, size_t n, uint32_t key)
{
    unsigned char *p = block;
    for (size_t i = 0; i < n; i = pattern_next(i, n)) p[i] = pattern_at(key, i);
}

/* Of a block that was written with n bytes, the ones below limit. Returns the first wrong offset, or SIZE_MAX. */
static UNUSED size_t pattern_wrong(const void *block, size_t n, uint32_t key, size_t limit)
{
    const unsigned char *p = block;
    for (size_t i = 0; i < n && i < limit; i = pattern_next(i, n))
        if (p[i] != pattern_at(key, i)) return i;
    return SIZE_MAX;
}

static UNUSED int is_zero(const void *block, size_t n)
{
    const unsigned char *p = block;
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* Memory that no allocator under test has a hand in. */
static UNUSED void *own_pages(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED, "errno %d", errno);
    return p;
}

/* ---- RSS: smaps_rollup is exact, statm may lag by a batch per CPU */

static UNUSED size_t rss_bytes(void)
{
    char text[8192];
    int fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t got = read(fd, text, sizeof text - 1);
        close(fd);
        if (got > 0) {
            text[got] = 0;
            const char *at = strstr(text, "\nRss:");
            if (at) return strtoull(at + 5, NULL, 10) * KIB;
        }
    }
    fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, "no /proc");
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    CHECK(got > 0, "no statm");
    text[got] = 0;
    char *end;
    strtoull(text, &end, 10);
    return strtoull(end, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE);
}

static UNUSED void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) {}
}

/* ---- hakmem's self-description */

static UNUSED const struct hak_about *about(void)
{
    static const struct hak_about *known;
    static int asked;
    if (!asked) {
        const struct hak_about *(*get)(void);
        *(void **)&get = dlsym(RTLD_DEFAULT, "hak_about");
        known = get ? get() : NULL;
        asked = 1;
    }
    return known;
}

/* A function of hakmem; asked for before a quiet stretch is counted, as dlsym itself may allocate. */
static UNUSED void *hak(const char *name)
{
    void *p = dlsym(RTLD_DEFAULT, name);
    CHECK(p, "%s is not exported", name);
    return p;
}

static UNUSED const struct hak_record *record(const char *name)
{
    const struct hak_record *found = about_record(about(), name);
    if (!found) fail("record", 0, "no record %s", name);
    return found;
}

static UNUSED const void *field_at(const char *of, const void *row, const char *name, char *kind)
{
    const struct hak_record *r = record(of);
    uint32_t i = about_field(r, name);
    if (i < r->nfields) {
        *kind = r->kinds[i];
        return (const char *)row + r->fields[i].offset;
    }
    fail("field", 0, "no field %s in %s", name, of);
}

static UNUSED uint64_t field(const char *of, const void *row, const char *name)
{
    char kind;
    const void *at = field_at(of, row, name, &kind);
    uint64_t wide = 0;
    uint32_t narrow = 0;
    if (kind == 'I') {
        memcpy(&narrow, at, sizeof narrow);
        return narrow;
    }
    CHECK(kind == 'Q' || kind == 'q', "%s.%s is of kind %c", of, name, kind);
    memcpy(&wide, at, sizeof wide);
    return wide;
}

static UNUSED const char *text_field(const char *of, const void *row, const char *name)
{
    char kind;
    const void *at = field_at(of, row, name, &kind);
    CHECK(kind == 'z', "%s.%s is of kind %c", of, name, kind);
    const char *text;
    memcpy(&text, at, sizeof text);
    return text;
}

struct snapshot {
    _Alignas(16) unsigned char bytes[16 * 1024];
};

static UNUSED void take_snapshot(struct snapshot *s)
{
    static int (*get)(void *, size_t);
    if (!get) *(void **)&get = hak("hak_stats_snapshot");
    CHECK(record("stats")->size <= sizeof s->bytes, "stats has %u bytes", record("stats")->size);
    int code = get(s->bytes, record("stats")->size);
    CHECK(code == 0, "code %d", code);
}

static UNUSED uint64_t of(const struct snapshot *s, const char *name)
{
    return field("stats", s->bytes, name);
}

struct rows {
    _Alignas(16) unsigned char bytes[512 * 1024];
    size_t row_size;
    int count;
};

static UNUSED void take_rows(struct rows *r, const char *function, const char *of_record)
{
    int (*get)(void *, size_t, int);
    *(void **)&get = hak(function);
    r->row_size = record(of_record)->size;
    r->count = get(NULL, r->row_size, 0);
    CHECK(r->count > 0 && (size_t)r->count * r->row_size <= sizeof r->bytes, "%d rows of %zu", r->count, r->row_size);
    int again = get(r->bytes, r->row_size, r->count);
    CHECK(again == r->count, "%d rows, then %d", r->count, again);
}

static UNUSED const void *row(const struct rows *r, int i)
{
    return r->bytes + (size_t)i * r->row_size;
}

/* DESIGN.md's laws; exact while no other thread is inside the allocator. */
static UNUSED void check_laws(void)
{
    static const char *const parts[] = {"live_bytes",       "cached_bytes",     "transit_bytes",
                                        "slab_free_bytes",  "slab_tail_bytes",  "free_dirty_bytes",
                                        "free_clean_bytes", "kept_whale_bytes", "metadata_bytes"};
    static struct snapshot s;
    if (!about()) return;
    take_snapshot(&s);
    uint64_t sum = 0;
    for (size_t i = 0; i < COUNT_OF(parts); i++) sum += of(&s, parts[i]);
    if (sum != of(&s, "committed_bytes"))
        for (size_t i = 0; i < COUNT_OF(parts); i++)
            dprintf(2, "%s %llu\n", parts[i], (unsigned long long)of(&s, parts[i]));
    CHECK(sum == of(&s, "committed_bytes"), "%llu, committed %llu", (unsigned long long)sum,
          (unsigned long long)of(&s, "committed_bytes"));
    CHECK(of(&s, "allocs") - of(&s, "frees") == of(&s, "live_blocks"), "%llu - %llu, live %llu",
          (unsigned long long)of(&s, "allocs"), (unsigned long long)of(&s, "frees"),
          (unsigned long long)of(&s, "live_blocks"));
    uint64_t in_use = of(&s, "committed_bytes");
    for (size_t i = 5; i < COUNT_OF(parts); i++) in_use -= of(&s, parts[i]); /* units with blocks, whales with a caller */
    CHECK(in_use == of(&s, "in_use_bytes"), "%llu, in use %llu", (unsigned long long)in_use,
          (unsigned long long)of(&s, "in_use_bytes"));
    CHECK(of(&s, "peak_in_use_bytes") >= of(&s, "in_use_bytes"));
}

#endif
