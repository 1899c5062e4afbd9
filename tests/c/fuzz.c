/* For fuzzers: the input's bytes are operations of three threads on 1,024 blocks, against a model of what each block
 * holds. The threads take turns, and the clock stands still unless an operation moves it, so that an input does the
 * same each time. Compiled together with _hakmem_backend.c, both with -Dclock_gettime=fuzz_clock_gettime and
 * -DHAK_NO_OVERRIDE=1; for libFuzzer with -DFUZZ_LIBFUZZER=1, else with a main of its own:
 *
 *     fuzz SEED COUNT [FILE...]      COUNT inputs made from SEED, SEED + 1, ...; then the files
 *
 * Input SEED + i fails alone as `fuzz SEED+i 1`. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>

static __attribute__((noreturn)) void failed(const char *what, int line)
{
    fprintf(stderr, "fuzz.c:%d: %s\n", line, what);
    abort(); /* libFuzzer keeps the input */
}
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) failed(#condition, __LINE__);                                                                \
    } while (0)
#include "laws.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>

void *hak_malloc(size_t), *hak_calloc(size_t, size_t), *hak_realloc(void *, size_t), *hak_aligned_alloc(size_t, size_t);
void *hak_alloc_at(size_t, uint64_t);
void hak_free(void *), hak_free_at(void *, uint64_t), hak_reset_peaks(void);
int hak_free_checked(void *), hak_realloc_checked(void *, size_t, void **), hak_usable_size_checked(const void *, size_t *);
size_t hak_usable_size(const void *), hak_trim(void);
int hak_tier_table(void *, size_t, int), hak_heap_table(void *, size_t, int), hak_lock_table(void *, size_t, int);
int hak_owner_of(const void *, void *, size_t), hak_option_set(const char *, int64_t);
int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

#define MIB ((size_t)1 << 20)
enum { ACTORS = 3, SLOTS = 1024, CLASSES = 256, CLASS_NONE = CLASSES - 1 };
enum { OK, FOREIGN, INTERIOR, ALREADY_FREE, NOMEM }; /* of hak_..._checked */
#define LIVE_MOST (80 * MIB)

static uint64_t clock_ms = 1000000; /* moved by operations */

int clock_gettime(clockid_t which, struct timespec *t) /* hakmem's; see above */
{
    (void)which;
    *t = (struct timespec){(time_t)(clock_ms / 1000), (long)(clock_ms % 1000) * 1000000};
    return 0;
}

/* ---- the model */

static struct slot {
    union {
        unsigned char *p;
        uint64_t *words;
    };
    size_t usable;
    uint32_t key, class; /* class: CLASS_NONE for a run or a whale */
} slots[SLOTS];
static uint64_t live_of[CLASSES], live_bytes, operations;
static uint32_t keys;
static size_t class_size[CLASSES], classes;

/* In words: all of a block up to 1 KiB; of a larger one the first and last 256 bytes, and up to 64 KiB one in each OS
 * page. (Sizes of blocks are multiples of 8.) */
static size_t next_word(size_t i, size_t n)
{
    const size_t edge = 32;
    i++;
    if (n <= 4 * edge || i < edge || i + edge >= n) return i;
    return n <= MIB / 128 && i + 511 + edge < n ? i + 511 : n - edge;
}

static uint64_t word_at(uint32_t key, size_t i) { return (key + i) * 0x9e3779b97f4a7c15u; }

static void write_pattern(uint64_t *p, size_t n, uint32_t key)
{
    for (size_t i = 0; i < n; i = next_word(i, n)) p[i] = word_at(key, i);
}

static void check_pattern(const struct slot *s, const uint64_t *p, size_t limit)
{
    size_t n = s->usable / 8;
    for (size_t i = 0; i < n && i < limit / 8; i = next_word(i, n)) CHECK(p[i] == word_at(s->key, i));
}

/* What hakmem says of the address; its class, or CLASS_NONE. */
static uint32_t ask_owner(const void *p, uint64_t *base, uint64_t *size, const char **state)
{
    static _Thread_local _Alignas(16) char row[512];
    const struct hak_record *o = record("owner");
    CHECK(o->size <= sizeof row);
    if (hak_owner_of(p, row, o->size)) return UINT32_MAX - 1;
    *base = about_number(o, row, "base");
    *size = about_number(o, row, "size");
    for (uint32_t i = 0; i < o->nfields; i++)
        if (strcmp(about_text(o, i, TEXT_NAME), "state") == 0) memcpy(state, row + o->fields[i].offset, sizeof *state);
    uint64_t class = about_number(o, row, "class");
    return class < classes ? (uint32_t)class : CLASS_NONE;
}

static void enter(struct slot *s, void *p, size_t n)
{
    uint64_t base, size;
    const char *state;
    CHECK(p && ((uintptr_t)p & (n > 8 ? 15 : 7)) == 0);
    s->p = p;
    s->usable = hak_usable_size(p);
    s->class = ask_owner(p + s->usable / 2, &base, &size, &state);
    CHECK(s->class <= CLASS_NONE && base == (uintptr_t)p && size == s->usable && state[0] == 'l');
    CHECK(s->usable >= n && (s->class == CLASS_NONE || s->usable == class_size[s->class]));
    s->key = ++keys * 2654435761u;
    write_pattern(p, s->usable / 8, s->key);
    live_of[s->class]++;
    live_bytes += s->usable;
}

static void leave(struct slot *s)
{
    live_of[s->class]--;
    live_bytes -= s->usable;
}

static void check_counts(void)
{
    static _Alignas(16) char rows[CLASSES * 512], stats[4096];
    const struct hak_record *c = record("class"), *s = record("stats");
    uint64_t blocks = 0;
    laws();
    CHECK(c->size * classes <= sizeof rows && hak_class_table(rows, c->size, (int)classes) == (int)classes);
    for (size_t i = 0; i < classes; i++) {
        CHECK(about_number(c, rows + i * c->size, "live_blocks") == live_of[i]);
        blocks += live_of[i];
    }
    CHECK(hak_stats_snapshot(stats, s->size) == 0);
    CHECK(about_number(s, stats, "live_blocks") == blocks + live_of[CLASS_NONE]);
    CHECK(about_number(s, stats, "live_bytes") == live_bytes);
}

/* ---- the input */

static struct {
    const uint8_t *at, *end;
} input;

static unsigned take(void) { return input.at < input.end ? *input.at++ : 0; }

static size_t take_size(void)
{
    unsigned kind = take(), b = take();
    switch (kind % 10) {
    case 0: return b;
    case 1: return 4 * b;
    case 2:
    case 3: return class_size[b % classes] + (kind / 10) % 3 - 1; /* next to a class */
    case 4: return 64 * b;
    case 5: return 512 * b;
    case 6: return 8192 * b;
    case 7: return 65536 * (b % 64);
    case 8: return b < 4 ? 60 * MIB + b * 4 * MIB : b * 2048;
    default: return b % 4 == 0 ? SIZE_MAX - b : b % 4 == 1 ? PTRDIFF_MAX - b * 4096 : b % 4 == 2 ? (size_t)b << 56 : b;
    }
}

static bool too_large(size_t n) { return live_bytes + n + n / 8 > LIVE_MOST && n <= (size_t)1 << 40; }

/* ---- operations: the actor whose turn it is */

static void drop(struct slot *s, unsigned how)
{
    int saved = errno = (int)how;
    check_pattern(s, s->words, s->usable);
    leave(s);
    switch (how % 4) {
    case 0: hak_free_at(s->p, how); break;
    case 1: CHECK(hak_free_checked(s->p) == OK); break;
    case 2: CHECK(hak_realloc(s->p, 0) == NULL); break;
    default: hak_free(s->p);
    }
    CHECK(errno == saved);
    s->p = NULL;
}

static void make(struct slot *s, size_t n, unsigned how)
{
    size_t align = 8;
    unsigned char *p;
    if (s->p) drop(s, how);
    if (too_large(n)) return;
    errno = 0;
    switch (how % 4) {
    case 0: {
        size_t by = how % 8 == 0 ? 1 : 4;
        p = hak_calloc(n / by + (n % by != 0), by);
        for (size_t i = 0; p && i < n; i += i < 4096 || i + 256 >= n ? 1 : 256) CHECK(p[i] == 0);
        break;
    }
    case 1:
        align = (size_t)1 << how / 4 % 25;
        p = too_large(n + align) ? hak_malloc(n) : hak_aligned_alloc(align, n);
        CHECK(too_large(n + align) || ((uintptr_t)p & (align - 1)) == 0);
        break;
    case 2: p = hak_alloc_at(n, how); break;
    default: p = hak_malloc(n);
    }
    if (p) enter(s, p, n);
    else CHECK(errno == ENOMEM && n > (size_t)1 << 40);
}

static void regrow(struct slot *s, size_t n, unsigned how)
{
    struct slot old = *s;
    void *p = NULL;
    if (too_large(n) || (n == 0 && s->p)) return;
    errno = 0;
    if (how % 2) CHECK(hak_realloc_checked(s->p, n, &p) == (n > (size_t)1 << 40 ? NOMEM : OK));
    else p = hak_realloc(s->p, n);
    if (!p) {
        CHECK(errno == ENOMEM && n > (size_t)1 << 40);
        if (s->p) check_pattern(s, s->words, s->usable);
        return;
    }
    if (s->p) {
        check_pattern(&old, p, n);
        leave(&old);
    }
    enter(s, p, n);
}

/* Calls that have to be refused, and questions. */
static void try_bad(struct slot *s, size_t offset)
{
    static const char elsewhere[64];
    uint64_t base, size;
    const char *state;
    size_t usable;
    void *p = (void *)(uintptr_t)(elsewhere + offset % 64), *out = NULL;
    CHECK(hak_free_checked(p) == FOREIGN && hak_usable_size_checked(p, &usable) == FOREIGN && usable == 0);
    CHECK(hak_realloc_checked(p, offset, &out) == FOREIGN && !out);
    CHECK(hak_free_checked((void *)(offset << 40 | 8)) == FOREIGN);
    errno = 0;
    CHECK(hak_aligned_alloc(offset | (size_t)3 << offset % 60, 8) == NULL && errno == EINVAL);
    if (!s->p) return;
    CHECK(hak_usable_size_checked(s->p, &usable) == OK && usable == s->usable);
    if (offset % s->usable == 0) return;
    p = s->p + offset % s->usable;
    CHECK(ask_owner(p, &base, &size, &state) == s->class && base == (uintptr_t)s->p && size == s->usable);
    CHECK(hak_free_checked(p) == INTERIOR && hak_realloc_checked(p, offset, &out) == INTERIOR && !out);
    /* A freed block whose state is known to this thread is refused, too. */
    unsigned char *freed = s->p;
    drop(s, 3);
    if (ask_owner(freed, &base, &size, &state) <= CLASS_NONE && state[0] != 'l') {
        CHECK(hak_free_checked(freed) == ALREADY_FREE);
        CHECK(hak_realloc_checked(freed, 1, &out) == ALREADY_FREE && !out);
        CHECK(hak_usable_size_checked(freed, &usable) == ALREADY_FREE);
    }
}

static void *in_child_thread(void *argument)
{
    for (int i = 0; i < SLOTS; i += 2)
        if (slots[i].p) drop(&slots[i], 3);
    for (size_t n = 1; n < 100000; n += n / 2 + 1) hak_free(hak_malloc(n));
    return argument;
}

static void have_child(void)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        pthread_t thread;
        signal(SIGABRT, SIG_DFL);
        signal(SIGALRM, SIG_DFL);
        alarm(60);
        laws(); /* blocks that were in other threads' stacks count as live here */
        CHECK(pthread_create(&thread, NULL, in_child_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
        for (int i = 0; i < SLOTS; i++)
            if (slots[i].p) drop(&slots[i], (unsigned)i);
        hak_trim();
        laws();
        _exit(0);
    }
    int status;
    pid_t ended;
    while ((ended = waitpid(pid, &status, 0)) < 0 && errno == EINTR) {} /* libFuzzer's timer */
    CHECK(ended == pid);
    CHECK(status == 0);
}

static void look(void)
{
    static _Alignas(16) char rows[1 << 16];
    CHECK(hak_tier_table(rows, record("tier")->size, 4) == 4);
    CHECK(hak_heap_table(rows, record("heap")->size, 20) >= 0);
    CHECK(hak_lock_table(rows, record("lock")->size, 20) > 0);
    hak_reset_peaks();
    check_counts();
}

static int forks_left;

static void operate(unsigned op)
{
    static const int64_t ages[] = {0, 1, 100, 1000}, retains[] = {0, 65536, 4 << 20, 1 << 30};
    unsigned at = take() << 2, how = take(), count, i;
    struct slot *s = &slots[(at | (how & 3)) % SLOTS];
    size_t n;
    static struct slot *last; /* made or grown: more happens to it than to another */
    if (op % 16 < 3 || !last) last = s;
    else if (at & 64) s = last;
    operations++;
    switch (op % 16) {
    case 0:
    case 1:
    case 2: make(s, take_size(), how); break;
    case 3:
    case 4:
        if (s->p) drop(s, how);
        break;
    case 5: regrow(s, take_size(), how); break;
    case 6: regrow(s, s->p ? s->usable / 8 * (1 + take() % 20) : take_size(), how); break; /* an eighth to 2.5 times */
    case 7: /* many of a size */
    case 8:
        n = take_size();
        if (n > 65536 && n <= (size_t)1 << 40) n %= 65536;
        for (i = 0, count = n > 8192 ? take() % 16 : take(); i < count; i++) make(&slots[(at + i) % SLOTS], n, how | 3);
        break;
    case 9: /* many frees, in order, or by steps */
    case 10:
        for (i = 0, count = take() * 2; i < count; i++) {
            struct slot *of = &slots[(at + i * (how | 1)) % SLOTS];
            if (of->p) drop(of, how | 3);
        }
        break;
    case 11: try_bad(s, (size_t)how << 8 | take()); break;
    case 12: clock_ms += how < 128 ? how : how * 16; break;
    case 13:
        CHECK(hak_option_set("purge_ms", ages[how % 4]) == 0);
        CHECK(hak_option_set("retain", retains[how / 4 % 4]) == 0);
        CHECK(hak_option_set("cache_limit", how / 16 % 4 ? 1 << 20 : 0) == 0);
        CHECK(hak_option_set("prewarm_tls", how / 64 % 3) == 0);
        break;
    case 14:
        if (how & 1) hak_trim();
        else look();
        break;
    case 15:
        if (how % 8 == 0 && forks_left-- > 0) have_child();
        else check_counts();
    }
}

/* ---- actors: the first is the calling thread; the others wait for their turn */

static struct {
    pthread_t thread;
    sem_t turn, done;
    bool runs;
    int op; /* -1: end */
} actors[ACTORS];

static void *act(void *argument)
{
    int me = (int)(intptr_t)argument;
    for (;;) {
        while (sem_wait(&actors[me].turn)) {}
        if (actors[me].op < 0) return NULL;
        operate((unsigned)actors[me].op);
        sem_post(&actors[me].done);
    }
}

static void end_actor(int me)
{
    if (!actors[me].runs) return;
    actors[me].op = -1;
    sem_post(&actors[me].turn);
    CHECK(pthread_join(actors[me].thread, NULL) == 0);
    actors[me].runs = false;
}

static void let_act(int me, unsigned op)
{
    if (me == 0) {
        operate(op);
        return;
    }
    if (!actors[me].runs) CHECK(pthread_create(&actors[me].thread, NULL, act, (void *)(intptr_t)me) == 0);
    actors[me].runs = true;
    actors[me].op = (int)op;
    sem_post(&actors[me].turn);
    while (sem_wait(&actors[me].done)) {}
}

static void prepare(void)
{
    static _Alignas(16) char rows[CLASSES * 512];
    const struct hak_record *c = record("class");
    for (int i = 0; i < ACTORS; i++) CHECK(sem_init(&actors[i].turn, 0, 0) == 0 && sem_init(&actors[i].done, 0, 0) == 0);
    classes = (size_t)hak_class_table(NULL, c->size, 0);
    CHECK(classes < CLASS_NONE && c->size * classes <= sizeof rows);
    hak_class_table(rows, c->size, (int)classes);
    for (size_t i = 0; i < classes; i++) class_size[i] = about_number(c, rows + i * c->size, "size");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static _Alignas(16) char stats[4096];
    const struct hak_record *s = record("stats");
    if (!classes) prepare();
    input.at = data;
    input.end = data + size;
    forks_left = 1;
    while (input.at < input.end) {
        unsigned b = take(), me = b / 16 % 4;
        if (me == ACTORS) end_actor(1 + (int)(b / 64) % 2); /* the next operation of this one is another thread's */
        else let_act((int)me, b / 64 % 2 ? b % 16 : b % 11); /* those that change blocks come more often */
    }
    for (int i = 1; i < ACTORS; i++) end_actor(i);
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].p) drop(&slots[i], 3);
    check_counts();
    hak_trim();
    check_counts();
    CHECK(hak_stats_snapshot(stats, s->size) == 0);
    /* Nothing is held, cached or on its way, so no slab, run or mapping is left. */
    CHECK(about_number(s, stats, "in_use_bytes") == 0 && about_number(s, stats, "kept_whale_bytes") == 0);
    CHECK(about_number(s, stats, "free_dirty_bytes") == 0);
    return 0;
}

#ifndef FUZZ_LIBFUZZER
static char now_running[64];

static void say_input(int signal_number)
{
    ssize_t done = write(2, now_running, strlen(now_running));
    (void)done;
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 29);
}

int main(int argc, char **argv)
{
    static uint8_t data[1 << 16];
    CHECK(argc >= 3);
    uint64_t seed = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    signal(SIGABRT, say_input);
    signal(SIGSEGV, say_input);
    for (uint64_t i = seed; i < seed + count; i++) {
        uint64_t r = i;
        size_t n = next_random(&r) % (i % 16 ? 600 : 6000);
        for (size_t k = 0; k < n; k++) data[k] = (uint8_t)(next_random(&r) >> 20);
        snprintf(now_running, sizeof now_running, "input: fuzz %llu 1\n", (unsigned long long)i);
        LLVMFuzzerTestOneInput(data, n);
    }
    for (int i = 3; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        CHECK(f);
        size_t n = fread(data, 1, sizeof data, f);
        fclose(f);
        snprintf(now_running, sizeof now_running, "input: %.50s\n", argv[i]);
        LLVMFuzzerTestOneInput(data, n);
    }
    printf("%llu inputs, %llu operations\n", (unsigned long long)(count + (uint64_t)argc - 3), (unsigned long long)operations);
    return 0;
}
#endif
