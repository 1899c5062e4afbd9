/* A reader of hakmem's stats page, of this process or another: what it knows of the layout is the head, and what the page
 * says of itself. */
#pragma once
#include "common.h"

#include <dirent.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>

struct live_head {
    char magic[8];
    uint32_t format, abi, pid, thread;
    uint64_t size, text, text_len, words, words_len, counts, sections, seq, published, at_ns, cost_ns, sum;
};
struct live_command {
    char magic[8];
    uint32_t format, look;
    uint32_t pid, reserved;
    uint64_t asked, taken, done, until;
    uint32_t what, status;
    int64_t value;
    uint64_t result;
    char name[64];
};
enum { DO_PUBLISH = 1, DO_DETAIL, DO_RELEASE, DO_TRIM, DO_SET };
enum { LIVE_SECTIONS = 16 };

struct live {
    const struct live_head *head;
    size_t size, sections;
    char name[LIVE_SECTIONS][32];
    size_t row_size[LIVE_SECTIONS], row[LIVE_SECTIONS], most[LIVE_SECTIONS];
};

/* The descriptor's number in the process, of its file of that name; -1: it has none. */
static UNUSED int live_find(pid_t pid, const char *name)
{
    char path[64], link[128], want[64];
    int found = -1;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    snprintf(want, sizeof want, "/memfd:%s (deleted)", name);
    DIR *directory = opendir(path);
    if (!directory) return -1;
    for (struct dirent *e; (e = readdir(directory));) {
        ssize_t n = readlinkat(dirfd(directory), e->d_name, link, sizeof link - 1);
        link[n < 0 ? 0 : n] = 0;
        if (strcmp(link, want) == 0) found = atoi(e->d_name);
    }
    closedir(directory);
    return found;
}

static UNUSED void *live_map(pid_t pid, const char *name, size_t *size, int write)
{
    char path[64];
    struct stat about_it;
    int number = live_find(pid, name);
    if (number < 0) return NULL;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, number);
    int fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0) return NULL;
    CHECK(fstat(fd, &about_it) == 0 && (about_it.st_mode & 07777) == 0600, "mode %o", (unsigned)about_it.st_mode);
    *size = (size_t)about_it.st_size;
    void *p = mmap(NULL, *size, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED, "errno %d", errno);
    close(fd);
    return p;
}

/* False: there is no such file. */
static UNUSED int live_open(struct live *l, pid_t pid, const char *name)
{
    memset(l, 0, sizeof *l);
    if (!(l->head = live_map(pid, name, &l->size, 0))) return 0;
    const char *at = (const char *)l->head + l->head->text, *end = at + l->head->text_len;
    CHECK(strcmp(l->head->magic, "hakmem") == 0 && l->head->format == 1 && l->head->size == l->size);
    for (size_t n; at < end; at += n + 1) {
        n = strcspn(at, "\n");
        CHECK(at[n] == '\n', "a line without an end");
        if (strncmp(at, "record\t", 7) == 0) {
            size_t i = l->sections++;
            CHECK(i < LIVE_SECTIONS
                  && sscanf(at, "record\t%31[a-z]\t%zu\t%zu\t%zu\n", l->name[i], &l->row_size[i], &l->row[i], &l->most[i]) == 4);
            CHECK(l->row[i] + l->row_size[i] * l->most[i] <= l->size);
        }
    }
    CHECK(l->sections == l->head->sections && *end == 0);
    return 1;
}

static UNUSED void live_close(struct live *l)
{
    munmap((void *)(uintptr_t)l->head, l->size);
    l->head = NULL;
}

static UNUSED size_t live_section(const struct live *l, const char *name)
{
    for (size_t i = 0; i < l->sections; i++)
        if (strcmp(l->name[i], name) == 0) return i;
    fail("section", __LINE__, "no section %s", name);
}

static inline const uint64_t *live_counts(const struct live *l, size_t i)
{
    return (const uint64_t *)(const void *)((const char *)l->head + l->head->counts) + 2 * i;
}

/* The offset of a field in its row, and its kind. */
static UNUSED size_t live_offset(const struct live *l, const char *of_record, const char *field_name, char *kind)
{
    const char *at = (const char *)l->head + l->head->text, *end = at + l->head->text_len;
    char line[600], name[64], of_name[64] = "";
    size_t offset;
    for (size_t n; at < end; at += n + 1) {
        n = strcspn(at, "\n");
        CHECK(n < sizeof line);
        memcpy(line, at, n);
        line[n] = 0;
        sscanf(line, "record\t%63[a-z]", of_name);
        if (strcmp(of_name, of_record) == 0 && sscanf(line, "field\t%63[a-z_0-9]\t%c", name, kind) == 2
            && strcmp(name, field_name) == 0) {
            const char *tab = line; /* units and views may be empty, which sscanf does not read */
            for (int i = 0; i < 5; i++) tab = strchr(tab, '\t') + 1;
            CHECK(sscanf(tab, "%zu", &offset) == 1, "%s", line);
            return offset;
        }
    }
    fail("field", __LINE__, "no field %s of %s", field_name, of_record);
}

static UNUSED uint64_t live_number(const struct live *l, const char *of_record, size_t i, const char *field_name)
{
    char kind;
    size_t s = live_section(l, of_record), at = l->row[s] + i * l->row_size[s] + live_offset(l, of_record, field_name, &kind);
    uint64_t wide;
    uint32_t narrow;
    memcpy(&wide, (const char *)l->head + at, sizeof wide);
    memcpy(&narrow, (const char *)l->head + at, sizeof narrow);
    return kind == 'I' ? narrow : wide;
}

static UNUSED const char *live_text(const struct live *l, const char *of_record, size_t i, const char *field_name)
{
    uint64_t at = live_number(l, of_record, i, field_name);
    CHECK(at < l->head->words_len, "text at %llu", (unsigned long long)at);
    return (const char *)l->head + l->head->words + at;
}

/* ---- one reading: 1 whole, 0 somebody wrote meanwhile, -1 torn: nobody did, and the sum is wrong */

static UNUSED int live_read(const struct live *l, uint64_t *published)
{
    const struct live_head *h = l->head;
    uint64_t seq = __atomic_load_n(&h->seq, __ATOMIC_ACQUIRE), sum = 0, says;
    if (seq & 1) return 0;
    for (size_t i = 0; i < l->sections; i++) {
        const uint64_t *count = live_counts(l, i);
        uint64_t rows = __atomic_load_n(&count[0], __ATOMIC_RELAXED), all = __atomic_load_n(&count[1], __ATOMIC_RELAXED);
        const uint64_t *word = (const uint64_t *)(const void *)((const char *)h + l->row[i]);
        sum += rows + all;
        if (rows > l->most[i]) rows = l->most[i]; /* it is being written */
        for (uint64_t w = 0, words = rows * l->row_size[i] / 8; w < words; w++)
            sum += __atomic_load_n(&word[w], __ATOMIC_RELAXED);
    }
    *published = __atomic_load_n(&h->published, __ATOMIC_RELAXED);
    says = __atomic_load_n(&h->sum, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (__atomic_load_n(&h->seq, __ATOMIC_RELAXED) != seq) return 0;
    return sum == says ? 1 : -1;
}

/* Waits for one. */
static UNUSED void live_whole(const struct live *l)
{
    uint64_t published;
    int whole = 0;
    for (int ms = 0; !(whole = live_read(l, &published)) && ms < 20000; ms++) sleep_ms(1);
    CHECK(whole == 1, "%s", whole ? "torn" : "for ever odd");
}

/* ---- commands */

static UNUSED struct live_command *live_command(pid_t pid)
{
    size_t size;
    struct live_command *c = live_map(pid, "hakmem-command", &size, 1);
    CHECK(c && size >= sizeof *c && strcmp(c->magic, "hakmem") == 0 && c->format == 2, "no command page");
    return c;
}

static UNUSED uint64_t live_ask(struct live_command *c, uint32_t what, const char *name, int64_t value)
{
    uint64_t number = c->asked + 1;
    c->what = what;
    c->until = UINT64_MAX;
    c->value = value;
    snprintf(c->name, sizeof c->name, "%s", name);
    __atomic_store_n(&c->asked, number, __ATOMIC_RELEASE);
    __atomic_store_n(&c->look, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &c->look, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    return number;
}

static UNUSED int live_is_done(struct live_command *c, uint64_t number)
{
    return __atomic_load_n(&c->done, __ATOMIC_ACQUIRE) == number;
}
