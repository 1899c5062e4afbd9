/* _bench_workloads: the programs that bench.py times, one per process, under whatever allocator is preloaded.
 *
 *     _bench_workloads WORKLOAD [key=value ...]        without arguments: the list of workloads and keys
 *
 * It prints one line of JSON: what was done, how long it took, the process's own peak RSS, whose malloc it called,
 * page faults and, where hakmem is in the process (found by name, never linked), its counters. It knows nothing else
 * of hakmem. Before the clock starts, each workload reaches its usual state, as far as that takes no threads that hand
 * on (larson has its blocks, prodcons nothing); faults and counters are those since then.
 *
 * A block's first and last byte, and one in each `touch` bytes between, are written when it is made (all of it in
 * those workloads whose text says so); the first and the last are compared before it is freed, and a difference ends
 * the run. What the workloads themselves need is mapped, so that it is no part of what is measured.
 *
 * Sections: keys · small helpers · blocks · latencies · what is counted from the start of the clock · teams of
 * threads · pairs, calloc, burst · replacement (mixed, mid, large) · larson · requests (scenario-json and so on) ·
 * prodcons · churn · realloc · lookup · caches (hot-class and so on) · first calls · strewn · phases · handoff ·
 * short teams (stress, leak) · passes · pareto, skewed · simple, big-one, scratch · numbers · the table of workloads ·
 * the report · main. A new workload is a function that returns what it did, and a row in the table.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* ---- Keys: declared here once; the settings, the parser and the usage text come from this table ---- */

/*      type      name       default  min   max   help; a workload's row may preset others */
#define KEYS(KEY)                                                                                             \
	KEY(uint64_t, threads,   1,       1,    4096, "threads that run at the same time")                        \
	KEY(double,   seconds,   1,       1e-3, 3600, "how long to run")                                          \
	KEY(uint64_t, n,         1000000, 1,    1e15, "malloc+free pairs to do")                                  \
	KEY(uint64_t, size,      64,      1,    1e9,  "bytes of a block")                                         \
	KEY(uint64_t, min,       16,      1,    1e9,  "smallest block")                                           \
	KEY(uint64_t, max,       1024,    1,    1e9,  "largest block")                                            \
	KEY(uint64_t, doublings, 0,       0,    30,   "0: sizes even from min to max; else over so many doublings of min") \
	KEY(uint64_t, slots,     8192,    1,    1e7,  "live blocks a thread (prodcons: in its ring)")             \
	KEY(uint64_t, warm,      8,       0,    1e6,  "so many times slots ops before the clock starts")          \
	KEY(uint64_t, touch,     4096,    1,    1e9,  "bytes from one write to the next in a new block; 1000000000: its ends only") \
	KEY(uint64_t, step,      64,      1,    1e9,  "bytes appended at a time, on average")                     \
	KEY(uint64_t, rounds,    50,      1,    1e6,  "a thread hands on after rounds * slots ops")               \
	KEY(uint64_t, phase,   33554432, 1,   1e10, "strewn: bytes that are live in a phase")                     \
	KEY(uint64_t, apart,   8192,    1,    1e9,  "strewn: bytes from one block that stays to the next")        \
	KEY(uint64_t, period,    500,     1,    1e6,  "ms until the next phase")                                  \
	KEY(uint64_t, json,      0,       0,    1000, "share of json among the requests")                         \
	KEY(uint64_t, mir,       0,       0,    1000, "share of mir among the requests")                          \
	KEY(uint64_t, vm,        0,       0,    1000, "share of vm among the requests")                           \
	KEY(uint64_t, slabs,     32,      1,    65536, "slabs of 64 KiB that pointers are looked up in")           \
	KEY(uint64_t, repeat,    0,       0,    1,    "0: random pointers; 1: one pointer again and again")       \
	KEY(uint64_t, seed,      12345,   0,    1e15, "of the random numbers")

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

static const uint64_t UNKNOWN = UINT64_MAX; /* null in JSON; also hak_stat's answer for a name it does not have */

struct result {
	uint64_t ops; /* an op is one malloc and one free, unless the table of workloads says otherwise */
	double seconds;
	uint64_t p50, p95, p99; /* nanoseconds of an op; 0 where ops are not timed one by one */
	uint64_t handovers;     /* larson: threads that another went on for; else UNKNOWN */
	uint64_t cached_bytes;  /* caches: mean of what stood in hakmem's thread caches; else UNKNOWN */
};

__attribute__((format(printf, 1, 2))) _Noreturn static void die(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	flockfile(stderr); /* for good: who fails next must not begin a line before this one has ended the process */
	fputs("_bench_workloads: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	fflush(stderr);
	_exit(1); /* the other threads are still running: nothing may be taken down under them */
}

static void *checked(void *p)
{
	if (p == NULL)
		die("out of memory");
	return p;
}

static void *map(size_t bytes) /* zeroed, and not from the allocator under test */
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		die("mmap: %s", strerror(errno));
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

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double seconds_since(uint64_t start_ns)
{
	return (double)(now_ns() - start_ns) * 1e-9;
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

/* ---- Blocks ---- */

struct block { /* what a workload remembers of a block; bytes is NULL where there is none */
	unsigned char *bytes;
	uint32_t size;
	unsigned char mark; /* random, so that a block handed out twice is noticed */
};

static inline size_t random_size(uint64_t bits) /* uses the low half; with doublings, a mixture of both */
{
	uint64_t low = key.min, high = key.max;
	if (key.doublings != 0) {
		low <<= random_below((uint32_t)((bits * 0x9E3779B97F4A7C15u) >> 32), key.doublings);
		high = low * 2 - 1 < high ? low * 2 - 1 : high;
	}
	return low + random_below((uint32_t)bits, high - low + 1);
}

static inline struct block block_make(size_t size, unsigned char mark)
{
	struct block block = { checked(malloc(size)), (uint32_t)size, mark };
	for (size_t at = 0; at < size; at += key.touch)
		block.bytes[at] = mark;
	block.bytes[size - 1] = mark;
	return block;
}

static inline struct block block_full(size_t size, unsigned char mark) /* written from end to end */
{
	struct block block = { checked(malloc(size)), (uint32_t)size, mark };
	memset(block.bytes, mark, size);
	keep(block.bytes);
	return block;
}

static inline struct block block_random(uint64_t bits) /* the lowest bits choose neither size nor slot */
{
	return block_make(random_size(bits), (unsigned char)bits);
}

static inline void block_check(const struct block *block)
{
	if (block->bytes[0] != block->mark || block->bytes[block->size - 1] != block->mark)
		die("the contents of a block of %lu bytes at %p have changed", (unsigned long)block->size, (void *)block->bytes);
}

static inline void block_free(struct block *block)
{
	if (block->bytes == NULL)
		return;
	block_check(block);
	free(block->bytes);
	block->bytes = NULL;
}

/* ---- Latencies: counted in buckets of at most 1/64 of their value, so that a fast allocator, which makes more
 * samples, does not need more memory for them ---- */

enum { FINE = 6, BUCKETS = (64 - FINE + 1) << FINE };

static inline size_t bucket_of(uint64_t ns)
{
	if (ns < 1u << FINE)
		return ns;
	unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - FINE;
	return ((size_t)shift << FINE) + (size_t)(ns >> shift);
}

static uint64_t bucket_middle(size_t bucket) /* the inverse of bucket_of */
{
	if (bucket < 2u << FINE)
		return bucket;
	unsigned shift = (unsigned)(bucket >> FINE) - 1;
	uint64_t low = ((uint64_t)(bucket & ((1u << FINE) - 1)) + (1u << FINE)) << shift;
	return low + (UINT64_C(1) << shift) / 2;
}

static uint64_t percentile(const uint64_t *buckets, uint64_t total, uint64_t percent)
{
	uint64_t seen = 0;
	for (size_t i = 0; i < BUCKETS; i++) {
		seen += buckets[i];
		if (seen * 100 >= total * percent)
			return bucket_middle(i);
	}
	return 0;
}

/* ---- What is counted from the start of the clock: page faults, and hakmem's counters where it is in the process ---- */

static const char *const COUNTED[] = {
	"faults", "allocs", "cache_hits", "shared_locks", "shared_locks_contended", "claims", "big_hits", "big_misses",
};
enum { COUNTS = sizeof COUNTED / sizeof COUNTED[0] };

static uint64_t at_start[COUNTS];

typedef uint64_t stat_function(const char *name);

static stat_function *find_hak_stat(void) /* NULL where hakmem is not in the process */
{
	stat_function *function;
	void *symbol = dlsym(RTLD_DEFAULT, "hak_stat");
	memcpy(&function, &symbol, sizeof function); /* ISO C has no cast from void * to a function */
	return function;
}

static void count(uint64_t *counts)
{
	stat_function *hak_stat = find_hak_stat();
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	counts[0] = (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
	for (size_t i = 1; i < COUNTS; i++)
		counts[i] = hak_stat != NULL ? hak_stat(COUNTED[i]) : UNKNOWN;
}

/* ---- Teams of threads: all prepare, start to work together, and stop when the time is over ---- */

enum { STOP_CHECK = 16 }; /* ops between two looks at `stop`; an op on the largest blocks takes a millisecond */

struct worker { /* belongs to its thread while that runs */
	_Alignas(64) struct block *blocks; /* its working set */
	uint64_t random, ops, start_ns;
	size_t index;
	pthread_t thread;
	uint64_t handovers;         /* larson */
	struct document *documents; /* requests: what is kept, by kind */
	uint64_t *served;           /* requests: how many, by kind */
	uint64_t *latencies;        /* requests: how often each bucket was hit */
};

static struct {
	atomic_bool stop; /* main sets it; the threads only read */
	bool watched;     /* the caches are looked at while the threads run */
	void (*prepare)(struct worker *); /* may be NULL */
	void (*work)(struct worker *);
	pthread_barrier_t meet; /* of every thread and main: when all have prepared, and when main has counted */
} team;

static inline bool stopped(void)
{
	return atomic_load_explicit(&team.stop, memory_order_relaxed);
}

static void *team_thread(void *argument)
{
	struct worker *worker = argument;
	if (team.prepare != NULL)
		team.prepare(worker);
	worker->ops = 0;
	pthread_barrier_wait(&team.meet);
	pthread_barrier_wait(&team.meet);
	worker->start_ns = now_ns();
	team.work(worker);
	return NULL;
}

static struct worker *make_workers(void)
{
	struct worker *workers = map(key.threads * sizeof *workers);
	for (size_t i = 0; i < key.threads; i++)
		workers[i] = (struct worker){
			.blocks = map(key.slots * sizeof *workers[i].blocks),
			.random = random_seed(i),
			.index = i,
		};
	return workers;
}

static uint64_t watch_caches(double seconds) /* the mean of a look every 10 ms; UNKNOWN without hakmem */
{
	stat_function *hak_stat = find_hak_stat();
	uint64_t start = now_ns(), sum = 0, looks = 0;
	if (hak_stat == NULL) {
		sleep_seconds(seconds);
		return UNKNOWN;
	}
	do {
		sleep_seconds(0.01);
		sum += hak_stat("cached_bytes");
		looks++;
	} while (seconds_since(start) < seconds);
	return sum / looks;
}

static struct result sum_up(const struct worker *workers, double seconds)
{
	struct result result = { .seconds = seconds, .handovers = UNKNOWN, .cached_bytes = UNKNOWN };
	uint64_t *latencies = map(BUCKETS * sizeof *latencies), timed = 0;
	for (size_t t = 0; t < key.threads; t++) {
		result.ops += workers[t].ops;
		for (size_t i = 0; workers[t].latencies != NULL && i < BUCKETS; i++) {
			latencies[i] += workers[t].latencies[i];
			timed += workers[t].latencies[i];
		}
	}
	if (timed != 0) {
		result.p50 = percentile(latencies, timed, 50);
		result.p95 = percentile(latencies, timed, 95);
		result.p99 = percentile(latencies, timed, 99);
	}
	return result;
}

static struct result run_team(void (*prepare)(struct worker *), void (*work)(struct worker *))
{
	struct worker *workers = make_workers();
	team.prepare = prepare;
	team.work = work;
	pthread_barrier_init(&team.meet, NULL, (unsigned)key.threads + 1);
	for (size_t i = 0; i < key.threads; i++)
		workers[i].thread = start_thread(team_thread, &workers[i]);
	pthread_barrier_wait(&team.meet);
	count(at_start);
	pthread_barrier_wait(&team.meet);
	uint64_t cached = UNKNOWN;
	if (team.watched)
		cached = watch_caches(key.seconds);
	else
		sleep_seconds(key.seconds);
	atomic_store(&team.stop, true);
	uint64_t start = UINT64_MAX; /* of the first: where cores are few, this thread may be the last to wake up */
	for (size_t i = 0; i < key.threads; i++) {
		pthread_join(workers[i].thread, NULL);
		start = workers[i].start_ns < start ? workers[i].start_ns : start;
	}
	struct result result = sum_up(workers, seconds_since(start));
	result.cached_bytes = cached;
	return result;
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

static struct result time_loop(void (*loop)(uint64_t, size_t), uint64_t times, uint64_t pairs_each)
{
	count(at_start);
	uint64_t start = now_ns();
	loop(times, key.size);
	return (struct result){ .ops = times * pairs_each, .seconds = seconds_since(start), .handovers = UNKNOWN,
		.cached_bytes = UNKNOWN };
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

/* ---- Replacement: mixed, mid and large are one engine with other sizes ---- */

static void replace(struct worker *worker, uint64_t ops)
{
	uint64_t random = worker->random;
	for (uint64_t i = 0; i < ops; i++) {
		uint64_t bits = random_next(&random);
		struct block *block = &worker->blocks[random_below((uint32_t)(bits >> 32), key.slots)];
		block_free(block);
		*block = block_random(bits);
	}
	worker->random = random;
	worker->ops += ops;
}

static void fill_and_warm(struct worker *worker) /* so that what the allocator will retain has been touched */
{
	for (uint64_t i = 0; i < key.slots; i++)
		worker->blocks[i] = block_random(random_next(&worker->random));
	replace(worker, key.warm * key.slots);
}

static void replace_until_stopped(struct worker *worker)
{
	do
		replace(worker, STOP_CHECK);
	while (!stopped());
}

static struct result run_replace(void)
{
	return run_team(fill_and_warm, replace_until_stopped);
}

/* ---- larson: a server, after the description by Larson and Krishnan (ISMM 1998) ----
 *
 * Each of `threads` chains owns an array of `slots` blocks that the main thread has filled. A chain is one
 * thread at a time: it replaces random blocks of its array, then creates its successor, which goes on with the
 * same array, and exits. So blocks are freed by other threads than those that allocated them: one op in `rounds`,
 * since a thread frees each block of its predecessor once. Threads come and go, the sooner the fewer `rounds`.
 *
 *     main fills ──► thread 1 ──array──► thread 2 ──array──► ... until the time is over
 */

static void *larson_thread(void *argument)
{
	struct worker *chain = argument;
	pthread_t previous = chain->thread;
	bool first = chain->ops == 0;
	uint64_t end = chain->ops + key.slots * key.rounds;
	do
		replace(chain, STOP_CHECK);
	while (chain->ops < end && !stopped());
	/* Joined only now, not at the start: the predecessor's exit runs beside this thread's work, as on a server. */
	if (!first)
		pthread_join(previous, NULL);
	chain->thread = pthread_self();
	if (chain->ops >= end) {
		chain->handovers++;
		start_thread(larson_thread, chain); /* from here on the chain belongs to the successor */
		return NULL;
	}
	pthread_barrier_wait(&team.meet);
	return NULL;
}

static struct result run_larson(void)
{
	struct worker *chains = make_workers();
	uint64_t random = random_seed(key.threads);
	for (uint64_t i = 0; i < key.slots; i++) /* in turn, so that neighbours in memory go to different threads */
		for (uint64_t t = 0; t < key.threads; t++)
			chains[t].blocks[i] = block_random(random_next(&random));
	pthread_barrier_init(&team.meet, NULL, (unsigned)key.threads + 1);
	count(at_start);
	uint64_t start = now_ns();
	for (uint64_t t = 0; t < key.threads; t++)
		start_thread(larson_thread, &chains[t]);
	sleep_seconds(key.seconds);
	atomic_store(&team.stop, true);
	pthread_barrier_wait(&team.meet); /* where each chain's last thread ends */
	struct result result = sum_up(chains, seconds_since(start));
	result.handovers = 0;
	for (uint64_t t = 0; t < key.threads; t++) {
		pthread_join(chains[t].thread, NULL);
		result.handovers += chains[t].handovers;
	}
	return result;
}

/* ---- Requests: json, mir, vm, and a mixture; every request is timed on its own ----
 *
 * A request works through buffers, each made before its predecessor is freed, as the stages of a program do; json
 * also builds the tree of a document. The last buffer and the tree are kept, and of those of the same kind that were
 * kept, the oldest is freed; of vm none is, until there are as many as can be kept, and then all of them at once.
 */

enum { KINDS_COUNT = 3, MAX_NODES = 256, MAX_KEPT = 64 };

static const struct kind {
	size_t buffer; /* bytes */
	unsigned buffers, nodes, kept;
	bool at_once;
} KINDS[KINDS_COUNT] = {
	{ 64 << 10, 2, 200, 64, false }, /* json: input and output of a document of many small blocks */
	{ 256 << 10, 6, 0, 16, false },  /* mir: the passes of a compiler, one representation to the next */
	{ 2 << 20, 1, 0, 32, true },     /* vm: the memory of small machines, which are started one by one, and stopped */
};

struct node {
	struct node *child, *next;
	struct block name, value;
};

struct document {
	struct node *root; /* NULL where the kind has no tree */
	struct block buffer;
};

static struct node *node_make(uint64_t bits)
{
	struct node *node = checked(malloc(sizeof *node));
	unsigned char mark = (unsigned char)bits;
	*node = (struct node){
		.name = block_make(4 + random_below((uint32_t)bits, 28), mark),
		.value = block_make(8 + random_below((uint32_t)(bits >> 32), 248), mark),
	};
	return node;
}

static struct node *tree_make(unsigned count, uint64_t *random)
{
	struct node *nodes[MAX_NODES];
	for (unsigned i = 0; i < count; i++) {
		uint64_t bits = random_next(random);
		nodes[i] = node_make(bits);
		if (i == 0)
			continue;
		struct node *parent = nodes[random_below((uint32_t)(bits >> 16), i)];
		nodes[i]->next = parent->child;
		parent->child = nodes[i];
	}
	return count != 0 ? nodes[0] : NULL;
}

static void tree_free(struct node *node) /* as deep as the tree, which grows with the logarithm of its nodes */
{
	while (node != NULL) {
		struct node *next = node->next;
		tree_free(node->child);
		block_free(&node->name);
		block_free(&node->value);
		free(node);
		node = next;
	}
}

static void request(struct worker *worker, size_t which)
{
	const struct kind *kind = &KINDS[which];
	struct document made = { .root = tree_make(kind->nodes, &worker->random) };
	for (unsigned i = 0; i < kind->buffers; i++) {
		struct block next = block_make(kind->buffer, (unsigned char)random_next(&worker->random));
		block_free(&made.buffer);
		made.buffer = next;
	}
	struct document *documents = &worker->documents[which * MAX_KEPT];
	unsigned at = (unsigned)(worker->served[which]++ % kind->kept);
	unsigned end = !kind->at_once ? at + 1 : at == 0 ? kind->kept : 0;
	for (unsigned i = at; i < end; i++) {
		tree_free(documents[i].root);
		block_free(&documents[i].buffer);
		documents[i].root = NULL;
	}
	documents[at] = made;
}

static void prepare_requests(struct worker *worker)
{
	const uint64_t shares[KINDS_COUNT] = { key.json, key.mir, key.vm };
	worker->documents = map(KINDS_COUNT * MAX_KEPT * sizeof *worker->documents);
	worker->served = map(KINDS_COUNT * sizeof *worker->served);
	worker->latencies = map(BUCKETS * sizeof *worker->latencies);
	for (size_t which = 0; which < KINDS_COUNT; which++)
		for (unsigned i = 0; shares[which] != 0 && i < 2 * KINDS[which].kept; i++)
			request(worker, which);
}

static void serve_requests(struct worker *worker)
{
	do {
		uint64_t draw = random_below((uint32_t)random_next(&worker->random), key.json + key.mir + key.vm);
		uint64_t start = now_ns();
		request(worker, draw < key.json ? 0 : draw < key.json + key.mir ? 1 : 2);
		worker->latencies[bucket_of(now_ns() - start)]++;
		worker->ops++;
	} while (!stopped());
}

static struct result run_requests(void)
{
	if (key.json + key.mir + key.vm == 0)
		die("no requests: set a share, as json=1");
	return run_team(prepare_requests, serve_requests);
}

/* ---- prodcons: of each pair of threads one only allocates, the other only frees, through a ring between them ---- */

static struct ring {
	_Alignas(64) atomic_uint_least64_t sent; /* the producer counts blocks put in */
	atomic_bool closed;
	_Alignas(64) atomic_uint_least64_t taken; /* the consumer counts blocks taken out */
	_Alignas(64) struct block *blocks;        /* only the producer writes into them */
} *rings;

static void wait_a_little(unsigned *turns) /* the other thread may not even be running */
{
	if (++*turns % 64 == 0)
		sched_yield();
}

static void produce(struct worker *worker, struct ring *ring)
{
	uint64_t sent = 0, taken = 0;
	for (size_t at = 0; sent == 0 || !stopped(); at = at + 1 < key.slots ? at + 1 : 0) {
		struct block block = block_random(random_next(&worker->random));
		for (unsigned turns = 0; sent - taken == key.slots; wait_a_little(&turns))
			taken = atomic_load_explicit(&ring->taken, memory_order_acquire);
		ring->blocks[at] = block;
		atomic_store_explicit(&ring->sent, ++sent, memory_order_release);
	}
	atomic_store_explicit(&ring->closed, true, memory_order_release);
}

static void consume(struct worker *worker, struct ring *ring)
{
	uint64_t sent = 0, taken = 0;
	for (size_t at = 0;; at = at + 1 < key.slots ? at + 1 : 0) {
		for (unsigned turns = 0; sent == taken; wait_a_little(&turns)) {
			bool closed = atomic_load_explicit(&ring->closed, memory_order_acquire); /* before sent, which is last */
			sent = atomic_load_explicit(&ring->sent, memory_order_acquire);
			if (closed && sent == taken) {
				worker->ops = taken;
				return;
			}
		}
		struct block block = ring->blocks[at];
		block_free(&block);
		atomic_store_explicit(&ring->taken, ++taken, memory_order_release);
	}
}

static void prepare_ring(struct worker *worker)
{
	if (worker->index % 2 == 0)
		rings[worker->index / 2].blocks = worker->blocks;
}

static void take_a_side(struct worker *worker)
{
	(worker->index % 2 == 0 ? produce : consume)(worker, &rings[worker->index / 2]);
}

static uint64_t pairs_of_threads(void)
{
	if (key.threads % 2 != 0)
		die("threads=%llu: an even number is needed, for pairs", (unsigned long long)key.threads);
	return key.threads / 2;
}

static struct result run_prodcons(void)
{
	rings = map(pairs_of_threads() * sizeof *rings);
	return run_team(prepare_ring, take_a_side);
}

/* ---- churn: every thread lives for one turn. It takes over the blocks that some thread left behind and frees
 * them, makes `slots` of its own, frees three in four, leaves the others to a later thread, and exits ---- */

enum { ESTATES = 16 }; /* waiting at any time, so that a block outlives about as many threads */

static struct {
	pthread_mutex_t lock;   /* guards the rest */
	struct block **estates; /* a ring; at most `threads` of its arrays are in use, the others wait */
	uint64_t taken, left, capacity;
} churn = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct block *estate_take(void)
{
	pthread_mutex_lock(&churn.lock);
	struct block *estate = churn.estates[churn.taken++ % churn.capacity];
	pthread_mutex_unlock(&churn.lock);
	return estate;
}

static void estate_leave(struct block *estate)
{
	pthread_mutex_lock(&churn.lock);
	churn.estates[churn.left++ % churn.capacity] = estate;
	pthread_mutex_unlock(&churn.lock);
}

static void *churn_thread(void *argument)
{
	struct worker *worker = argument;
	struct block *blocks = estate_take();
	for (uint64_t i = 0; i < key.slots; i++)
		block_free(&blocks[i]);
	for (uint64_t i = 0; i < key.slots; i++)
		blocks[i] = block_random(random_next(&worker->random));
	for (uint64_t i = 0; i < key.slots; i++)
		if (random_below((uint32_t)random_next(&worker->random), 4) != 0)
			block_free(&blocks[i]);
	estate_leave(blocks);
	worker->ops += key.slots;
	return NULL;
}

static void churn_once(struct worker *worker)
{
	pthread_join(start_thread(churn_thread, worker), NULL);
}

static void churn_until_every_estate_was_left(struct worker *worker)
{
	for (uint64_t i = 0; i < churn.capacity; i += key.threads)
		churn_once(worker);
}

static void churn_until_stopped(struct worker *worker)
{
	do
		churn_once(worker);
	while (!stopped());
}

static struct result run_churn(void)
{
	churn.capacity = churn.left = ESTATES + key.threads;
	churn.estates = map(churn.capacity * sizeof *churn.estates);
	for (uint64_t i = 0; i < churn.capacity; i++)
		churn.estates[i] = map(key.slots * sizeof **churn.estates);
	return run_team(churn_until_every_estate_was_left, churn_until_stopped);
}

/* ---- realloc: buffers grow by appending, in turn at random, and begin again when they would exceed max ---- */

static void append(struct block *block, size_t bytes, unsigned char mark)
{
	if (block->bytes == NULL)
		*block = (struct block){ .mark = mark };
	unsigned char *grown = checked(realloc(block->bytes, block->size + bytes));
	memset(grown + block->size, block->mark, bytes);
	/* The byte before the new ones shows that the old ones came along; block_free looks at the ends. */
	if (block->size != 0 && grown[block->size - 1] != block->mark)
		die("realloc to %lu bytes lost the contents", (unsigned long)(block->size + bytes));
	block->bytes = grown;
	block->size += (uint32_t)bytes;
}

static void append_until_one_is_full(struct worker *worker)
{
	for (bool full = false; !full; worker->ops++) {
		uint64_t bits = random_next(&worker->random);
		struct block *block = &worker->blocks[random_below((uint32_t)(bits >> 32), key.slots)];
		size_t bytes = block->bytes == NULL ? key.min : 1 + random_below((uint32_t)bits, 2 * key.step - 1);
		append(block, bytes, (unsigned char)bits);
		full = block->size + 2 * key.step > key.max;
		if (full)
			block_free(block);
	}
}

static void append_until_stopped(struct worker *worker) /* whole growths: the appends to a small buffer are the cheap ones */
{
	do
		append_until_one_is_full(worker);
	while (!stopped());
}

static struct result run_realloc(void)
{
	return run_team(append_until_one_is_full, append_until_stopped);
}

/* ---- lookup: from a pointer to its slab by hakmem's own functions, in the way that its option use_registry says ---- */

enum { POINTERS = 1 << 16, LOOKUPS = 1 << 12 }; /* more pointers than a branch predictor remembers; looked up at a time */
enum { SLAB = 1 << 16 };

typedef size_t lookup_function(const void *p, uintptr_t *base);
typedef int option_function(const char *name, int64_t *value);

static void find_function(void *function, const char *name) /* as find_hak_stat */
{
	void *symbol = dlsym(RTLD_DEFAULT, name);
	if (symbol == NULL)
		die("%s is not in the process: lookup needs hakmem", name);
	memcpy(function, &symbol, sizeof symbol);
}

static __attribute__((noinline)) size_t lookup_nothing(const void *p, uintptr_t *base)
{
	*base = (uintptr_t)p;
	return SLAB;
}

/* Each waits for the one before it, so that what the loop itself takes can be taken off. */
static uint64_t time_lookups(lookup_function *lookup, const char *const *pointers)
{
	uintptr_t base;
	uint64_t start = now_ns();
	for (size_t at = 0; at < LOOKUPS;) {
		size_t length = lookup(pointers[at], &base);
		__asm__ volatile("" : "+r"(length));
		at += length != 0;
		if (length == 0)
			die("a slab was lost");
	}
	return now_ns() - start;
}

static char **make_slabs(lookup_function *lookup) /* each block fills one */
{
	char **slabs = map(key.slabs * sizeof *slabs);
	for (size_t i = 0; i < key.slabs; i++) {
		uintptr_t base = 0;
		slabs[i] = checked(malloc(SLAB));
		if (lookup(slabs[i] + SLAB - 1, &base) != SLAB || base != (uintptr_t)slabs[i])
			die("the block at %p is not a slab that is looked up so", (void *)slabs[i]);
	}
	return slabs;
}

static struct result run_lookup(void)
{
	static const char *const ways[] = { "hak_lookup_by_address", "hak_lookup_by_registry", "hak_lookup_by_scan" };
	uint64_t random = random_seed(0), ops = 0, best = UINT64_MAX, loop = UINT64_MAX;
	const char **pointers = map(POINTERS * sizeof *pointers);
	option_function *option_get;
	lookup_function *lookup;
	int64_t way = 0;

	find_function(&option_get, "hak_option_get");
	if (option_get("use_registry", &way) != 0)
		die("this hakmem has no option use_registry");
	find_function(&lookup, ways[way]);
	char **slabs = make_slabs(lookup);
	for (size_t i = 0; i < POINTERS; i++) { /* the one pointer: half way through a scan */
		uint64_t bits = random_next(&random);
		size_t slab = key.repeat ? key.slabs / 2 : random_below((uint32_t)(bits >> 32), key.slabs);
		pointers[i] = slabs[slab] + (key.repeat ? 0 : random_below((uint32_t)bits, SLAB));
	}
	time_lookups(lookup, pointers);
	count(at_start);
	for (uint64_t start = now_ns(); ops == 0 || seconds_since(start) < key.seconds; ops += LOOKUPS) {
		const char **from = pointers + ops % POINTERS;
		uint64_t took = time_lookups(lookup, from), nothing = time_lookups(lookup_nothing, from);
		best = took < best ? took : best;
		loop = nothing < loop ? nothing : loop;
	}
	if (best <= loop)
		die("%llu ns for %d look-ups, %llu for the loop alone: too short to tell", (unsigned long long)best, LOOKUPS,
		    (unsigned long long)loop);
	return (struct result){ .ops = ops, .seconds = (double)(best - loop) * 1e-9 / LOOKUPS * (double)ops,
		.handovers = UNKNOWN };
}

/* ---- caches: bursts of `slots` blocks of one size, which the size of a thread cache matters for ---- */

enum { PHASES = 4 };

static atomic_uint_least64_t first_began, last_ended; /* idle-threads: ns of the bursts */

static void burst(struct worker *worker, size_t size)
{
	for (uint64_t i = 0; i < key.slots; i++)
		worker->blocks[i] = block_make(size, (unsigned char)i);
	for (uint64_t i = 0; i < key.slots; i++)
		block_free(&worker->blocks[i]);
	worker->ops += key.slots;
}

static void burst_a_little(struct worker *worker)
{
	for (int i = 0; i < 100; i++)
		burst(worker, key.min);
}

static void burst_until_stopped(struct worker *worker)
{
	do
		burst(worker, key.min);
	while (!stopped());
}

static void burst_in_phases(struct worker *worker) /* one size is hot for a quarter of the time, then its double */
{
	do {
		unsigned phase = (unsigned)(seconds_since(worker->start_ns) / key.seconds * PHASES);
		burst(worker, key.min << (phase < PHASES ? phase : PHASES - 1));
	} while (!stopped());
}

static void burst_and_sleep(struct worker *worker) /* of all doublings from min to max, `rounds` times */
{
	uint64_t began = worker->start_ns, seen = atomic_load(&first_began);
	while ((seen == 0 || began < seen) && !atomic_compare_exchange_weak(&first_began, &seen, began)) {}
	for (uint64_t i = 0; i < key.rounds; i++)
		for (size_t size = key.min; size <= key.max; size *= 2)
			burst(worker, size);
	uint64_t ended = now_ns();
	seen = atomic_load(&last_ended);
	while (ended > seen && !atomic_compare_exchange_weak(&last_ended, &seen, ended)) {}
	while (!stopped())
		sleep_seconds(0.05);
}

static struct result run_hot_class(void)
{
	team.watched = true;
	return run_team(burst_a_little, burst_until_stopped);
}

static struct result run_phase_change(void)
{
	team.watched = true;
	return run_team(NULL, burst_in_phases);
}

static struct result run_idle_threads(void)
{
	team.watched = true;
	struct result result = run_team(NULL, burst_and_sleep);
	result.seconds = (double)(last_ended - first_began) * 1e-9; /* without the sleep */
	return result;
}

/* ---- first calls of threads: each begins when the one before has made its calls, and lives to the end, so that none
 * gets memory that another has warmed. A call is a malloc and the first write to the block ---- */

enum first { FIRST_CALL, FIRST_OF_CLASS, FIRST_THOUSAND };

static struct {
	enum first which;
	uint64_t *latencies, calls, ns;
	pthread_barrier_t made; /* the newcomer and main */
	pthread_mutex_t leave;  /* held by main until all may end */
} newcomers = { .leave = PTHREAD_MUTEX_INITIALIZER };

static void time_call(size_t size)
{
	uint64_t start = now_ns();
	volatile unsigned char *p = checked(malloc(size));
	*p = 1;
	uint64_t ns = now_ns() - start;
	newcomers.latencies[bucket_of(ns)]++;
	newcomers.ns += ns;
	newcomers.calls++;
}

static void *newcomer(void *argument)
{
	uint64_t random = random_seed((uintptr_t)argument);
	if (newcomers.which != FIRST_CALL)
		free(checked(malloc(1)));
	if (newcomers.which == FIRST_CALL)
		time_call(64);
	else if (newcomers.which == FIRST_OF_CLASS)
		for (size_t size = 8; size <= 32768; size += size < 128 ? 16 : size / 8)
			time_call(size);
	else
		for (int i = 0; i < 1000; i++)
			time_call(random_size(random_next(&random)));
	pthread_barrier_wait(&newcomers.made);
	pthread_mutex_lock(&newcomers.leave);
	pthread_mutex_unlock(&newcomers.leave);
	return NULL;
}

static struct result run_newcomers(enum first which)
{
	pthread_t *threads = map(key.threads * sizeof *threads);
	newcomers.which = which;
	newcomers.latencies = map(BUCKETS * sizeof *newcomers.latencies);
	pthread_barrier_init(&newcomers.made, NULL, 2);
	pthread_mutex_lock(&newcomers.leave);
	count(at_start);
	for (uintptr_t i = 0; i < key.threads; i++) {
		threads[i] = start_thread(newcomer, (void *)i);
		pthread_barrier_wait(&newcomers.made);
	}
	pthread_mutex_unlock(&newcomers.leave);
	for (uint64_t i = 0; i < key.threads; i++)
		pthread_join(threads[i], NULL);
	return (struct result){ .ops = newcomers.calls, .seconds = (double)newcomers.ns * 1e-9, .handovers = UNKNOWN,
		.p50 = percentile(newcomers.latencies, newcomers.calls, 50), .cached_bytes = UNKNOWN,
		.p95 = percentile(newcomers.latencies, newcomers.calls, 95),
		.p99 = percentile(newcomers.latencies, newcomers.calls, 99) };
}

static struct result run_first_call(void) { return run_newcomers(FIRST_CALL); }
static struct result run_first_of_class(void) { return run_newcomers(FIRST_OF_CLASS); }
static struct result run_first_thousand(void) { return run_newcomers(FIRST_THOUSAND); }

/* ---- strewn: in each phase blocks of one more size, and all are freed but a few, which stay to the end ---- */

enum { STAYING = 1 }; /* the site of the blocks that stay, for rules */

typedef void *alloc_at_function(size_t bytes, uint64_t site);

static void *plain_alloc_at(size_t bytes, uint64_t site)
{
	(void)site;
	return malloc(bytes);
}

static alloc_at_function *find_alloc_at(void) /* hakmem's, where it is in the process */
{
	alloc_at_function *function;
	void *symbol = dlsym(RTLD_DEFAULT, "hak_alloc_at");
	if (symbol == NULL)
		return plain_alloc_at;
	memcpy(&function, &symbol, sizeof function);
	return function;
}

struct strewn { /* blocks, from the newest to the oldest, each with its mark behind the link */
	struct strewn *next;
	uint32_t size;
	unsigned char mark;
};

static struct strewn *strewn_push(struct strewn *list, void *memory, size_t size, unsigned char mark)
{
	struct strewn *block = checked(memory);
	*block = (struct strewn){ list, (uint32_t)size, mark };
	((unsigned char *)block)[size - 1] = mark;
	return block;
}

static void strewn_free(struct strewn *list)
{
	for (struct strewn *next; list != NULL; list = next) {
		next = list->next;
		if (((unsigned char *)list)[list->size - 1] != list->mark)
			die("a block of %lu bytes has lost its end", (unsigned long)list->size);
		free(list);
	}
}

static struct result run_strewn(void)
{
	alloc_at_function *alloc_at = find_alloc_at();
	struct strewn *staying = NULL;
	uint64_t random = random_seed(0), ops = 0;
	if (key.min <= sizeof *staying)
		die("min=%llu: a block holds more than %zu bytes", (unsigned long long)key.min, sizeof *staying);
	count(at_start);
	uint64_t start = now_ns();
	for (size_t size = key.min; size <= key.max; size += size / 4) {
		struct strewn *going = NULL;
		for (uint64_t at = 0, next = key.apart; at < key.phase; at += size, ops++) {
			unsigned char mark = (unsigned char)random_next(&random);
			if (at < next) {
				going = strewn_push(going, malloc(size), size, mark);
			} else {
				staying = strewn_push(staying, alloc_at(size, STAYING), size, mark);
				next = at + key.apart / 2 + random_below((uint32_t)random, key.apart);
			}
		}
		strewn_free(going);
	}
	strewn_free(staying);
	return (struct result){ .ops = ops, .seconds = seconds_since(start), .handovers = UNKNOWN };
}

/* ---- Phases: loads that change every `period` ms ---- */

static size_t phase_size(const struct worker *worker) /* of blocks: doubles with each phase, and begins again */
{
	return (size_t)key.min << ((now_ns() - worker->start_ns) / 1000000 / key.period % (key.doublings + 1));
}

static void phases_until_stopped(struct worker *worker) /* bursts of `slots` blocks of one size, freed in their order */
{
	do {
		size_t size = phase_size(worker);
		for (uint64_t i = 0; i < key.slots; i++)
			worker->blocks[i] = block_make(size, (unsigned char)i);
		for (uint64_t i = 0; i < key.slots; i++)
			block_free(&worker->blocks[i]);
		worker->ops += key.slots;
	} while (!stopped());
}

static struct result run_phases(void)
{
	return run_team(NULL, phases_until_stopped);
}

static void produce_phases(struct worker *worker, struct ring *ring)
{
	uint64_t sent = 0, taken = 0;
	size_t size = phase_size(worker);
	for (size_t at = 0; sent == 0 || !stopped(); at = at + 1 < key.slots ? at + 1 : 0) {
		if (sent % 64 == 0)
			size = phase_size(worker);
		struct block block = block_make(size, (unsigned char)sent);
		for (unsigned turns = 0; sent - taken == key.slots; wait_a_little(&turns))
			taken = atomic_load_explicit(&ring->taken, memory_order_acquire);
		ring->blocks[at] = block;
		atomic_store_explicit(&ring->sent, ++sent, memory_order_release);
	}
	atomic_store_explicit(&ring->closed, true, memory_order_release);
}

static void take_a_side_in_phases(struct worker *worker)
{
	(worker->index % 2 == 0 ? produce_phases : consume)(worker, &rings[worker->index / 2]);
}

static struct result run_prodcons_phases(void)
{
	rings = map(pairs_of_threads() * sizeof *rings);
	return run_team(prepare_ring, take_a_side_in_phases);
}

static void prepare_waves(struct worker *worker)
{
	worker->latencies = map(BUCKETS * sizeof *worker->latencies);
}

static void waves_until_stopped(struct worker *worker) /* a wave of large blocks; small ones until the period is over */
{
	uint64_t small[512] = { 0 };
	do {
		uint64_t start = now_ns(), end;
		for (uint64_t i = 0; i < key.slots; i++)
			worker->blocks[i] = block_random(random_next(&worker->random));
		for (uint64_t i = 0; i < key.slots; i++)
			block_free(&worker->blocks[i]);
		end = now_ns();
		worker->latencies[bucket_of(end - start)]++;
		worker->ops++;
		for (; !stopped() && now_ns() - start < key.period * 1000000; sleep_seconds(0.001))
			for (int i = 0; i < 4096; i++) {
				uint64_t bits = random_next(&worker->random), *slot = &small[bits % 512];
				free((void *)(uintptr_t)*slot);
				*slot = (uint64_t)(uintptr_t)checked(malloc(16 + (bits >> 32) % 1000));
			}
	} while (!stopped());
	for (int i = 0; i < 512; i++)
		free((void *)(uintptr_t)small[i]);
}

static struct result run_waves(void)
{
	return run_team(prepare_waves, waves_until_stopped);
}

/* ---- handoff: half of the threads fill batches of blocks, the others empty them; one list, one lock ---- */

enum { BATCH = 4096, BATCHES_QUEUED = 100, WRITTEN = 128 }; /* blocks; batches; bytes of a block, at most */

struct batch { /* from the allocator under test too: 32 KiB between many small blocks */
	struct batch *older;
	unsigned char mark;
	unsigned char *blocks[BATCH];
};

static struct {
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t taken, put;
	struct batch *newest; /* last in, first out */
	uint64_t queued, producers; /* producers: that have not ended */
} handoff = { .lock = PTHREAD_MUTEX_INITIALIZER, .taken = PTHREAD_COND_INITIALIZER, .put = PTHREAD_COND_INITIALIZER };

static void batch_put(struct batch *batch)
{
	pthread_mutex_lock(&handoff.lock);
	while (handoff.queued == BATCHES_QUEUED)
		pthread_cond_wait(&handoff.taken, &handoff.lock);
	batch->older = handoff.newest;
	handoff.newest = batch;
	handoff.queued++;
	pthread_cond_signal(&handoff.put);
	pthread_mutex_unlock(&handoff.lock);
}

static struct batch *batch_take(void) /* NULL when there is none and will be none */
{
	pthread_mutex_lock(&handoff.lock);
	while (handoff.newest == NULL && handoff.producers != 0)
		pthread_cond_wait(&handoff.put, &handoff.lock);
	struct batch *batch = handoff.newest;
	if (batch != NULL) {
		handoff.newest = batch->older;
		handoff.queued--;
		pthread_cond_signal(&handoff.taken);
	}
	pthread_mutex_unlock(&handoff.lock);
	return batch;
}

static void fill_batches(struct worker *worker)
{
	do {
		struct batch *batch = checked(malloc(sizeof *batch));
		batch->mark = (unsigned char)random_next(&worker->random);
		for (int i = 0; i < BATCH; i++) {
			size_t size = random_size(random_next(&worker->random));
			batch->blocks[i] = checked(malloc(size));
			memset(batch->blocks[i], batch->mark, size < WRITTEN ? size : WRITTEN);
		}
		batch_put(batch);
	} while (!stopped());
	pthread_mutex_lock(&handoff.lock);
	if (--handoff.producers == 0)
		pthread_cond_broadcast(&handoff.put);
	pthread_mutex_unlock(&handoff.lock);
}

static void empty_batches(struct worker *worker)
{
	for (struct batch *batch; (batch = batch_take()) != NULL; free(batch)) {
		for (int i = 0; i < BATCH; i++) {
			if (batch->blocks[i][0] != batch->mark)
				die("the contents of a block at %p have changed", (void *)batch->blocks[i]);
			free(batch->blocks[i]);
		}
		worker->ops += BATCH;
	}
}

static void fill_or_empty_batches(struct worker *worker)
{
	(worker->index % 2 == 0 ? fill_batches : empty_batches)(worker);
}

static struct result run_handoff(void)
{
	handoff.producers = pairs_of_threads();
	return run_team(NULL, fill_or_empty_batches);
}

/* ---- Short teams (stress, leak): teams of threads that live for one piece of work, one team after the other. What
 * they swap into `slots` places outlives them ---- */

static atomic_uintptr_t *places;

static uintptr_t place_swap(uintptr_t p, uint64_t bits) /* what stood in a random place, or 0 */
{
	return atomic_exchange(&places[random_below((uint32_t)bits, key.slots)], p);
}

static struct result run_short_teams(void *(*body)(void *))
{
	struct worker *workers = make_workers();
	places = map(key.slots * sizeof *places);
	count(at_start);
	uint64_t start = now_ns();
	do {
		for (uint64_t t = 0; t < key.threads; t++)
			workers[t].thread = start_thread(body, &workers[t]);
		for (uint64_t t = 0; t < key.threads; t++)
			pthread_join(workers[t].thread, NULL);
	} while (seconds_since(start) < key.seconds);
	return sum_up(workers, seconds_since(start));
}

enum { MARK_AT = 48 }; /* bits of an address: a mark is above them, so that both are swapped at once */

static uintptr_t words_make(uint64_t words, uint64_t mark) /* each word is the mark and how many there are */
{
	uint64_t *block = checked(malloc(words * sizeof *block));
	mark &= UINT16_MAX;
	for (uint64_t i = 0; i < words; i++)
		block[i] = mark << MARK_AT | words;
	return (uintptr_t)block | mark << MARK_AT;
}

static void words_free(uintptr_t marked)
{
	if (marked == 0)
		return;
	uint64_t *block = (uint64_t *)(marked & ((UINT64_C(1) << MARK_AT) - 1)), first = block[0], changed = 0;
	uint64_t words = first >> MARK_AT == marked >> MARK_AT ? first & ((UINT64_C(1) << MARK_AT) - 1) : 0;
	for (uint64_t i = 0; i < words; i++)
		changed |= block[i] ^ first;
	if (words == 0 || changed != 0)
		die("the contents of a block at %p have changed", (void *)block);
	free(block);
}

struct pile { /* its array is from the allocator under test, and grows */
	uintptr_t *blocks; /* with their marks; 0 where one is gone */
	size_t count, room;
};

static void pile_add(struct pile *pile, uintptr_t block)
{
	if (pile->count == pile->room) {
		pile->room = pile->room != 0 ? 2 * pile->room : 64;
		pile->blocks = checked(realloc(pile->blocks, pile->room * sizeof *pile->blocks));
	}
	pile->blocks[pile->count++] = block;
}

static void pile_free(struct pile *pile)
{
	for (size_t i = 0; i < pile->count; i++)
		words_free(pile->blocks[i]);
	free(pile->blocks);
}

static uintptr_t *pile_pick(struct pile *pile, uint64_t bits) /* the pile is not empty */
{
	return &pile->blocks[random_below((uint32_t)bits, pile->count)];
}

static void *stress_thread(void *argument)
{
	struct worker *worker = argument;
	struct pile passing = { 0 }, retained = { 0 };
	uint64_t mallocs = 80 * key.rounds * (worker->index % 8 + 1); /* so that threads end one after the other */
	for (uint64_t i = 0; i < mallocs; i++) {
		uint64_t bits = random_next(&worker->random), draw = random_next(&worker->random);
		uint64_t scale = random_below((uint32_t)draw, 100) == 0 ? 100 : 1;
		if (bits >> 63)
			pile_add(&passing, words_make(scale * (1 + random_below((uint32_t)bits, 128)), bits >> 32));
		else
			pile_add(&retained, words_make(scale * 10 * (1 + random_below((uint32_t)bits, 1280)), bits >> 32));
		bits = random_next(&worker->random);
		if (passing.count != 0 && random_below((uint32_t)(draw >> 32), 3) != 0) {
			uintptr_t *gone = pile_pick(&passing, bits);
			words_free(*gone);
			*gone = 0;
		}
		if (passing.count != 0 && bits >> 62 == 0) {
			uintptr_t *swapped = pile_pick(&passing, bits >> 16);
			*swapped = place_swap(*swapped, random_next(&worker->random));
		}
	}
	pile_free(&passing);
	pile_free(&retained);
	worker->ops += mallocs;
	return NULL;
}

static struct result run_stress(void)
{
	return run_short_teams(stress_thread);
}

static void *leak_thread(void *argument)
{
	struct worker *worker = argument;
	unsigned char *block = checked(calloc(1, key.size));
	if (block[0] != 0 || block[key.size - 1] != 0)
		die("calloc gave a block that is not zero at %p", (void *)block);
	memset(block, 1, key.size); /* the next calloc must clear it */
	free((void *)place_swap((uintptr_t)block, random_next(&worker->random)));
	worker->ops++;
	return NULL;
}

static struct result run_leak(void)
{
	return run_short_teams(leak_thread);
}

/* ---- passes: blocks of falling sizes come and go at scattered positions; some are handed to the next thread ---- */

enum { STRIDE = 10000019 }; /* a prime above every number of slots: a walk by it comes everywhere */
enum { FRACTION = 21 };     /* bits of a random fraction, of which 64 bits give three */
enum { PARCELS = 16 };      /* that may wait for a thread: else what is live would grow while one sleeps, the more the quicker the rest */

struct parcel {
	struct parcel *next;
	uint64_t count;
	struct block blocks[];
};

static struct inbox {
	_Alignas(64) _Atomic(struct parcel *) newest; /* the thread before pushes, its own takes all */
	_Atomic uint64_t waiting;                     /* how many they are */
} *inboxes;

static size_t falling_size(uint64_t bits) /* the product of three random numbers: an eighth of the range on average */
{
	uint64_t mask = (1u << FRACTION) - 1, product = (bits & mask) * (bits >> FRACTION & mask) >> FRACTION;
	product = product * (bits >> 2 * FRACTION & mask) >> FRACTION;
	return key.min + ((key.max - key.min) * product >> FRACTION);
}

static struct block *walk(struct worker *worker, uint64_t *at)
{
	*at = (*at + STRIDE) % key.slots;
	return &worker->blocks[*at];
}

static void parcel_send(struct worker *worker, uint64_t *at, uint64_t count)
{
	struct inbox *inbox = &inboxes[(worker->index + 1) % key.threads];
	if (atomic_fetch_add(&inbox->waiting, 1) >= PARCELS) {
		atomic_fetch_sub(&inbox->waiting, 1);
		return;
	}
	struct parcel *parcel = checked(malloc(sizeof *parcel + count * sizeof *parcel->blocks));
	parcel->count = count;
	for (uint64_t i = 0; i < count; i++) {
		struct block *block = walk(worker, at);
		parcel->blocks[i] = *block;
		block->bytes = NULL;
	}
	parcel->next = atomic_load_explicit(&inbox->newest, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&inbox->newest, &parcel->next, parcel, memory_order_release,
	                                              memory_order_relaxed)) {
	}
}

static void parcels_free(struct inbox *inbox)
{
	struct parcel *parcel = atomic_exchange_explicit(&inbox->newest, NULL, memory_order_acquire);
	for (struct parcel *next; parcel != NULL; parcel = next) {
		next = parcel->next;
		for (uint64_t i = 0; i < parcel->count; i++)
			block_free(&parcel->blocks[i]);
		free(parcel);
		atomic_fetch_sub(&inbox->waiting, 1);
	}
}

static void passes_until_stopped(struct worker *worker)
{
	uint64_t at = 0, made;
	for (uint64_t pass = 1; pass == 1 || !stopped(); pass++, worker->ops += made) {
		uint64_t bits = random_next(&worker->random);
		made = 30 + random_below((uint32_t)bits, 70);
		uint64_t freed = 25 + random_below((uint32_t)(bits >> 32), 56), from = bits % key.slots;
		for (uint64_t i = 0; i < made; i++) {
			struct block *block = walk(worker, &at);
			block_free(block);
			bits = random_next(&worker->random);
			*block = block_make(falling_size(bits), (unsigned char)(bits >> 56));
		}
		for (uint64_t i = 0; i < freed; i++)
			block_free(walk(worker, &from));
		if (pass % 2 == 0) {
			parcel_send(worker, &from, made);
			parcels_free(&inboxes[worker->index]);
		}
	}
}

static struct result run_passes(void)
{
	inboxes = map(key.threads * sizeof *inboxes);
	return run_team(NULL, passes_until_stopped);
}

/* ---- pareto, skewed: few slots or sizes are much more frequent than the others; blocks are written whole ---- */

enum { PARETO_STEPS = 6, PARETO_DOUBLINGS = 8 }; /* from 4 bytes to 1 KiB */

static inline struct block *pareto_slot(struct worker *worker, uint64_t bits) /* a fifth of the slots has four fifths */
{
	uint64_t slots = key.slots / key.threads;
	for (int i = 0; i < PARETO_STEPS && slots >= 5 && random_below((uint32_t)bits, 5) != 0; i++) {
		slots /= 5;
		bits *= 0x9E3779B97F4A7C15u;
		bits ^= bits >> 32;
	}
	return &worker->blocks[slots != 0 ? random_below((uint32_t)(bits * 0x9E3779B97F4A7C15u >> 32), slots) : 0];
}

static inline struct block pareto_block(uint64_t bits) /* each doubling half as often as the one before */
{
	uint64_t low = UINT64_C(4) << __builtin_ctzll(bits | 1u << (PARETO_DOUBLINGS - 1));
	return block_full(low + random_below((uint32_t)(bits >> 32), low), (unsigned char)(bits >> 8));
}

static void block_free_read(struct block *block) /* all bytes are the same as the one before */
{
	if (memcmp(block->bytes, block->bytes + 1, block->size - 1) != 0)
		die("the contents of a block of %lu bytes at %p have changed", (unsigned long)block->size, (void *)block->bytes);
	block_free(block);
}

static void fill_half(struct worker *worker)
{
	for (uint64_t i = 0; i < key.slots / key.threads; i++) {
		uint64_t bits = random_next(&worker->random);
		if (bits >> 63)
			worker->blocks[i] = pareto_block(bits);
	}
}

static void pareto_until_stopped(struct worker *worker)
{
	do {
		for (int i = 0; i < STOP_CHECK; i++) {
			uint64_t bits = random_next(&worker->random);
			struct block *block = pareto_slot(worker, bits);
			if (block->bytes == NULL)
				*block = pareto_block(random_next(&worker->random));
			else
				block_free_read(block);
		}
		worker->ops += STOP_CHECK / 2;
	} while (!stopped());
}

static struct result run_pareto(void)
{
	return run_team(fill_half, pareto_until_stopped);
}

static struct block skewed_block(uint64_t bits) /* a size is as frequent as its inverse square */
{
	double small = 1 / (double)key.min, large = 1 / (double)key.max;
	double fraction = (double)(bits >> 32) * 0x1p-32;
	return block_full((size_t)(1 / (small - fraction * (small - large))), (unsigned char)bits);
}

static void fill_skewed(struct worker *worker)
{
	for (uint64_t i = 0; i < key.slots; i++)
		worker->blocks[i] = skewed_block(random_next(&worker->random));
}

static void replace_skewed_until_stopped(struct worker *worker)
{
	do {
		for (int i = 0; i < STOP_CHECK; i++) {
			uint64_t bits = random_next(&worker->random);
			struct block *block = &worker->blocks[random_below((uint32_t)bits, key.slots)];
			block_free(block);
			*block = skewed_block(bits);
		}
		worker->ops += STOP_CHECK;
	} while (!stopped());
}

static struct result run_skewed(void)
{
	return run_team(fill_skewed, replace_skewed_until_stopped);
}

/* ---- simple, big-one, scratch: loops over one size, whose blocks are written whole ---- */

enum { SIMPLE_MOST = 1600 }; /* blocks at a time; also 25, 100, 400: what a thread cache holds, and more */

static void simple_until_stopped(struct worker *worker)
{
	do
		for (size_t size = 16; size <= 64; size *= 2) /* where most blocks of most programs are */
			for (int at_once = SIMPLE_MOST / 64; at_once <= SIMPLE_MOST; at_once *= 4)
				for (int made = 0; made < SIMPLE_MOST; made += at_once, worker->ops += (uint64_t)at_once) {
					for (int i = 0; i < at_once; i++)
						worker->blocks[i] = block_full(size, (unsigned char)i);
					for (int i = 0; i < at_once; i++)
						block_free(&worker->blocks[i]);
				}
	while (!stopped());
}

static struct result run_simple(void)
{
	return run_team(NULL, simple_until_stopped);
}

static void big_one_until_stopped(struct worker *worker)
{
	do {
		struct block block = block_full(key.size, (unsigned char)worker->ops++);
		block_free(&block);
	} while (!stopped());
}

static struct result run_big_one(void)
{
	return run_team(NULL, big_one_until_stopped);
}

static struct block *given; /* by main, one to each thread; neighbours, where the allocator makes them so */

static void free_what_was_given(struct worker *worker)
{
	block_free(&given[worker->index]);
}

static void scratch_until_stopped(struct worker *worker)
{
	enum { TIMES = 250 }; /* a block of 8 bytes is written 2,000 times, so that a cache line that is shared shows */
	do {
		volatile unsigned char *bytes = checked(malloc(key.size));
		for (int i = 0; i < TIMES; i++)
			for (size_t at = 0; at < key.size; at++)
				bytes[at] = (unsigned char)(worker->index + (size_t)i);
		if (bytes[0] != (unsigned char)(worker->index + TIMES - 1))
			die("the contents of a block at %p have changed", (void *)bytes);
		free((void *)bytes);
		worker->ops++;
	} while (!stopped());
}

static struct result run_scratch(void)
{
	given = map(key.threads * sizeof *given);
	for (uint64_t i = 0; i < key.threads; i++)
		given[i] = block_full(key.size, (unsigned char)i);
	return run_team(free_what_was_given, scratch_until_stopped);
}

/* ---- numbers: arithmetic whose every result is a block of its own, counted by who refers to it ----
 *
 * The continued fraction of the square root of n: its convergents h/k come from a, d and m, which stay small, and for
 * each of them h*h - n*k*k is d, below and above 0 in turn; that is checked.
 */

enum { LONGEST = 6 }; /* digits of a convergent; its square is then a block of 56 bytes */

struct number {
	uint32_t references, length;
	uint32_t digits[]; /* the lowest first, the highest is not 0 */
};

static _Thread_local uint64_t numbers_made;

static struct number *number_make(size_t length) /* whose digits are yet to be written */
{
	struct number *number = checked(malloc(sizeof *number + length * sizeof *number->digits));
	number->references = 1;
	number->length = (uint32_t)length;
	numbers_made++;
	return number;
}

static struct number *number_keep(struct number *number)
{
	number->references++;
	return number;
}

static void number_drop(struct number *number)
{
	if (--number->references == 0)
		free(number);
}

/* Takes over both arguments, as all that follow do. */
static struct number *number_done(struct number *sum, struct number *a, struct number *b)
{
	while (sum->length != 0 && sum->digits[sum->length - 1] == 0)
		sum->length--;
	number_drop(a);
	number_drop(b);
	return sum;
}

static struct number *number_of(uint64_t value)
{
	struct number *number = number_make(value >> 32 != 0 ? 2 : value != 0);
	for (uint32_t i = 0; i < number->length; i++)
		number->digits[i] = (uint32_t)(value >> 32 * i);
	return number;
}

static struct number *number_add(struct number *a, struct number *b)
{
	uint32_t length = a->length > b->length ? a->length : b->length;
	struct number *sum = number_make(length + 1);
	uint64_t carry = 0;
	for (uint32_t i = 0; i <= length; i++, carry >>= 32) {
		carry += (uint64_t)(i < a->length ? a->digits[i] : 0) + (i < b->length ? b->digits[i] : 0);
		sum->digits[i] = (uint32_t)carry;
	}
	return number_done(sum, a, b);
}

static struct number *number_multiply(struct number *a, struct number *b)
{
	struct number *product = number_make(a->length + b->length);
	memset(product->digits, 0, product->length * sizeof *product->digits);
	for (uint32_t i = 0; i < a->length; i++) {
		uint64_t carry = 0;
		for (uint32_t j = 0; j < b->length; j++, carry >>= 32) {
			carry += (uint64_t)a->digits[i] * b->digits[j] + product->digits[i + j];
			product->digits[i + j] = (uint32_t)carry;
		}
		product->digits[i + b->length] = (uint32_t)carry;
	}
	return number_done(product, a, b);
}

static void number_expect_equal(struct number *a, struct number *b)
{
	if (a->length != b->length || memcmp(a->digits, b->digits, a->length * sizeof *a->digits) != 0)
		die("a convergent is wrong: the contents of a block have changed");
	number_drop(a);
	number_drop(b);
}

static void number_step(struct number **last, struct number **now, uint64_t a) /* last, now = now, a * now + last */
{
	struct number *next = number_add(number_multiply(number_of(a), number_keep(*now)), *last);
	*last = *now;
	*now = next;
}

static void expand_root(uint64_t n)
{
	uint64_t root = 0;
	for (uint64_t bit = UINT64_C(1) << 31; bit != 0; bit >>= 1)
		root += (root + bit) * (root + bit) <= n ? bit : 0;
	n += root * root == n; /* no square: its expansion would end */
	struct number *h[2] = { number_of(1), number_of(root) }, *k[2] = { number_of(0), number_of(1) };
	for (uint64_t a = root, m = 0, d = 1, step = 0; h[1]->length <= LONGEST; step++) {
		m = d * a - m;
		d = (n - m * m) / d;
		a = (root + m) / d;
		struct number *square = number_multiply(number_keep(h[1]), number_keep(h[1]));
		struct number *other = number_multiply(number_keep(k[1]), number_keep(k[1]));
		other = number_multiply(number_of(n), other);
		number_expect_equal(step % 2 == 0 ? number_add(square, number_of(d)) : square,
		                    step % 2 == 0 ? other : number_add(other, number_of(d)));
		number_step(&h[0], &h[1], a);
		number_step(&k[0], &k[1], a);
	}
	for (int i = 0; i < 2; i++) {
		number_drop(h[i]);
		number_drop(k[i]);
	}
}

static void expand_until_stopped(struct worker *worker)
{
	do
		expand_root(2 + random_next(&worker->random) % UINT32_MAX);
	while (!stopped());
	worker->ops = numbers_made;
}

static struct result run_numbers(void)
{
	return run_team(NULL, expand_until_stopped);
}

/* ---- The table of workloads ---- */

#define TEAM   "threads seconds seed "
#define BLOCKS TEAM "min max doublings slots touch "
#define LOOP   "n size"

static const struct workload {
	const char *name;
	struct result (*run)(void);
	const char *keys;   /* that it has */
	const char *preset; /* of them, set before those of the command line */
	const char *help;   /* what it stresses, and what an op is where it is not one malloc and one free */
} WORKLOADS[] = {
	{ "larson", run_larson, BLOCKS "rounds", "min=8 max=1024 slots=10000",
	  "a server: random replacement by threads that hand their blocks on after 500,000 ops, as in the published suites; "
	  "one free in 50 is of another thread's block" },
	{ "larson-relay", run_larson, BLOCKS "rounds", "min=8 max=1024 slots=10000 rounds=5",
	  "the same, handing on after 50,000 ops: one free in 5 is of another thread's block; stresses those" },
	{ "mixed", run_replace, BLOCKS "warm", "min=16 max=1024 slots=8192",
	  "random replacement of small blocks; stresses many classes at once and the cache of the processor" },
	{ "mid", run_replace, BLOCKS "warm", "min=8192 max=32768 slots=512",
	  "random replacement of mid-size blocks; stresses refills, of which each brings few blocks" },
	{ "large", run_replace, BLOCKS "warm", "min=65536 max=8388608 doublings=7 slots=32",
	  "random replacement of large blocks; stresses what is kept of freed memory, against page faults" },
	{ "scenario-json", run_requests, TEAM "touch json mir vm", "json=1",
	  "a document's tree of 600 small blocks, and 64 KiB buffers; stresses bursts; an op is a request" },
	{ "scenario-mir", run_requests, TEAM "touch json mir vm", "mir=1",
	  "256 KiB buffers, pass after pass; stresses their reuse; an op is a request" },
	{ "scenario-vm", run_requests, TEAM "touch json mir vm", "vm=1",
	  "2 MiB blocks, made until there are 32 and then freed together; stresses what is kept of them, against mappings "
	  "and page faults; an op is a request" },
	{ "scenario-mixed", run_requests, TEAM "touch json mir vm", "json=90 mir=8 vm=2",
	  "json, mir and vm mixed; stresses the large between the small; an op is a request" },
	{ "prodcons", run_prodcons, BLOCKS, "threads=2 min=16 max=1024 slots=1024",
	  "half of the threads allocate small blocks, the others free them; stresses the way back to the owner" },
	{ "prodcons-mid", run_prodcons, BLOCKS, "threads=2 min=1024 max=32768 slots=512",
	  "the same with mid-size blocks; stresses how much memory is on the way back" },
	{ "churn", run_churn, BLOCKS, "min=16 max=1024 slots=400",
	  "short-lived threads that leave blocks to later ones; stresses start and end of threads, which count as time" },
	{ "realloc", run_realloc, TEAM "min max slots step", "min=16 max=65536 step=64 slots=16",
	  "small buffers grow by appending; stresses growth in place and copying; an op is one realloc" },
	{ "realloc-large", run_realloc, TEAM "min max slots step", "min=4096 max=67108864 step=65536 slots=1",
	  "one buffer grows to 64 MiB, again and again; stresses growth by remapping; an op is one realloc" },
	{ "lookup", run_lookup, "seconds seed slabs repeat", "",
	  "from a pointer to its slab, as HAKMEM_USE_REGISTRY says; an op is one look-up, its time that of the quickest 4,096 "
	  "in a row, without the loop" },
	{ "hot-class", run_hot_class, TEAM "min slots touch", "min=64 slots=300",
	  "bursts of one size; stresses a thread cache smaller than a burst" },
	{ "phase-change", run_phase_change, TEAM "min slots touch", "min=64 slots=300",
	  "bursts of one size, then of its double, four in all; stresses what caches keep of the last phase" },
	{ "idle-threads", run_idle_threads, BLOCKS "rounds", "threads=64 min=16 max=1024 slots=300 rounds=30",
	  "bursts of all doublings from min to max, then every thread sleeps; stresses what idle threads keep" },
	{ "first-call", run_first_call, "threads seconds seed", "threads=200",
	  "the first malloc of each of so many threads, one after the other; an op is a malloc and a write" },
	{ "first-of-class", run_first_of_class, "threads seconds seed", "threads=100",
	  "the first malloc of each size up to 32 KiB in each thread, after another malloc; likewise" },
	{ "first-thousand", run_first_thousand, "threads seconds seed min max", "threads=100 min=16 max=1024",
	  "the first 1,000 mallocs of each thread, after another malloc; likewise" },
	{ "strewn", run_strewn, "min max phase apart seed", "min=64 max=1024",
	  "phase after phase of blocks of one more size, few of which stay to the end; stresses what these hold of slabs; "
	  "in hakmem they have a site, so that a rule may set them apart" },
	{ "phases", run_phases, BLOCKS "period", "min=512 max=32768 doublings=6 slots=1024 period=500",
	  "bursts of blocks of one size, which doubles every 500 ms and begins again; stresses what was learned of a class" },
	{ "prodcons-phases", run_prodcons_phases, BLOCKS "period",
	  "threads=2 min=1024 max=32768 doublings=5 slots=512 period=500",
	  "prodcons with blocks of one size, which doubles every 500 ms and begins again; stresses batches of both kinds" },
	{ "waves", run_waves, BLOCKS "period", "min=1048576 max=4194304 slots=32 period=1500",
	  "a wave of large blocks every 1.5 s, freed at once, and small blocks between; stresses what is kept from one to "
	  "the next; an op is a wave, its time that of the wave alone" },
	{ "handoff", run_handoff, TEAM "min max", "threads=4 min=64 max=64",
	  "half of the threads fill batches of 4,096 blocks (which it writes up to 128 bytes of), the others free them, by "
	  "one list under one lock; stresses frees of other threads' blocks, far from their malloc" },
	{ "stress", run_stress, TEAM "rounds slots", "threads=2 rounds=8 slots=1000",
	  "teams of threads, one after the other, that make 80 * rounds small and large blocks and more, written whole, free "
	  "some at once and others at their end, and swap some; stresses what ended threads leave" },
	{ "passes", run_passes, BLOCKS, "threads=2 min=8 max=16000 slots=1000",
	  "blocks, small ones more often, come and go at scattered positions; every other pass some are handed to the next "
	  "thread; stresses many classes and other threads' frees" },
	{ "pareto", run_pareto, TEAM "slots", "slots=262144",
	  "of slots (for all threads together), a few much more often than others, one is filled if empty, else read and "
	  "freed; blocks of 4-1,023 bytes, written whole; stresses how near to each other blocks are" },
	{ "simple", run_simple, TEAM, "",
	  "25, 100, 400 and 1,600 blocks of 16, 32 and 64 bytes, written whole, freed in their order" },
	{ "skewed", run_skewed, TEAM "min max slots", "min=4 max=32768 slots=1024",
	  "random replacement of blocks written whole, whose sizes are as frequent as their inverse squares" },
	{ "leak", run_leak, TEAM "size slots", "threads=10 size=128 slots=1000",
	  "teams of threads that make a single block, swap it for that of an ended thread, and end; stresses start and end "
	  "of threads; an op is a thread" },
	{ "big", run_replace, BLOCKS "warm", "min=5242880 max=26214400 slots=20 warm=2",
	  "random replacement of blocks of 5-25 MiB; stresses mappings and page faults" },
	{ "big-one", run_big_one, TEAM "size", "size=2097152", "one block of 2 MiB, written whole, freed, again and again" },
	{ "scratch", run_scratch, TEAM "size", "threads=2 size=8",
	  "each thread frees a block that main gave it, then makes one and writes it 250 times; stresses whether threads get "
	  "blocks in one cache line" },
	{ "numbers", run_numbers, TEAM, "",
	  "arithmetic, each result of which is a block of 8-60 bytes; as in programs that do more than allocate" },
	{ "pairs", run_pairs, LOOP, "", "malloc, free: the fast path and nothing else" },
	{ "calloc", run_calloc, LOOP, "", "calloc, free" },
	{ "burst", run_burst, LOOP, "", "64 mallocs, then 64 frees" },
};

/* ---- The report ---- */

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

static void print_field(const char *name, uint64_t value)
{
	if (value == UNKNOWN)
		printf(", \"%s\": null", name);
	else
		printf(", \"%s\": %llu", name, (unsigned long long)value);
}

static void print_text(const char *name, const char *text)
{
	printf(", \"%s\": \"", name);
	for (; *text != '\0'; text++)
		printf((unsigned char)*text < ' ' ? "\\u%04x" : *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
	putchar('"');
}

static const char *library_of_malloc(void) /* that of whoever answers */
{
	Dl_info info;
	return dladdr(dlsym(RTLD_DEFAULT, "malloc"), &info) != 0 && info.dli_fname != NULL ? info.dli_fname : "";
}

static void report(const struct workload *workload, struct result result)
{
	uint64_t counts[COUNTS];
	count(counts); /* before anything below allocates */
	uint64_t rss = peak_rss();
	if (result.ops == 0)
		die("not one op was done in %g s", key.seconds);
	double ns_per_op = result.seconds * 1e9 / (double)result.ops;
	printf("{\"workload\": \"%s\"", workload->name);
	print_text("library", library_of_malloc());
	print_field("threads", key.threads);
	print_field("ops", result.ops);
	printf(", \"seconds\": %.6f, \"ns_per_op\": %.4f", result.seconds, ns_per_op);
	print_field("p50_ns", result.p50 != 0 ? result.p50 : UNKNOWN);
	print_field("p95_ns", result.p95 != 0 ? result.p95 : UNKNOWN);
	print_field("p99_ns", result.p99 != 0 ? result.p99 : UNKNOWN);
	print_field("handovers", result.handovers);
	print_field("cached_bytes", result.cached_bytes);
	print_field("peak_rss_bytes", rss);
	for (size_t i = 0; i < COUNTS; i++)
		print_field(COUNTED[i], counts[i] != UNKNOWN ? counts[i] - at_start[i] : UNKNOWN);
	puts("}");
}

/* ---- main ---- */

_Noreturn static void usage(void)
{
	fputs("usage: _bench_workloads WORKLOAD [key=value ...]\n\nworkloads:\n", stderr);
	for (size_t i = 0; i < COUNT_OF(WORKLOADS); i++) {
		const struct workload *w = &WORKLOADS[i];
		fprintf(stderr, "  %-15s %s\n%18skeys: %s%s%s\n", w->name, w->help, "", w->keys, w->preset[0] ? "; preset: " : "",
				w->preset);
	}
	fputs("\nkeys:\n", stderr);
	for (size_t i = 0; i < COUNT_OF(KEY_TABLE); i++)
		fprintf(stderr, "  %-15s %s (default %g)\n", KEY_TABLE[i].name, KEY_TABLE[i].help, KEY_TABLE[i].initial);
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

static bool has_word(const char *words, const char *word)
{
	size_t length = strlen(word);
	for (const char *at = words; (at = strstr(at, word)) != NULL; at += length)
		if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
			return true;
	return false;
}

static void set_key(const struct workload *workload, const char *argument)
{
	const char *text = argument + strcspn(argument, "=");
	const struct key_row *row = find_key(argument, (size_t)(text - argument));
	if (!has_word(workload->keys, row->name))
		die("%s has no key %s; its keys: %s", workload->name, row->name, workload->keys);
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

static void set_preset(const struct workload *workload) /* words as on the command line */
{
	const char *preset = workload->preset;
	char word[64];
	int length;
	for (; sscanf(preset, "%63s%n", word, &length) == 1; preset += length)
		set_key(workload, word);
}

static void check_keys(void) /* what no key can say alone */
{
	if (key.min > key.max)
		die("min=%llu is above max=%llu", (unsigned long long)key.min, (unsigned long long)key.max);
	if (key.doublings != 0 && key.min << (key.doublings - 1) > key.max)
		die("min doubled %llu times is above max", (unsigned long long)key.doublings - 1);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		usage();
	const struct workload *workload = find_workload(argv[1]);
	set_preset(workload);
	for (int i = 2; i < argc; i++)
		set_key(workload, argv[i]);
	check_keys();
	report(workload, workload->run());
	if (fflush(stdout) != 0 || ferror(stdout))
		die("the result cannot be written: %s", strerror(errno));
	return 0;
}
