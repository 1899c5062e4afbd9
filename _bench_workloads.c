/* _bench_workloads: the programs that bench.py times, one per process, under whatever allocator is preloaded.
 *
 *     _bench_workloads WORKLOAD [key=value ...]        without arguments: the list of workloads and keys
 *
 * It prints one line of JSON: what was done, how long it took, the process's own peak RSS and page faults, and,
 * where hakmem is in the process (found by name, never linked), its counters. It knows nothing else of hakmem.
 *
 * Sections: keys · small helpers · pairs, calloc, burst · larson · the table of workloads · the report · main.
 * A new workload is a function that returns what it did, and a row in the table of workloads.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* ---- Keys: declared here once; the settings, the parser and the usage text come from this table ---- */

/*      type      name     default  min  max  help */
#define KEYS(KEY)                                                                                     \
    KEY(uint64_t, threads, 1,       1,    4096, "threads that run at the same time")                  \
    KEY(double,   seconds, 1,       1e-3, 3600, "how long to run (workloads bounded by time)")        \
    KEY(uint64_t, n,       1000000, 1,    1e15, "malloc+free pairs to do (workloads bounded by count)") \
    KEY(uint64_t, size,    64,      1,    1e9,  "bytes of a block (pairs, calloc, burst)")            \
    KEY(uint64_t, min,     8,       1,    1e9,  "smallest block (larson)")                            \
    KEY(uint64_t, max,     1024,    1,    1e9,  "largest block (larson)")                             \
    KEY(uint64_t, chunks,  10000,   1,    1e7,  "live blocks a thread (larson)")                      \
    KEY(uint64_t, rounds,  50,      1,    1e6,  "a thread hands on after rounds * chunks ops (larson)") \
    KEY(uint64_t, seed,    12345,   0,    1e15, "of the random numbers")

#define KEY(type, name, initial, low, high, help) type name;
static struct { KEYS(KEY) } key = {
#undef KEY
#define KEY(type, name, initial, low, high, help) .name = initial,
    KEYS(KEY)
#undef KEY
};

static const struct key_row {
    const char *name;
    void *value; /* a double if real, else a uint64_t */
    bool real;
    double initial, low, high;
    const char *help;
} KEY_TABLE[] = {
#define KEY(type, name, initial, low, high, help) \
    { #name, &key.name, _Generic(key.name, double: true, uint64_t: false), initial, low, high, help },
    KEYS(KEY)
#undef KEY
};
#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

/* ---- Small helpers ---- */

struct result {
    uint64_t ops; /* an op is one malloc and one free */
    double seconds;
};

__attribute__((format(printf, 1, 2))) _Noreturn static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("_bench_workloads: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *checked(void *p)
{
    if (p == NULL)
        die("out of memory");
    return p;
}

static pthread_t start_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, body, argument);
    if (error != 0)
        die("pthread_create: %s", strerror(error));
    return thread;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleep_seconds(double seconds)
{
    struct timespec left = { .tv_sec = (time_t)seconds };
    left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* The compiler may not remove an allocation whose address it has lost sight of. */
static inline void keep(void *p)
{
    __asm__ volatile("" : : "r"(p) : "memory");
}

static inline uint64_t random_next(uint64_t *state) /* xorshift64; the state is never 0 */
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static uint64_t random_seed(uint64_t stream) /* splitmix64 of seed and stream: neighbouring streams are unrelated */
{
    uint64_t x = key.seed + (stream + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    return x != 0 ? x : 1;
}

static inline uint64_t random_below(uint32_t bits, uint64_t bound) /* bound below 2^32: a multiplication, no division */
{
    return (bits * bound) >> 32;
}

/* ---- pairs, calloc, burst: loops whose instructions are counted, so nothing is in them that could be left out ---- */

static __attribute__((noinline)) void loop_pairs(uint64_t n, size_t size)
{
    for (; n != 0; n--) {
        void *p = malloc(size);
        keep(p);
        free(p);
    }
}

static __attribute__((noinline)) void loop_calloc(uint64_t n, size_t size)
{
    for (; n != 0; n--) {
        void *p = calloc(1, size);
        keep(p);
        free(p);
    }
}

enum { BURST = 64 };

static __attribute__((noinline)) void loop_burst(uint64_t bursts, size_t size)
{
    void *blocks[BURST];
    for (; bursts != 0; bursts--) {
        for (int i = 0; i < BURST; i++)
            blocks[i] = malloc(size);
        keep(blocks);
        for (int i = 0; i < BURST; i++)
            free(blocks[i]);
    }
}

static struct result time_loop(void (*loop)(uint64_t, size_t), uint64_t count, uint64_t pairs_each)
{
    double start = now();
    loop(count, key.size);
    return (struct result){ count * pairs_each, now() - start };
}

static struct result run_pairs(void)
{
    return time_loop(loop_pairs, key.n, 1);
}

static struct result run_calloc(void)
{
    return time_loop(loop_calloc, key.n, 1);
}

static struct result run_burst(void)
{
    return time_loop(loop_burst, (key.n + BURST - 1) / BURST, BURST);
}

/* ---- larson: a server, after the description by Larson and Krishnan (ISMM 1998) ----
 *
 * Each of `threads` chains owns an array of `chunks` blocks that the main thread has filled. A chain is one
 * thread at a time: it replaces random blocks of its array, then creates its successor, which goes on with the
 * same array, and exits. So blocks are freed by other threads than those that allocated them, and threads
 * come and go all the time.
 *
 *     main fills ──► thread 1 ──array──► thread 2 ──array──► ... until the time is over
 */

enum { STOP_CHECK = 128 }; /* ops between two looks at `stop` */

struct chain { /* belongs to the chain's running thread; main touches it only before the first and after the last */
    _Alignas(64) void **blocks;
    uint64_t random, ops;
    pthread_t previous; /* the thread that handed on, to be joined by its successor */
    bool has_previous;
};

static struct {
    atomic_bool stop;     /* main sets it; the threads only read */
    pthread_mutex_t lock; /* guards running */
    pthread_cond_t ended;
    uint64_t running; /* chains that have not ended */
} larson = { .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER };

static void *larson_block(uint64_t bits)
{
    size_t size = key.min + random_below((uint32_t)bits, key.max - key.min + 1);
    char *p = checked(malloc(size));
    p[0] = 1;
    p[size - 1] = 1;
    return p;
}

static void larson_replace(struct chain *chain, uint64_t ops)
{
    void **blocks = chain->blocks;
    uint64_t random = chain->random;
    for (uint64_t i = 0; i < ops; i++) {
        uint64_t bits = random_next(&random);
        void **slot = &blocks[random_below((uint32_t)(bits >> 32), key.chunks)];
        free(*slot);
        *slot = larson_block(bits);
    }
    chain->random = random;
    chain->ops += ops;
}

static void *larson_thread(void *argument)
{
    struct chain *chain = argument;
    uint64_t left = key.chunks * key.rounds;
    while (left != 0 && !atomic_load_explicit(&larson.stop, memory_order_relaxed)) {
        uint64_t ops = left < STOP_CHECK ? left : STOP_CHECK;
        larson_replace(chain, ops);
        left -= ops;
    }
    /* Joined only now, not at the start: the predecessor's exit runs beside this thread's work, as on a server. */
    if (chain->has_previous)
        pthread_join(chain->previous, NULL);
    chain->previous = pthread_self();
    chain->has_previous = true;
    if (left == 0) {
        start_thread(larson_thread, chain); /* from here on the chain belongs to the successor */
        return NULL;
    }
    pthread_mutex_lock(&larson.lock);
    larson.running--;
    pthread_cond_signal(&larson.ended);
    pthread_mutex_unlock(&larson.lock);
    return NULL;
}

static struct chain *larson_fill(void)
{
    struct chain *chains = checked(aligned_alloc(_Alignof(struct chain), key.threads * sizeof *chains));
    for (uint64_t t = 0; t < key.threads; t++)
        chains[t] = (struct chain){ .blocks = checked(calloc(key.chunks, sizeof(void *))), .random = random_seed(t) };
    uint64_t random = random_seed(key.threads);
    for (uint64_t i = 0; i < key.chunks; i++) /* in turn, so that neighbours in memory go to different threads */
        for (uint64_t t = 0; t < key.threads; t++)
            chains[t].blocks[i] = larson_block(random_next(&random));
    return chains;
}

static struct result run_larson(void)
{
    if (key.min > key.max)
        die("min=%llu is above max=%llu", (unsigned long long)key.min, (unsigned long long)key.max);
    struct chain *chains = larson_fill();
    larson.running = key.threads;
    struct result result = { 0, now() };
    for (uint64_t t = 0; t < key.threads; t++)
        start_thread(larson_thread, &chains[t]);
    sleep_seconds(key.seconds);
    atomic_store(&larson.stop, true);
    pthread_mutex_lock(&larson.lock);
    while (larson.running != 0)
        pthread_cond_wait(&larson.ended, &larson.lock);
    pthread_mutex_unlock(&larson.lock);
    result.seconds = now() - result.seconds;
    for (uint64_t t = 0; t < key.threads; t++) {
        pthread_join(chains[t].previous, NULL);
        result.ops += chains[t].ops;
    }
    return result;
}

/* ---- The table of workloads ---- */

static const struct workload {
    const char *name;
    struct result (*run)(void);
    const char *help;
} WORKLOADS[] = {
    { "larson", run_larson, "a server: random replacement, threads hand their blocks on" },
    { "pairs", run_pairs, "malloc, free" },
    { "calloc", run_calloc, "calloc, free" },
    { "burst", run_burst, "64 mallocs, then 64 frees" },
};

/* ---- The report ---- */

static const char *const HAKMEM_COUNTERS[] = {
    "allocs", "cache_misses", "shared_locks", "shared_locks_contended", "claims",
};

static const uint64_t UNKNOWN = UINT64_MAX; /* null in JSON; also hak_stat's answer for a name it does not have */

typedef uint64_t stat_function(const char *name);

static stat_function *find_hak_stat(void) /* NULL where hakmem is not in the process */
{
    stat_function *function;
    void *symbol = dlsym(RTLD_DEFAULT, "hak_stat");
    memcpy(&function, &symbol, sizeof function); /* ISO C has no cast from void * to a function */
    return function;
}

static uint64_t peak_rss(void) /* not ru_maxrss: exec hands that on from the parent */
{
    char line[256];
    unsigned long long kib = 0;
    bool found = false;
    FILE *status = fopen("/proc/self/status", "r");
    if (status == NULL)
        return UNKNOWN;
    while (!found && fgets(line, sizeof line, status) != NULL)
        found = sscanf(line, "VmHWM: %llu kB", &kib) == 1;
    fclose(status);
    return found ? kib * 1024 : UNKNOWN;
}

static uint64_t page_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

static void print_field(const char *name, uint64_t value)
{
    if (value == UNKNOWN)
        printf(", \"%s\": null", name);
    else
        printf(", \"%s\": %llu", name, (unsigned long long)value);
}

static void report(const struct workload *workload, struct result result)
{
    stat_function *hak_stat = find_hak_stat();
    uint64_t counters[COUNT_OF(HAKMEM_COUNTERS)];
    for (size_t i = 0; i < COUNT_OF(counters); i++) /* before anything below allocates */
        counters[i] = hak_stat != NULL ? hak_stat(HAKMEM_COUNTERS[i]) : UNKNOWN;
    uint64_t faults = page_faults(), rss = peak_rss();
    double ns_per_op = result.ops != 0 ? result.seconds * 1e9 / (double)result.ops : 0;
    printf("{\"workload\": \"%s\"", workload->name);
    print_field("threads", key.threads);
    print_field("ops", result.ops);
    printf(", \"seconds\": %.6f, \"ns_per_op\": %.4f", result.seconds, ns_per_op);
    print_field("peak_rss_bytes", rss);
    print_field("faults", faults);
    for (size_t i = 0; i < COUNT_OF(counters); i++)
        print_field(HAKMEM_COUNTERS[i], counters[i]);
    puts("}");
}

/* ---- main ---- */

_Noreturn static void usage(void)
{
    fputs("usage: _bench_workloads WORKLOAD [key=value ...]\n\nworkloads:\n", stderr);
    for (size_t i = 0; i < COUNT_OF(WORKLOADS); i++)
        fprintf(stderr, "  %-13s %s\n", WORKLOADS[i].name, WORKLOADS[i].help);
    fputs("\nkeys:\n", stderr);
    for (size_t i = 0; i < COUNT_OF(KEY_TABLE); i++)
        fprintf(stderr, "  %-13s %s (default %g)\n", KEY_TABLE[i].name, KEY_TABLE[i].help, KEY_TABLE[i].initial);
    exit(2);
}

static const struct workload *find_workload(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(WORKLOADS); i++)
        if (strcmp(WORKLOADS[i].name, name) == 0)
            return &WORKLOADS[i];
    die("no workload is called %s; run it without arguments for the list", name);
}

static const struct key_row *find_key(const char *name, size_t length)
{
    for (size_t i = 0; i < COUNT_OF(KEY_TABLE); i++)
        if (strlen(KEY_TABLE[i].name) == length && strncmp(KEY_TABLE[i].name, name, length) == 0)
            return &KEY_TABLE[i];
    die("no key is called %.*s; run it without arguments for the list", (int)length, name);
}

static void set_key(const char *argument)
{
    const char *text = argument + strcspn(argument, "=");
    const struct key_row *row = find_key(argument, (size_t)(text - argument));
    text += *text == '=';
    char *end = NULL;
    uint64_t whole = strtoull(text, &end, 10);
    double real = row->real ? strtod(text, &end) : (double)whole;
    if (end == text || *end != '\0' || *text == '-' || !(real >= row->low && real <= row->high))
        die("%s: a %snumber from %g to %g is needed", argument, row->real ? "" : "whole ", row->low, row->high);
    if (row->real)
        *(double *)row->value = real;
    else
        *(uint64_t *)row->value = whole;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        usage();
    const struct workload *workload = find_workload(argv[1]);
    for (int i = 2; i < argc; i++)
        set_key(argv[i]);
    report(workload, workload->run());
    return fflush(stdout) == 0 ? 0 : 1;
}
