/* Threads that free one another's blocks, sleep, die and hand blocks on; one case a run. Contents are checked
 * wherever a block changes hands, and memory is bounded by RSS. An optional second argument is a number of threads. */
#include "common.h"
#include <stdatomic.h>

struct block {
    uint32_t n, key;
    unsigned char data[];
};

static int requested_threads = 4;

static struct block *make(uint64_t *seed, size_t low, size_t high)
{
    size_t n = random_between(seed, low, high);
    struct block *b = malloc(sizeof *b + n);
    CHECK(b, "%zu", n);
    b->n = (uint32_t)n;
    b->key = (uint32_t)next_random(seed);
    pattern_write(b->data, n, b->key);
    return b;
}

static void consume(struct block *b)
{
    size_t wrong = pattern_wrong(b->data, b->n, b->key, b->n);
    CHECK(wrong == SIZE_MAX, "%p of %u bytes: byte %zu", (void *)b, b->n, wrong);
    free(b);
}

static pthread_t start(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    int code = pthread_create(&thread, NULL, run, argument);
    CHECK(code == 0, "%d", code);
    return thread;
}

static void join(pthread_t thread)
{
    int code = pthread_join(thread, NULL);
    CHECK(code == 0, "%d", code);
}

static void *as_argument(size_t i)
{
    return (void *)(uintptr_t)i;
}

/* ---- a bounded queue */

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t head, tail;
    void *slots[512];
};
#define QUEUE_INIT {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, {0}}

static void put(struct queue *q, void *p)
{
    pthread_mutex_lock(&q->lock);
    while (q->tail - q->head == COUNT_OF(q->slots)) pthread_cond_wait(&q->changed, &q->lock);
    q->slots[q->tail++ % COUNT_OF(q->slots)] = p;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

static void *get(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    while (q->tail == q->head) pthread_cond_wait(&q->changed, &q->lock);
    void *p = q->slots[q->head++ % COUNT_OF(q->slots)];
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    return p;
}

/* ---- producers and consumers: batches of blocks of all tiers */

enum { BATCH = 64 };
static struct queue shared = QUEUE_INIT;

static void *produce(void *argument)
{
    uint64_t seed = (uintptr_t)argument + 1;
    for (int round = 0; round < 800; round++) {
        struct block **batch = malloc(BATCH * sizeof *batch);
        for (int i = 0; i < BATCH; i++) {
            size_t r = random_between(&seed, 0, 999);
            batch[i] = make(&seed, 0, r < 800 ? KIB : r < 995 ? 32 * KIB : 500 * KIB);
        }
        if (round % 400 == 399) free(batch[0]), batch[0] = make(&seed, 2 * MIB, 70 * MIB);
        put(&shared, batch);
    }
    return NULL;
}

static void *drain(void *argument)
{
    for (struct block **batch; (batch = get(&shared));) {
        for (int i = 0; i < BATCH; i++) consume(batch[i]);
        free(batch);
    }
    return argument;
}

static void producers_and_consumers(void)
{
    pthread_t makers[2], takers[2];
    struct snapshot *before = own_pages(sizeof *before), *after = own_pages(sizeof *after);
    if (about()) take_snapshot(before);
    for (size_t i = 0; i < 2; i++) makers[i] = start(produce, as_argument(i)), takers[i] = start(drain, NULL);
    for (size_t i = 0; i < 2; i++) join(makers[i]);
    for (size_t i = 0; i < 2; i++) put(&shared, NULL);
    for (size_t i = 0; i < 2; i++) join(takers[i]);
    CHECK(rss_bytes() < 200 * MIB, "%zu KiB", rss_bytes() / KIB);
    if (!about()) return;
    check_laws();
    take_snapshot(after);
    /* libc keeps a dtv or two of the threads' own, no more */
    CHECK(of(after, "live_blocks") - of(before, "live_blocks") + 8 <= 32, "%lld",
          (long long)(of(after, "live_blocks") - of(before, "live_blocks")));
    int (*get_option)(const char *, int64_t *);
    int64_t caches = 0;
    *(void **)&get_option = hak("hak_option_get");
    CHECK(get_option("enable_tls", &caches) == 0);
    if (caches)
        CHECK(of(after, "remote_frees") - of(before, "remote_frees") > 10000, "%llu",
              (unsigned long long)of(after, "remote_frees"));
}

/* ---- owners that only sleep: what others free of theirs must come back to use */

enum { OWNED = 40000, BLOCK = 1000 }; /* 40 MB an owner */
static void *owned[OWNED];
static pthread_barrier_t handed;
static struct queue never = QUEUE_INIT;

static void *own_then_sleep(void *argument)
{
    for (int i = 0; i < OWNED; i++) memset(owned[i] = malloc(BLOCK), i, BLOCK);
    pthread_barrier_wait(&handed);
    get(&never);
    return argument;
}

static void owners_that_sleep(void)
{
    pthread_barrier_init(&handed, NULL, 2);
    size_t before = rss_bytes(), most = 0;
    for (int owner = 0; owner < 12; owner++) {
        start(own_then_sleep, NULL);
        pthread_barrier_wait(&handed);
        if (rss_bytes() > most) most = rss_bytes();
        for (int i = 0; i < OWNED; i++) free(owned[i]);
    }
    CHECK(most < before + 120 * MIB, "12 sleeping owners, 40 MB alive: %zu KiB at most", (most - before) / KIB);
}

/* ---- a thread that once allocated and from then on only frees */

static struct queue to_freer = QUEUE_INIT;

static void *own_then_free(void *argument)
{
    for (int i = 0; i < OWNED; i++) memset(owned[i] = malloc(BLOCK), i, BLOCK);
    pthread_barrier_wait(&handed);
    for (void *p; (p = get(&to_freer));) free(p);
    return argument;
}

static void free_only_thread(void)
{
    pthread_barrier_init(&handed, NULL, 2);
    size_t before = rss_bytes(), most = 0;
    pthread_t freer = start(own_then_free, NULL);
    pthread_barrier_wait(&handed);
    for (int i = 0; i < OWNED; i++) free(owned[i]);
    for (int i = 0; i < 600000; i++) { /* 600 MB pass through */
        char *p = malloc(BLOCK);
        memset(p, i, BLOCK);
        put(&to_freer, p);
        if (i % 4096 == 0 && rss_bytes() > most) most = rss_bytes();
    }
    for (int i = 0; i < OWNED; i++) memset(owned[i] = malloc(BLOCK), i, BLOCK);
    if (rss_bytes() > most) most = rss_bytes();
    put(&to_freer, NULL);
    join(freer);
    CHECK(most < before + 100 * MIB, "%zu KiB at most", (most - before) / KIB);
}

/* ---- 20,000 short-lived threads, each leaving blocks behind for the main thread */

enum { LEFT = 20, AT_ONCE = 50 };
static struct block *left[AT_ONCE][LEFT];

static void *short_lived(void *argument)
{
    size_t me = (uintptr_t)argument;
    uint64_t seed = me;
    void *own[LEFT];
    for (int i = 0; i < LEFT; i++) {
        left[me][i] = make(&seed, 0, i == 0 ? 100 * KIB : i < 5 ? 8 * KIB : 500);
        own[i] = malloc(random_between(&seed, 0, i == 0 ? 300 * KIB : 2000));
    }
    for (int i = 0; i < LEFT; i++) free(own[i]);
    return NULL;
}

static void short_lived_threads(void)
{
    int batches = requested_threads > 1000 ? requested_threads / AT_ONCE : 20000 / AT_ONCE;
    size_t most[2] = {0, 0}; /* in the first half of the threads, and in the second */
    for (int batch = 0; batch < batches; batch++) {
        pthread_t threads[AT_ONCE];
        for (size_t i = 0; i < AT_ONCE; i++) threads[i] = start(short_lived, as_argument(i));
        for (size_t i = 0; i < AT_ONCE; i++) join(threads[i]);
        for (int i = 0; i < AT_ONCE; i++)
            for (int j = 0; j < LEFT; j++) consume(left[i][j]);
        if (batch % 5 == 0) {
            size_t rss = rss_bytes(), *peak = &most[batch >= batches / 2];
            if (rss > *peak) *peak = rss;
        }
    }
    CHECK(most[1] < most[0] + 8 * MIB, "at most %zu KiB, then %zu", most[0] / KIB, most[1] / KIB);
    if (!about()) return;
    struct snapshot *s = own_pages(sizeof *s);
    check_laws();
    take_snapshot(s);
    CHECK(of(s, "threads_exited") >= (uint64_t)batches * AT_ONCE, "%llu", (unsigned long long)of(s, "threads_exited"));
    CHECK(of(s, "heaps") <= 4 * AT_ONCE, "%llu heaps", (unsigned long long)of(s, "heaps"));
}

/* ---- destructors of thread data: the allocator's own runs somewhere between these, and then others again */

enum { KEYS = 20, ROUNDS = 3 };
static pthread_key_t keys[KEYS];
static atomic_long destroyed;

struct in_key {
    struct block *block;
    int round, key;
};

static void destructor(void *argument)
{
    struct in_key *k = argument;
    uint64_t seed = (uint64_t)k->key;
    consume(k->block);
    for (size_t n = 1; n < 300 * KIB; n *= 3) {
        void *p = realloc(calloc(1, n), n * 2);
        CHECK(p, "%zu", n);
        free(p);
    }
    atomic_fetch_add(&destroyed, 1);
    if (++k->round < ROUNDS) { /* set again: the destructors go round once more */
        k->block = make(&seed, 0, 3000);
        CHECK(pthread_setspecific(keys[k->key], k) == 0);
    } else {
        free(k);
    }
}

/* before main, so that some of the keys are older than anything the allocator makes on its first slow path */
__attribute__((constructor)) static void early_keys(void)
{
    for (int i = 0; i < KEYS / 2; i++) pthread_key_create(&keys[i], destructor);
}

static void *with_keys(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    for (int i = 0; i < KEYS; i++) {
        struct in_key *k = malloc(sizeof *k);
        *k = (struct in_key){make(&seed, 0, 5000), 0, i};
        CHECK(pthread_setspecific(keys[i], k) == 0);
    }
    return NULL;
}

static void thread_data_destructors(void)
{
    enum { THREADS = 1000 };
    for (int i = KEYS / 2; i < KEYS; i++) CHECK(pthread_key_create(&keys[i], destructor) == 0);
    struct snapshot *before = own_pages(sizeof *before), *after = own_pages(sizeof *after);
    size_t early = 0;
    for (size_t i = 0; i < THREADS; i += 2) {
        if (i == 200) {
            early = rss_bytes();
            if (about()) take_snapshot(before);
        }
        pthread_t a = start(with_keys, as_argument(i)), b = start(with_keys, as_argument(i + 1));
        join(a);
        join(b);
    }
    CHECK(atomic_load(&destroyed) == THREADS * KEYS * ROUNDS, "%ld", atomic_load(&destroyed));
    CHECK(rss_bytes() < early + 8 * MIB, "%zu KiB, then %zu", early / KIB, rss_bytes() / KIB);
    if (!about()) return;
    check_laws();
    take_snapshot(after);
    CHECK(of(after, "live_blocks") - of(before, "live_blocks") + 8 <= 16, "%lld",
          (long long)(of(after, "live_blocks") - of(before, "live_blocks")));
    CHECK(of(after, "heaps") <= of(before, "heaps") + 4, "%llu heaps, then %llu",
          (unsigned long long)of(before, "heaps"), (unsigned long long)of(after, "heaps"));
}

/* ---- threads that hand all their blocks on to a successor: larson's way, contents checked */

enum { CHUNKS = 1000, GENERATIONS = 12, LANES = 64 };
static struct block *chunks[LANES][CHUNKS];
static int generation[LANES];
static struct queue finished = QUEUE_INIT;

static void *hand_on(void *argument)
{
    size_t lane = (uintptr_t)argument;
    uint64_t seed = lane * 1000 + (uint64_t)generation[lane];
    for (int i = 0; i < 5000; i++) {
        struct block **slot = &chunks[lane][random_between(&seed, 0, CHUNKS - 1)];
        if (*slot) consume(*slot);
        size_t r = random_between(&seed, 0, 999);
        *slot = make(&seed, 0, r < 990 ? KIB : r < 999 ? 32 * KIB : 200 * KIB);
    }
    if (++generation[lane] < GENERATIONS) {
        pthread_t next;
        int code;
        while ((code = pthread_create(&next, NULL, hand_on, argument)) == EAGAIN) sleep_ms(1);
        CHECK(code == 0, "%d", code);
        pthread_detach(next);
    } else {
        put(&finished, argument);
    }
    return NULL;
}

static void threads_hand_blocks_on(void)
{
    CHECK(requested_threads <= LANES);
    for (int i = 0; i < requested_threads; i++) pthread_detach(start(hand_on, as_argument((size_t)i)));
    for (int i = 0; i < requested_threads; i++) get(&finished);
    for (int lane = 0; lane < requested_threads; lane++)
        for (int i = 0; i < CHUNKS; i++)
            if (chunks[lane][i]) consume(chunks[lane][i]);
    dprintf(1, "%d threads\n", requested_threads);
}

/* ---- statistics read while threads run: no count goes backwards, none is absurd */

static atomic_int stop;

static void *churn(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    struct block *mine[100] = {0};
    while (!atomic_load(&stop)) {
        struct block **slot = &mine[random_between(&seed, 0, 99)];
        if (*slot) consume(*slot);
        *slot = make(&seed, 0, random_between(&seed, 0, 99) ? 2000 : 100 * KIB);
    }
    for (int i = 0; i < 100; i++)
        if (mine[i]) consume(mine[i]);
    return NULL;
}

static void statistics_while_threads_run(void)
{
    static const char *const never_back[] = {"allocs",       "frees",          "cache_hits",     "cache_misses", "refills",
                                             "flushes",      "remote_frees",   "batches_posted", "claims",       "shared_locks",
                                             "purged_bytes", "threads_exited", "slabs_adopted",  "peak_in_use_bytes"};
    if (!about()) return;
    struct snapshot *a = own_pages(sizeof *a), *b = own_pages(sizeof *b);
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) threads[i] = start(churn, as_argument(i));
    take_snapshot(a);
    for (int i = 0; i < 20000; i++) {
        take_snapshot(b);
        for (size_t f = 0; f < COUNT_OF(never_back); f++)
            CHECK(of(b, never_back[f]) >= of(a, never_back[f]), "%s went from %llu to %llu", never_back[f],
                  (unsigned long long)of(a, never_back[f]), (unsigned long long)of(b, never_back[f]));
        CHECK(of(b, "transit_bytes") < 1000 * MIB && of(b, "live_bytes") < 1000 * MIB && of(b, "cached_bytes") < 1000 * MIB,
              "%llu in transit, %llu live, %llu cached", (unsigned long long)of(b, "transit_bytes"),
              (unsigned long long)of(b, "live_bytes"), (unsigned long long)of(b, "cached_bytes"));
        struct snapshot *t = a;
        a = b;
        b = t;
        if (i % 1000 == 0) sleep_ms(2), malloc_trim(0);
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < 4; i++) join(threads[i]);
    check_laws();
}

/* ---- threads that use a little and end, one after the other: each goes on with the slabs of the one before */

static void *use_a_little(void *argument)
{
    void *blocks[50];
    for (size_t i = 0; i < COUNT_OF(blocks); i++) blocks[i] = malloc(16 + 20 * i);
    for (size_t i = 0; i < COUNT_OF(blocks); i++) free(blocks[i]);
    return argument;
}

static uint64_t slabs_made_for(int threads)
{
    static struct snapshot s;
    take_snapshot(&s);
    uint64_t before = of(&s, "slabs_new");
    for (int i = 0; i < threads; i++) join(start(use_a_little, NULL));
    take_snapshot(&s);
    return of(&s, "slabs_new") - before;
}

static void the_few_slabs_of_a_thread_are_the_next_one_s(void)
{
    int (*get_option)(const char *, int64_t *), (*set_option)(const char *, int64_t);
    int64_t caches = 0, shared = 0;
    if (!about()) return;
    *(void **)&get_option = hak("hak_option_get");
    *(void **)&set_option = hak("hak_option_set");
    CHECK(get_option("enable_tls", &caches) == 0 && get_option("tiny_use_superslab", &shared) == 0);
    if (!caches || !shared) return;
    slabs_made_for(10);
    uint64_t made = slabs_made_for(100);
    CHECK(made < 100, "%llu", (unsigned long long)made); /* a thread alone needs forty */
    CHECK(set_option("retain", 0) == 0); /* nothing is to be kept */
    made = slabs_made_for(100);
    CHECK(made >= 100, "%llu", (unsigned long long)made);
    check_laws();
}

static const struct test_case CASES[] = {
    CASE(producers_and_consumers), CASE(owners_that_sleep),       CASE(free_only_thread),
    CASE(short_lived_threads),     CASE(thread_data_destructors), CASE(threads_hand_blocks_on),
    CASE(statistics_while_threads_run), CASE(the_few_slabs_of_a_thread_are_the_next_one_s),
};

int main(int argc, char **argv)
{
    if (argc > 2) requested_threads = atoi(argv[2]);
    int code = run_case(argc, argv, CASES, COUNT_OF(CASES));
    fflush(stdout);
    _exit(code); /* some threads sleep for ever */
}
