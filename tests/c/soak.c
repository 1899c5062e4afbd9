/* The workload of tests/soak.py, which says what is checked and why the bounds are what they are. Arguments: seed,
 * milliseconds, most live MiB, milliseconds of a cycle, what to break ("" for nothing). What is known of a block, its
 * pattern's key among it, lies in tables of our own. Prints "state" lines a second apart, a "fault" line for each
 * fault (the first of each kind in full), and ends with "end". */
#include "common.h"
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { SLOTS = 1 << 16, KEPT = 128, LANES = 3, BESIDE = 2, STACK = 256 * 1024, CLASSES_MOST = 512 };

struct slot {
    atomic_uint busy; /* held by the thread that looks at or changes the rest */
    uint32_t key;
    unsigned char *p; /* NULL: none */
    size_t n, usable;
};

struct lane { /* a place for one thread after another */
    pthread_t thread;
    uint64_t seed;
    unsigned char *stack, *short_stack;
    unsigned id, cursor;
    uint64_t steps; /* left of this life */
    int started;
    atomic_int ended, parked;
};

static struct slot *slots, *kept; /* kept: changed by the thread that forks, alone */
static struct lane lanes[LANES];
static uint64_t started_ms, seed;
static const char *sabotage = "";
static atomic_int sabotaged;

/* ---- counts */

static atomic_size_t live_bytes, live_blocks, peak_bytes, last_peak, target;
static atomic_uint active = SLOTS, flavour, cycle;
static atomic_ullong operations, threads, forks, trims, snapshots, settings, verified;
static atomic_int draining, phase;
static atomic_llong retain_most, retain_now;
static const char *const phases[] = {"fill", "steady", "drain", "idle"};

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- faults: said, counted, and the run goes on */

enum { BYTES, ZERO, BLOCKS, RSS, CALL, CHILD, KINDS };
static const char *const kinds[KINDS] = {"bytes", "zero", "blocks", "rss", "call", "child"};
static atomic_ullong faults[KINDS];

static __attribute__((format(printf, 1, 2))) void say(const char *format, ...) /* dprintf would allocate a buffer */
{
    char text[500];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= (int)sizeof text) n = (int)sizeof text - 1;
    for (ssize_t done; n > 0 && (done = write(1, text, (size_t)n)) < 0 && errno == EINTR;) {}
}

#define fault(kind, count, format, ...)                                                                                \
    do {                                                                                                               \
        if (atomic_fetch_add(&faults[kind], (count)) < 10)                                                             \
            say("fault %s cycle %u, %s: " format "\n", kinds[kind], atomic_load(&cycle),                               \
                phases[atomic_load(&phase)], __VA_ARGS__);                                                             \
    } while (0)

static int breaks(const char *what) /* once, when there is something to break */
{
    return strcmp(sabotage, what) == 0 && atomic_load(&cycle) > 0 && !atomic_exchange(&sabotaged, 1);
}

/* ---- patterns: every byte of every block */

static inline uint64_t word_at(uint32_t key, size_t i)
{
    return (key * 0x9e3779b97f4a7c15u) ^ ((i + key) * 0xd6e8feb86659fd93u);
}

static void write_all(unsigned char *p, size_t n, uint32_t key)
{
    uint64_t *words = (uint64_t *)(void *)p, last = word_at(key, n / 8);
    for (size_t i = 0; i < n / 8; i++) words[i] = word_at(key, i);
    memcpy(p + n / 8 * 8, &last, n % 8);
}

/* Of a block that was written with n bytes, those below limit that are wrong; *first is one of them. */
static size_t wrong_bytes(const unsigned char *p, size_t n, uint32_t key, size_t limit, size_t *first)
{
    const uint64_t *words = (const uint64_t *)(const void *)p;
    size_t whole = (limit < n ? limit : n) / 8, wrong = 0;
    uint64_t different = 0;
    for (size_t i = 0; i < whole; i++) different |= words[i] ^ word_at(key, i);
    size_t rest = (limit < n ? limit : n) % 8;
    uint64_t last = word_at(key, whole);
    if (different == 0 && memcmp(p + whole * 8, &last, rest) == 0) return 0;
    for (size_t i = whole * 8 + rest; i-- > 0;) {
        uint64_t word = word_at(key, i / 8);
        if (p[i] == ((unsigned char *)&word)[i % 8]) continue;
        wrong++;
        *first = i;
    }
    return wrong;
}

static void check_contents(const struct slot *s, size_t limit, const char *where)
{
    size_t first = 0, wrong = wrong_bytes(s->p, s->n, s->key, limit, &first);
    atomic_fetch_add_explicit(&verified, limit < s->n ? limit : s->n, memory_order_relaxed);
    if (wrong)
        fault(BYTES, wrong, "%s: %zu bytes of the %zu at %p are wrong, from byte %zu on", where, wrong, s->n,
              (void *)s->p, first);
}

/* ---- blocks */

static void enter(struct slot *s)
{
    size_t usable = malloc_usable_size(s->p);
    if (usable < s->n) fault(CALL, 1, "%p of %zu bytes has room for %zu", (void *)s->p, s->n, usable);
    s->usable = usable;
    s->key = (uint32_t)((uintptr_t)s->p * 2654435761u ^ s->n ^ s->key << 7 ^ seed);
    write_all(s->p, s->n, s->key);
    size_t live = atomic_fetch_add(&live_bytes, usable) + usable, peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {}
    atomic_fetch_add(&live_blocks, 1);
}

static void leave(struct slot *s)
{
    atomic_fetch_sub(&live_bytes, s->usable);
    atomic_fetch_sub(&live_blocks, 1);
}

static void drop(struct slot *s)
{
    check_contents(s, s->n, "before free");
    leave(s);
    free(s->p);
    s->p = NULL;
    if (breaks("lose")) atomic_fetch_add(&live_blocks, 1); /* as if a block had gone with it */
}

static size_t log_uniform(uint64_t *r, size_t low, size_t high)
{
    size_t most = low;
    for (size_t steps = next_random(r); most < high && (steps & 1 || most == low); steps >>= 1) most *= 2;
    for (size_t limit = random_between(r, low, high); most < limit / 2 && next_random(r) % 4;) most *= 2;
    return random_between(r, low, most < high ? most : high);
}

static size_t pick_size(uint64_t *r)
{
    static const unsigned short odds[4][4] = {
        {600, 9200, 9950, 9998}, {9900, 9990, 9999, 10000}, {1000, 9800, 9990, 10000}, {100, 1000, 6000, 9900}};
    const unsigned short *odd = odds[atomic_load_explicit(&flavour, memory_order_relaxed) % 4];
    size_t k = next_random(r) % 10000;
    if (odd == odds[0]) k = k < 6000 ? 0 : k;
    if (k < odd[0]) return next_random(r) % 200 ? log_uniform(r, 8, KIB) : 0;
    if (k < odd[1]) return log_uniform(r, KIB, 32 * KIB);
    if (k < odd[2]) return log_uniform(r, 32 * KIB, MIB);
    if (k < odd[3]) return log_uniform(r, MIB, 8 * MIB);
    return log_uniform(r, 8 * MIB, 100 * MIB);
}

static void make(struct slot *s, uint64_t *r, size_t most)
{
    size_t n = pick_size(r), align = 8, kind = next_random(r) % 16;
    if (n > most) n = most;
    if (kind < 4) {
        s->p = kind < 2 ? calloc(1, n) : calloc(n, 1);
        if (s->p && n && breaks("zero")) s->p[n / 2] = 1;
        if (s->p && !is_zero(s->p, n)) fault(ZERO, 1, "calloc of %zu at %p is not all zero", n, (void *)s->p);
    } else if (kind < 6) {
        void *p = NULL;
        align = (size_t)8 << next_random(r) % (kind == 4 ? 10 : 18);
        if (posix_memalign(&p, align, n)) p = NULL;
        s->p = p;
    } else {
        s->p = malloc(n);
    }
    s->n = n;
    if (!s->p) {
        fault(CALL, 1, "%zu bytes at a multiple of %zu: NULL", n, align);
        return;
    }
    if ((uintptr_t)s->p % (align < 16 && n > 8 ? 16 : align)) fault(CALL, 1, "%p, alignment %zu", (void *)s->p, align);
    enter(s);
}

static void regrow(struct slot *s, uint64_t *r, size_t most)
{
    struct slot old = *s;
    size_t n = next_random(r) % 3 ? s->n + s->n / 4 + 1 : pick_size(r); /* as a buffer grows, and to anything */
    if (n > most) n = most;
    if (n == 0) n = 1;
    leave(s);
    void *p = realloc(s->p, n);
    if (!p) {
        fault(CALL, 1, "realloc of %zu bytes to %zu: NULL", s->n, n);
        enter(s);
        return;
    }
    s->p = p;
    check_contents(s, old.n < n ? old.n : n, "after realloc");
    s->n = n;
    enter(s);
}

static struct slot *take(struct slot *s)
{
    unsigned free_now = 0;
    return atomic_compare_exchange_strong(&s->busy, &free_now, 1) ? s : NULL;
}

static void give(struct slot *s) { atomic_store(&s->busy, 0); }

/* Lanes allocate in slots of their own parity, mostly, and free in those of the other as well. */
static void step(struct lane *l)
{
    uint64_t *r = &l->seed;
    size_t most = atomic_load(&target), live = atomic_load(&live_bytes), room = live < most ? most - live : 0;
    unsigned mask = atomic_load(&active) - 1, choice = (unsigned)(next_random(r) % 100), i;
    if (atomic_load(&draining)) {
        i = (l->cursor++ * 2 + ((l->id + atomic_load(&cycle)) & 1)) & (SLOTS - 1);
    } else {
        i = (unsigned)next_random(r) & mask;
        if (choice % 4) i = (i & ~1u) | (l->id & 1);
    }
    struct slot *s = take(&slots[i]);
    if (!s) return;
    if (s->p) {
        if (choice < 25 && room > 2 * s->n) regrow(s, r, room);
        else if (!room || choice < 60) drop(s);
        else check_contents(s, s->n, "in between");
        if (s->p && s->n && breaks("corrupt")) s->p[s->n / 2] ^= 4;
    } else if (room) {
        make(s, r, room);
    }
    give(s);
    atomic_fetch_add_explicit(&operations, 1, memory_order_relaxed);
}

static void start_thread(pthread_t *thread, unsigned char *stack, void *(*run)(void *), void *argument)
{
    /* Stacks of our own: what the C library allocates for a thread is then gone when the thread is. */
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstack(&attributes, stack, STACK) == 0);
    CHECK(pthread_create(thread, &attributes, run, argument) == 0);
    pthread_attr_destroy(&attributes);
    atomic_fetch_add(&threads, 1);
}

static void *short_life(void *argument)
{
    struct lane *l = argument;
    for (int i = (int)(next_random(&l->seed) % 400); i >= 0; i--) step(l);
    return NULL;
}

/* ---- the gate: lanes stand still there while the main thread looks */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t moved;
    atomic_int closed;
    int turn; /* the lane that is to trim; -1 for none */
} gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, -1};

static void pass_gate(struct lane *l)
{
    if (!atomic_load(&gate.closed)) return;
    pthread_mutex_lock(&gate.mutex);
    atomic_store(&l->parked, 1);
    while (atomic_load(&gate.closed)) {
        if (gate.turn == (int)l->id) {
            malloc_trim(0);
            gate.turn = -1;
            pthread_cond_broadcast(&gate.moved);
        }
        pthread_cond_wait(&gate.moved, &gate.mutex);
    }
    atomic_store(&l->parked, 0);
    pthread_mutex_unlock(&gate.mutex);
}

static void *work(void *argument)
{
    struct lane *l = argument;
    for (; l->steps > 0; l->steps--) {
        pass_gate(l);
        step(l);
        if (l->steps % 1024 == 0) {
            struct lane child = {.seed = next_random(&l->seed), .id = (unsigned)next_random(&l->seed) & 1};
            pthread_t thread;
            start_thread(&thread, l->short_stack, short_life, &child);
            CHECK(pthread_join(thread, NULL) == 0);
            if (breaks("hang")) for (;;) sleep_ms(1000);
        }
    }
    atomic_store(&l->ended, 1);
    return NULL;
}

/* ---- children */

static size_t base_blocks;

static void child_fails(const char *what, const struct slot *s)
{
    dprintf(2, "child: %s: %zu bytes at %p\n", what, s->n, (void *)s->p);
    _exit(3);
}

static void child_free(struct slot *s)
{
    size_t first;
    if (!s->p) return;
    if (wrong_bytes(s->p, s->n, s->key, s->n, &first)) child_fails("wrong contents", s);
    free(s->p);
    s->p = NULL;
}

static void *child_thread(void *argument)
{
    for (int i = 1; i < KEPT; i += 2) child_free(&kept[i]);
    return argument;
}

/* What a child does: it finds what its parent had, allocates, frees its own and its parent's, and starts a thread. */
static void child_work(int everything, int flushed)
{
    uint64_t r = (uint64_t)getpid();
    unsigned char *p[200];
    size_t n[200], first;
    alarm(120);
    for (int i = 0; i < 200; i++) {
        n[i] = random_between(&r, 0, i % 50 ? 3000 : 2 * MIB);
        p[i] = i & 1 ? calloc(1, n[i]) : malloc(n[i]);
        struct slot mine = {.p = p[i], .n = n[i]};
        if (!p[i]) child_fails("NULL", &mine);
        if (i & 1 && !is_zero(p[i], n[i])) child_fails("calloc is not zero", &mine);
        write_all(p[i], n[i], (uint32_t)i);
    }
    for (int i = 0; i < KEPT; i += 2) child_free(&kept[i]);
    pthread_t thread;
    unsigned char *stack = own_pages(STACK);
    start_thread(&thread, stack, child_thread, NULL);
    if (pthread_join(thread, NULL)) _exit(4);
    for (int i = 0; everything && i < SLOTS; i++) child_free(&slots[i]);
    for (int i = 0; i < 200; i++) {
        struct slot mine = {.p = p[i], .n = n[i]};
        if (wrong_bytes(p[i], n[i], (uint32_t)i, n[i], &first)) child_fails("own contents", &mine);
        free(p[i]);
    }
    check_laws();
    if (flushed) { /* no block was in another thread's stack, where it would count as used for ever */
        static struct snapshot s;
        take_snapshot(&s);
        if (of(&s, "live_blocks") != base_blocks) {
            dprintf(2, "child: %lld live blocks more than at the start\n", (long long)(of(&s, "live_blocks") - base_blocks));
            _exit(6);
        }
    }
    if (breaks("child")) _exit(5);
    _exit(0);
}

static void have_child(int everything, int flushed)
{
    pid_t pid = fork();
    if (pid == 0) child_work(everything, flushed);
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) fault(CHILD, 1, "fork or wait: errno %d", errno);
    else if (status) fault(CHILD, 1, "a child ended with status 0x%x%s", (unsigned)status,
                           WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ": it hung" : "");
    atomic_fetch_add(&forks, 1);
    if (strcmp(sabotage, "child") == 0 && atomic_load(&cycle) > 0) atomic_store(&sabotaged, 1);
}

/* ---- beside the lanes that work: trims, statistics, options, forks */

static int (*option_set)(const char *, int64_t);
static int (*owner_of)(const void *, void *, size_t);

static void set_option(const char *name, int64_t value)
{
    int code = option_set(name, value);
    if (code) fault(CALL, 1, "hak_option_set(%s, %lld) returns %d", name, (long long)value, code);
    atomic_fetch_add(&settings, 1);
}

static void set_retain(int64_t bytes)
{
    if (bytes > atomic_load(&retain_most)) atomic_store(&retain_most, bytes);
    set_option("retain", bytes);
    atomic_store(&retain_now, bytes);
}

static void *beside(void *argument)
{
    static const int ages[] = {0, 20, 200, 1000};
    static const int64_t kept_bytes[] = {0, 4 << 20, 24 << 20, 64 << 20};
    static struct snapshot s;
    struct lane *l = argument;
    uint64_t *r = &l->seed;
    for (; l->steps > 0; l->steps--) {
        pass_gate(l);
        size_t what = next_random(r) % 64;
        if (what < 12) {
            malloc_trim(0);
            atomic_fetch_add(&trims, 1);
        } else if (what < 16) {
            set_option("purge_ms", ages[next_random(r) % COUNT_OF(ages)]);
            set_retain(kept_bytes[next_random(r) % COUNT_OF(kept_bytes)]);
        } else if (what < 18) {
            for (int i = 0; i < KEPT; i++) /* the next child gets some new ones; the old ones are freed elsewhere, if */
                if (!kept[i].p) make(&kept[i], r, 32 * KIB); /* there is room */
                else if (next_random(r) % 4 == 0) {
                    struct slot *s_ = take(&slots[next_random(r) % SLOTS]);
                    if (s_ && !s_->p) {
                        s_->p = kept[i].p, s_->n = kept[i].n, s_->key = kept[i].key, s_->usable = kept[i].usable;
                        kept[i].p = NULL;
                    } else {
                        drop(&kept[i]);
                    }
                    if (s_) give(s_);
                }
            have_child(0, 0);
        } else {
            take_snapshot(&s);
            if (of(&s, "committed_bytes") < of(&s, "in_use_bytes")) fault(CALL, 1, "%s", "committed less than in use");
            atomic_fetch_add(&snapshots, 1);
        }
        sleep_ms(20);
    }
    atomic_store(&l->ended, 1);
    return NULL;
}

/* ---- the bounds (soak.py derives them) */

static size_t base_rss, base_bytes, base_metadata;
static size_t thread_caches, thread_slabs; /* of one thread, at most: bytes in stacks and batches; a slab of each class */
static size_t class_size[CLASSES_MOST], class_slab[CLASSES_MOST];
static atomic_size_t last_rss, last_bound;
static struct { /* the least that was left below each bound */
    const char *name;
    int64_t margin;
    size_t rss, bound, times;
} bounds[] = {{"load", INT64_MAX, 0, 0, 0}, {"idle", INT64_MAX, 0, 0, 0}, {"trim", INT64_MAX, 0, 0, 0},
              {"own", INT64_MAX, 0, 0, 0}};
enum { LOAD, IDLE, TRIM, OWN };
enum { RESTING = LANES + 1, HEAPS = RESTING + 2 }; /* threads: lanes and the main one; and a short life in two */

static void check_rss(int which, size_t bound)
{
    size_t rss = rss_bytes();
    int64_t margin = (int64_t)bound - (int64_t)rss;
    atomic_store(&last_rss, rss);
    atomic_store(&last_bound, bound);
    bounds[which].times++;
    if (margin < bounds[which].margin) {
        bounds[which].margin = margin;
        bounds[which].rss = rss;
        bounds[which].bound = bound;
    }
    if (margin < 0) {
        static struct snapshot s;
        take_snapshot(&s);
        fault(RSS, 1, "RSS %zu KiB, bound (%s) %zu KiB, live %zu KiB, most live %zu KiB; of hakmem: metadata %llu KiB, "
              "free in slabs %llu KiB, free units %llu KiB, kept %llu KiB", rss / KIB, bounds[which].name, bound / KIB,
              atomic_load(&live_bytes) / KIB, atomic_load(&peak_bytes) / KIB,
              (unsigned long long)of(&s, "metadata_bytes") / KIB, (unsigned long long)of(&s, "slab_free_bytes") / KIB,
              (unsigned long long)of(&s, "free_dirty_bytes") / KIB, (unsigned long long)of(&s, "kept_whale_bytes") / KIB);
    }
}

static size_t recent_peak(void)
{
    size_t now = atomic_load(&peak_bytes), before = atomic_load(&last_peak);
    return now > before ? now : before;
}

/* Metadata is never given back: it follows the most live bytes of all cycles. */
static size_t metadata_bound(void)
{
    static size_t most;
    size_t peak = recent_peak();
    if (peak > most) most = peak;
    return most / 32 + (HEAPS - RESTING + 1) * MIB;
}

static void sort(uintptr_t *a, size_t n) /* by a heap of its own: qsort may allocate */
{
    for (size_t end = n, root = n / 2; end > 1;) {
        if (root > 0) root--;
        else {
            end--;
            uintptr_t t = a[end];
            a[end] = a[0];
            a[0] = t;
        }
        for (size_t i = root, k; (k = 2 * i + 1) < end; i = k) {
            if (k + 1 < end && a[k + 1] > a[k]) k++;
            if (a[i] >= a[k]) break;
            uintptr_t t = a[i];
            a[i] = a[k];
            a[k] = t;
        }
    }
}

/* Bytes of the OS pages that live blocks lie in, each page once. */
static size_t pages_of_blocks(void)
{
    static uintptr_t *order; /* an address in steps of 8 bytes, and the number of the slot below it */
    size_t n = 0, pages = 0, bits = 17;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), done = 0;
    if (!order) {
        order = own_pages((SLOTS + KEPT) * sizeof *order);
        memset(order, 0, (SLOTS + KEPT) * sizeof *order);
    }
    for (size_t i = 0; i < SLOTS + KEPT; i++) {
        const struct slot *s = i < SLOTS ? &slots[i] : &kept[i - SLOTS];
        if (s->p) order[n++] = (uintptr_t)s->p / 8 << bits | i;
    }
    sort(order, n);
    for (size_t k = 0; k < n; k++) {
        size_t i = order[k] & (((uintptr_t)1 << bits) - 1);
        const struct slot *s = i < SLOTS ? &slots[i] : &kept[i - SLOTS];
        uintptr_t from = (uintptr_t)s->p / page, to = ((uintptr_t)s->p + (s->n ? s->n - 1 : 0)) / page + 1;
        if (from < done) from = done;
        if (to > from) pages += to - from;
        if (to > done) done = to;
    }
    return pages * page;
}

/* Slabs whose upper part may have memory behind it and hold no block: of each class one a thread, if there are any. */
static size_t slabs_in_part(size_t heaps)
{
    static struct rows classes;
    size_t sum = 0;
    take_rows(&classes, "hak_class_table", "class");
    for (int i = 0; i < classes.count; i++) {
        uint64_t slabs = field("class", row(&classes, i), "slabs");
        sum += (slabs < heaps ? slabs : heaps) * class_slab[i];
    }
    return sum;
}

/* Blocks in caches, as hakmem counts them; a count that is taken while threads work may be off, but not beyond what
 * that many threads may have. */
static size_t caches(size_t heaps)
{
    static struct snapshot s;
    take_snapshot(&s);
    size_t bytes = of(&s, "cached_bytes") + of(&s, "transit_bytes"), most = heaps * thread_caches;
    return bytes < most ? bytes : most;
}

static void check_load(void)
{
    size_t peak = recent_peak(), most = peak + peak / 16;
    check_rss(LOAD, base_rss + 2 * most + 2 * (size_t)atomic_load(&retain_most) + caches(HEAPS) + slabs_in_part(HEAPS) +
                        metadata_bound());
}

static void take_turns_trimming(void)
{
    for (int round = 0; round < 2; round++) { /* what one sends in its first turn another finds in its second */
        for (int i = 0; i < LANES; i++) {
            pthread_mutex_lock(&gate.mutex);
            gate.turn = i;
            pthread_cond_broadcast(&gate.moved);
            while (gate.turn >= 0) pthread_cond_wait(&gate.moved, &gate.mutex);
            pthread_mutex_unlock(&gate.mutex);
        }
        malloc_trim(0);
    }
    atomic_fetch_add(&trims, 2 * (LANES + 1));
}

static void run_lane(struct lane *l)
{
    if (l->started) {
        CHECK(pthread_join(l->thread, NULL) == 0);
    } else {
        l->stack = own_pages(STACK);
        l->short_stack = own_pages(STACK);
        l->id = (unsigned)(l - lanes);
        l->seed = seed + l->id * 7919;
        memset(l->stack, 1, STACK); /* resident from the start, as a part of the base */
        memset(l->short_stack, 1, STACK);
    }
    l->started = 1;
    l->steps = l->id == BESIDE ? 200 : random_between(&l->seed, 20000, 80000);
    atomic_store(&l->ended, 0);
    start_thread(&l->thread, l->stack, l->id == BESIDE ? beside : work, l);
}

static void renew_lanes(void)
{
    for (int i = 0; i < LANES; i++)
        if (!lanes[i].started || atomic_load(&lanes[i].ended)) run_lane(&lanes[i]);
}

static void close_gate(void)
{
    atomic_store(&gate.closed, 1);
    for (int i = 0; i < LANES;) {
        renew_lanes();
        if (atomic_load(&lanes[i].parked)) i++;
        else sleep_ms(1);
    }
}

static void open_gate(void)
{
    pthread_mutex_lock(&gate.mutex);
    atomic_store(&gate.closed, 0);
    pthread_cond_broadcast(&gate.moved);
    pthread_mutex_unlock(&gate.mutex);
}

/* Everything stands still: every byte of every block, every count, every law. Returns the bytes of the slabs, runs and
 * whales that the blocks hold, each slab as often as it has blocks. */
static size_t check_everything(void)
{
    static struct snapshot s;
    static _Alignas(16) unsigned char owner[1024];
    size_t blocks = 0, bytes = 0, held = 0, size = record("owner")->size;
    CHECK(size <= sizeof owner, "%zu", size);
    for (size_t i = 0; i < SLOTS + KEPT; i++) {
        const struct slot *b = i < SLOTS ? &slots[i] : &kept[i - SLOTS];
        if (!b->p) continue;
        blocks++;
        check_contents(b, b->n, "standing still");
        if (owner_of(b->p, owner, size) || field("owner", owner, "base") != (uintptr_t)b->p ||
            strcmp(text_field("owner", owner, "state"), "live") != 0) {
            fault(BLOCKS, 1, "%zu bytes at %p: hakmem knows no such live block", b->n, (void *)b->p);
            continue;
        }
        uint64_t class = field("owner", owner, "class");
        bytes += class < CLASSES_MOST ? class_size[class] : field("owner", owner, "size");
        held += class < CLASSES_MOST ? class_slab[class] : field("owner", owner, "size");
    }
    if (blocks != atomic_load(&live_blocks))
        fault(BLOCKS, 1, "%zu blocks in the tables, %zu counted", blocks, atomic_load(&live_blocks));
    check_laws();
    take_snapshot(&s);
    size_t theirs = of(&s, "live_blocks") - base_blocks, their_bytes = of(&s, "live_bytes") - base_bytes;
    if (theirs != atomic_load(&live_blocks))
        fault(BLOCKS, 1, "live_blocks is %lld, ours %zu", (long long)theirs, atomic_load(&live_blocks));
    if (their_bytes != bytes) fault(BLOCKS, 1, "live_bytes is %lld, ours %zu", (long long)their_bytes, bytes);
    /* What hakmem says may be resident, is all that is. */
    check_rss(OWN, base_rss - base_metadata + of(&s, "committed_bytes") - of(&s, "free_clean_bytes") + 2 * MIB);
    return held;
}

/* Work for the clock to be looked at: slow paths, of 64-byte blocks. */
static void make_ticks(void)
{
    static void *p[4000];
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < COUNT_OF(p); i++) p[i] = malloc(64);
        for (size_t i = 0; i < COUNT_OF(p); i++) free(p[i]);
    }
}

static void idle(void)
{
    static struct snapshot s;
    size_t peak = recent_peak();
    close_gate();
    atomic_store(&phase, 3);
    set_option("purge_ms", 100);
    set_retain(8 << 20);
    make_ticks(); /* this thread may have lost its slabs while it slept: what its stacks held of them is free from now on */
    sleep_ms(250);
    make_ticks();
    size_t held = check_everything();
    take_snapshot(&s);
    if (held > peak + peak / 16) held = peak + peak / 16;
    size_t cached = of(&s, "cached_bytes") + of(&s, "transit_bytes");
    if (cached > RESTING * thread_caches) fault(RSS, 1, "%zu bytes in caches of %d threads", cached, RESTING);
    size_t unused = of(&s, "free_dirty_bytes") + of(&s, "kept_whale_bytes");
    if (unused > 4 * MIB) fault(RSS, 1, "%zu bytes were free for longer than purge_ms and are still kept", unused);
    check_rss(IDLE, base_rss + held + cached + slabs_in_part(RESTING) + metadata_bound());
    static void *leaked; /* not known to anybody: the counts show it */
    if (breaks("leak")) leaked = malloc(100);
    (void)leaked;
    static unsigned char *stolen; /* memory that no count shows */
    if (breaks("rss")) {
        stolen = own_pages(256 * MIB);
        memset(stolen, 1, 256 * MIB);
    }
    take_turns_trimming();
    check_everything();
    take_snapshot(&s);
    if (of(&s, "cached_bytes") || of(&s, "transit_bytes"))
        fault(RSS, 1, "after every thread has trimmed %llu bytes are in stacks, %llu on their way",
              (unsigned long long)of(&s, "cached_bytes"), (unsigned long long)of(&s, "transit_bytes"));
    check_rss(TRIM, base_rss + pages_of_blocks() + slabs_in_part(RESTING) + metadata_bound());
    if (atomic_load(&cycle) % 2 == 0) have_child(1, 1);
    open_gate();
}

static void say_state(void)
{
    static uint64_t last;
    uint64_t now = now_ms(), sum = 0;
    if (now - last < 1000) return;
    last = now;
    for (int i = 0; i < KINDS; i++) sum += atomic_load(&faults[i]);
    say("state %llu %llu %llu %llu %llu %zu %zu %zu %llu %s %zu\n", (unsigned long long)(now - started_ms),
            (unsigned long long)atomic_load(&operations), (unsigned long long)atomic_load(&threads),
            (unsigned long long)atomic_load(&forks), (unsigned long long)atomic_load(&trims), atomic_load(&live_bytes),
            atomic_load(&last_rss), atomic_load(&last_bound), (unsigned long long)sum, phases[atomic_load(&phase)],
            atomic_load(&live_blocks));
}

/* A phase: until it is over, dead lanes are replaced, and RSS looked at. */
static void run_phase(int which, size_t bytes, uint64_t ms, int until_there)
{
    uint64_t end = now_ms() + ms;
    atomic_store(&phase, which);
    atomic_store(&target, bytes);
    atomic_store(&draining, which == 2);
    for (int i = 0; now_ms() < end; i++) {
        size_t live = atomic_load(&live_bytes);
        if (until_there && (which == 2 ? live <= bytes : live >= bytes - bytes / 16)) break;
        renew_lanes();
        sleep_ms(10);
        if (i % 20 == 0) check_load();
        say_state();
    }
    atomic_store(&draining, 0);
}

static void run_cycle(size_t most, uint64_t ms)
{
    static const unsigned slots_of[] = {SLOTS / 4, SLOTS, SLOTS / 4, SLOTS / 64};
    unsigned kind = atomic_load(&cycle) % 4;
    size_t bytes = random_between(&seed, most / 3, most);
    atomic_store(&flavour, kind);
    atomic_store(&active, slots_of[kind]);
    atomic_store(&last_peak, atomic_load(&peak_bytes));
    atomic_store(&peak_bytes, atomic_load(&live_bytes));
    atomic_store(&retain_most, 64 << 20);
    run_phase(0, bytes, ms / 3, 1);
    run_phase(1, bytes, ms / 4, 0);
    close_gate();
    check_everything();
    if (atomic_load(&cycle) % 3 == 2) have_child(1, 0);
    open_gate();
    run_phase(2, most / 64, ms / 2, 1);
    idle();
    say_state();
    atomic_fetch_add(&cycle, 1);
}

static void prepare(void)
{
    static struct rows classes;
    static struct snapshot s;
    *(void **)&option_set = hak("hak_option_set");
    *(void **)&owner_of = hak("hak_owner_of");
    slots = own_pages(SLOTS * sizeof *slots);
    kept = own_pages(KEPT * sizeof *kept);
    memset(slots, 0, SLOTS * sizeof *slots);
    memset(kept, 0, KEPT * sizeof *kept);
    pages_of_blocks();
    take_rows(&classes, "hak_class_table", "class");
    CHECK(classes.count <= CLASSES_MOST, "%d", classes.count);
    for (int i = 0; i < classes.count; i++) {
        const void *r = row(&classes, i);
        class_size[i] = field("class", r, "size");
        class_slab[i] = field("class", r, "slab_bytes");
        thread_caches += (field("class", r, "max_cached") + 1) * class_size[i];
        thread_slabs += class_slab[i];
    }
    thread_caches += 17 * 256 * KIB; /* 16 batches for others, and an inbox */
    atomic_store(&gate.closed, 1);
    renew_lanes();
    close_gate();
    take_turns_trimming();
    take_snapshot(&s);
    base_blocks = of(&s, "live_blocks");
    base_bytes = of(&s, "live_bytes");
    base_metadata = of(&s, "metadata_bytes");
    base_rss = rss_bytes();
    open_gate();
}

int main(int argc, char **argv)
{
    CHECK(argc == 6);
    CHECK(about(), "hakmem is not loaded");
    seed = strtoull(argv[1], NULL, 10);
    uint64_t ms = strtoull(argv[2], NULL, 10), of_cycle = strtoull(argv[4], NULL, 10);
    size_t most = strtoull(argv[3], NULL, 10) * MIB;
    sabotage = argv[5];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    started_ms = now_ms();
    prepare();
    say("start %s %zu %zu %zu\n", about()->variant, base_rss, thread_caches, thread_slabs);
    while (now_ms() - started_ms < ms) run_cycle(most, of_cycle);
    close_gate();
    atomic_store(&target, 0);
    for (size_t i = 0; i < SLOTS; i++)
        if (slots[i].p) drop(&slots[i]);
    for (size_t i = 0; i < KEPT; i++)
        if (kept[i].p) drop(&kept[i]);
    take_turns_trimming();
    check_everything();
    check_rss(TRIM, base_rss + slabs_in_part(RESTING) + metadata_bound());
    for (size_t i = 0; i < COUNT_OF(bounds); i++)
        say("bound %s %zu %lld %zu %zu\n", bounds[i].name, bounds[i].times, (long long)bounds[i].margin,
                bounds[i].rss, bounds[i].bound);
    for (int i = 0; i < KINDS; i++)
        say("found %s %llu\n", kinds[i], (unsigned long long)atomic_load(&faults[i]));
    say("end %llu %llu %llu %llu %llu %llu %llu %llu %u\n", (unsigned long long)(now_ms() - started_ms),
            (unsigned long long)atomic_load(&operations), (unsigned long long)atomic_load(&threads),
            (unsigned long long)atomic_load(&forks), (unsigned long long)atomic_load(&trims),
            (unsigned long long)atomic_load(&snapshots), (unsigned long long)atomic_load(&settings),
            (unsigned long long)atomic_load(&verified), atomic_load(&cycle));
    uint64_t sum = 0;
    for (int i = 0; i < KINDS; i++) sum += atomic_load(&faults[i]);
    _exit(sum != 0);
}
