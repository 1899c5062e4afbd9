/* One scripted life of a process, in which the system refuses memory: every call of hakmem to it in turn, alone and with
 * those after it. Compiled together with _hakmem_backend.c in its debug variant, and run without hakmem preloaded, so
 * that hakmem's blocks are those of the script alone.
 * Arguments: every_call CALLS COUNT, again CALLS, or one of the cases at the end. $REFUSE: calls, nth, count, from the
 * first call of all on. */
#include "common.h"
#include <sys/wait.h>

void *hak_malloc(size_t), *hak_calloc(size_t, size_t), *hak_realloc(void *, size_t), *hak_aligned_alloc(size_t, size_t);
void hak_free(void *);
size_t hak_usable_size(const void *), hak_trim(void);
uint64_t hak_stat(const char *), hak_debug_fail(uint32_t calls, uint64_t nth, uint64_t count);
int hak_option_set(const char *, int64_t), hak_segment_table(void *, size_t, int);

enum { MMAP = 1, MREMAP = 2, MADVISE = 4, MUNMAP = 8, MPROTECT = 16, ALL = 31, HALF = 32 };

/* ---- blocks: 20 words of each are written, and looked at again */

struct block {
    unsigned char *p;
    size_t n;
    uint64_t key;
};
enum { BLOCKS = 600, WORDS = 20 };
static struct block blocks[BLOCKS];
static uint64_t keys;

/* What is written in shared memory survives the children. */
static struct tally {
    uint64_t refused, children, blocks, nulls;
} *tally;

static size_t step_of(size_t n) { return (n / WORDS < 8 ? 8 : n / WORDS) & ~(size_t)7; }

static void block_write(struct block *b)
{
    b->key = ++keys * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i + 8 <= b->n; i += step_of(b->n)) memcpy(b->p + i, &(uint64_t){b->key + i}, 8);
}

static void block_check(const unsigned char *p, const struct block *b, size_t limit)
{
    for (size_t i = 0; i + 8 <= b->n && i + 8 <= limit; i += step_of(b->n)) {
        uint64_t word;
        memcpy(&word, p + i, 8);
        CHECK(word == b->key + i, "a block of %zu bytes, at %zu", b->n, i);
    }
}

static int put(struct block *b, void *p, size_t n, size_t align)
{
    *b = (struct block){p, n, 0};
    if (!p) {
        CHECK(errno == ENOMEM, "errno %d", errno);
        __atomic_fetch_add(&tally->nulls, 1, __ATOMIC_RELAXED);
        return 0;
    }
    __atomic_fetch_add(&tally->blocks, 1, __ATOMIC_RELAXED);
    CHECK(((uintptr_t)p & (align - 1)) == 0 && hak_usable_size(p) >= n);
    block_write(b);
    return 1;
}

static int take(struct block *b, size_t n)
{
    errno = 0;
    return put(b, hak_malloc(n), n, n < 16 ? 8 : 16);
}

static int take_zeroed(struct block *b, size_t n)
{
    errno = 0;
    unsigned char *p = hak_calloc(1, n);
    if (p && n <= 2 * MIB) CHECK(is_zero(p, n), "%zu bytes", n);
    for (size_t i = 0; p && i + 8 <= n; i += step_of(n)) CHECK(is_zero(p + i, 8), "%zu bytes, at %zu", n, i);
    return put(b, p, n, n < 16 ? 8 : 16);
}

static int take_aligned(struct block *b, size_t align, size_t n)
{
    errno = 0;
    return put(b, hak_aligned_alloc(align, n), n, align);
}

static void give(struct block *b)
{
    if (!b->p) return;
    block_check(b->p, b, b->n);
    errno = 4711;
    hak_free(b->p);
    CHECK(errno == 4711, "free: errno %d", errno);
    b->p = NULL;
}

static void change(struct block *b, size_t n)
{
    if (!b->p) return;
    errno = 0;
    unsigned char *q = hak_realloc(b->p, n);
    if (!q) { /* the block is as it was */
        CHECK(errno == ENOMEM, "errno %d", errno);
        CHECK(n > b->n, "%zu bytes could not be made %zu", b->n, n);
        CHECK(hak_usable_size(b->p) >= b->n);
        block_check(b->p, b, b->n);
        __atomic_fetch_add(&tally->nulls, 1, __ATOMIC_RELAXED);
        return;
    }
    CHECK(hak_usable_size(q) >= n);
    block_check(q, b, n);
    *b = (struct block){q, n, 0};
    block_write(b);
}

/* ---- what has to hold whenever no other thread is inside */

static void laws(void)
{
    static _Alignas(16) unsigned char rows[256 * 1024];
    static struct snapshot s;
    const struct hak_record *segment = record("segment");
    int count = hak_segment_table(rows, segment->size, (int)(sizeof rows / segment->size));
    CHECK((size_t)count * segment->size <= sizeof rows);
    check_laws();
    take_snapshot(&s);
    uint64_t size = 0, out = 0;
    for (const unsigned char *at = rows; at < rows + (size_t)count * segment->size; at += segment->size) {
        size += about_number(segment, at, "total_size");
        out += about_number(segment, at, "used_blocks") * about_number(segment, at, "block_size");
    }
    CHECK(size + of(&s, "metadata_bytes") == of(&s, "committed_bytes"));
    CHECK(out == of(&s, "live_bytes") + of(&s, "cached_bytes") + of(&s, "transit_bytes"));
    CHECK(of(&s, "alloc_bytes") - of(&s, "freed_bytes") == of(&s, "live_bytes"));
}

/* Bytes of the process's mappings that hakmem does not count as its own. */
static size_t mapped_by_others(void)
{
    static char text[256 * 1024];
    size_t sum = 0, len = 0;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    for (ssize_t got; (got = read(fd, text + len, sizeof text - 1 - len)) > 0;) len += (size_t)got;
    close(fd);
    CHECK(len < sizeof text - 1);
    text[len] = 0;
    for (char *line = text, *end; *line; line = strchr(line, '\n') + 1) {
        size_t from = strtoull(line, &end, 16);
        sum += strtoull(end + 1, NULL, 16) - from;
    }
    return sum - hak_stat("address_space_bytes") - hak_stat("metadata_bytes") - hak_stat("whale_bytes")
           - hak_stat("kept_whale_bytes");
}

static uint64_t held_blocks(void)
{
    uint64_t n = 0;
    for (int i = 0; i < BLOCKS; i++) n += blocks[i].p != NULL;
    return n;
}

/* ---- a second thread, which does one thing at a time while the first waits */

enum { SMALL = 10000 };
static void *small[SMALL];
static struct block others[40];
static pthread_barrier_t turn;

static const size_t SIZES[] = {8,     24,    40,    100,   300,    500,   900,     1000, 1500, 3000, 5000,
                               12000, 20000, 32768, 40000, 100000, 64,    300000,  16,   700000, 2000, 1048576};

static void *other(void *argument)
{
    for (int i = 0; i < SMALL; i++) small[i] = hak_malloc(16);
    for (size_t i = 0; i < COUNT_OF(others); i++) take(&others[i], SIZES[i % COUNT_OF(SIZES)]);
    pthread_barrier_wait(&turn); /* the first frees some of these, and takes some */
    pthread_barrier_wait(&turn);
    for (size_t i = 0; i < COUNT_OF(others); i += 2) give(&others[i]);
    for (size_t i = 0; i < COUNT_OF(others); i += 4) take_zeroed(&others[i], SIZES[i % COUNT_OF(SIZES)]);
    pthread_barrier_wait(&turn);
    pthread_barrier_wait(&turn);
    for (int i = 0; i < 100; i++) { /* frees of the first one's blocks */
        give(&blocks[100 + i]);
        take(&blocks[100 + i], 200);
    }
    return argument;
}

static void with_another_thread(void)
{
    pthread_t thread;
    CHECK(pthread_barrier_init(&turn, NULL, 2) == 0);
    for (int i = 0; i < 100; i++) take(&blocks[100 + i], SIZES[i % 9]);
    CHECK(pthread_create(&thread, NULL, other, NULL) == 0);
    pthread_barrier_wait(&turn);
    for (int i = 0; i < SMALL; i++) {
        errno = 4711;
        hak_free(small[i]);
        CHECK(errno == 4711);
    }
    for (size_t i = 1; i < COUNT_OF(others); i += 4) give(&others[i]);
    laws();
    pthread_barrier_wait(&turn);
    pthread_barrier_wait(&turn);
    laws();
    for (size_t i = 0; i < COUNT_OF(others); i += 3) give(&others[i]);
    pthread_barrier_wait(&turn);
    CHECK(pthread_join(thread, NULL) == 0);
    laws();
    for (size_t i = 0; i < COUNT_OF(others); i++) give(&others[i]); /* orphans */
    for (int i = 0; i < 100; i++) give(&blocks[100 + i]);
    CHECK(pthread_barrier_destroy(&turn) == 0);
}

static void in_a_child(void)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        alarm(20);
        for (int i = 300; i < 330; i++) take(&blocks[i], SIZES[i % COUNT_OF(SIZES)]);
        take(&blocks[330], 2 * MIB);
        for (int i = 0; i < BLOCKS; i++) give(&blocks[i]);
        hak_trim();
        laws();
        CHECK(hak_stat("live_blocks") == 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0, "the child ended with %#x", (unsigned)status);
}

static void script(void)
{
    CHECK(hak_option_set("retain", 24 * MIB) == 0 && hak_option_set("purge_ms", 1000) == 0);
    /* all tiers, filled, emptied and zeroed */
    for (int i = 0; i < 60; i++) take(&blocks[i], SIZES[i % COUNT_OF(SIZES)]);
    for (int i = 0; i < 60; i += 2) give(&blocks[i]);
    for (int i = 0; i < 60; i += 2) take_zeroed(&blocks[i], SIZES[(i * 5) % COUNT_OF(SIZES)]);
    for (int i = 0; i < 60; i++) change(&blocks[i], SIZES[(i * 3 + 1) % COUNT_OF(SIZES)]);
    laws();
    /* alignments: of classes, of runs, of mappings */
    take_aligned(&blocks[60], 64, 100);
    take_aligned(&blocks[61], 4096, 10000);
    take_aligned(&blocks[62], 65536, 65536);
    take_aligned(&blocks[63], MIB, 3 * MIB);
    take_aligned(&blocks[64], 8 * MIB, 100);
    take_aligned(&blocks[65], 64 * MIB, 200000);
    take_aligned(&blocks[66], 128 * MIB, 5 * MIB);
    for (int i = 60; i < 67; i++) change(&blocks[i], 4 * MIB + (size_t)i * 100000);
    for (int i = 60; i < 67; i++) change(&blocks[i], 50000);
    for (int i = 60; i < 67; i++) give(&blocks[i]);
    /* runs that grow where they stand, cannot, become mappings, grow and shrink there */
    for (int i = 70; i < 76; i++) take(&blocks[i], 2 * MIB);
    take_zeroed(&blocks[76], 3 * MIB);
    give(&blocks[75]);
    change(&blocks[74], 3 * MIB);
    for (int i = 70; i < 74; i++) change(&blocks[i], 2 * MIB + (size_t)i * 40000);
    change(&blocks[70], 20 * MIB);
    change(&blocks[70], 70 * MIB);
    change(&blocks[70], 3 * MIB);
    change(&blocks[71], 1500000);
    change(&blocks[72], 1000);
    change(&blocks[73], 100 * MIB);
    laws();
    for (int i = 70; i < 77; i++) give(&blocks[i]);
    take_zeroed(&blocks[77], 3 * MIB); /* where others were */
    take_zeroed(&blocks[78], 2 * MIB);
    /* mappings, kept and not */
    take(&blocks[80], 70 * MIB);
    give(&blocks[80]);
    take(&blocks[80], 66 * MIB);
    take_zeroed(&blocks[81], 80 * MIB);
    give(&blocks[80]);
    give(&blocks[81]);
    /* metadata runs out: runs of 40 MiB need 10 superslabs each */
    take(&blocks[82], 40 * MIB);
    with_another_thread();
    take(&blocks[83], 30 * MIB);
    give(&blocks[82]);
    give(&blocks[83]);
    hak_trim();
    laws();
    /* nothing is kept from here on */
    CHECK(hak_option_set("retain", 0) == 0 && hak_option_set("purge_ms", 0) == 0);
    for (int i = 200; i < 260; i++) take(&blocks[i], SIZES[i % COUNT_OF(SIZES)]);
    for (int i = 0; i < 8; i++) take(&blocks[260 + i], (size_t)(i + 1) * MIB);
    for (int i = 200; i < 268; i += 2) give(&blocks[i]);
    for (int i = 200; i < 268; i += 2) take_zeroed(&blocks[i], i < 260 ? 3000 : 2 * MIB);
    for (int i = 201; i < 268; i += 2) give(&blocks[i]);
    take(&blocks[268], 70 * MIB);
    give(&blocks[268]);
    with_another_thread();
    in_a_child();
    for (int i = 0; i < BLOCKS; i += 2) give(&blocks[i]);
    hak_trim();
    laws();
    CHECK(hak_stat("live_blocks") == held_blocks());
    for (int i = 0; i < 50; i++) take_zeroed(&blocks[2 * i], SIZES[i % COUNT_OF(SIZES)]);
}

/* The system gives memory again: everything works, and nothing is missing. */
static void recover(void)
{
    hak_debug_fail(0, 0, 0);
    laws();
    CHECK(hak_stat("live_blocks") == held_blocks());
    uint64_t nulls = tally->nulls;
    for (size_t i = 0; i < COUNT_OF(SIZES); i++) take(&blocks[500 + i], SIZES[i]);
    take_zeroed(&blocks[420], 3 * MIB);
    take(&blocks[421], 70 * MIB);
    take_aligned(&blocks[422], 128 * MIB, MIB);
    change(&blocks[420], 30 * MIB);
    change(&blocks[421], 90 * MIB);
    CHECK(tally->nulls == nulls, "memory is back, and cannot be had");
    for (int i = 0; i < BLOCKS; i++) give(&blocks[i]);
    hak_trim();
    laws();
    CHECK(hak_stat("live_blocks") == 0);
    CHECK(hak_stat("transit_bytes") == 0);
    CHECK(hak_stat("kept_whale_bytes") == 0);
    CHECK(hak_stat("free_dirty_bytes") == 0);
    CHECK(hak_stat("in_use_bytes") == 0);
}

/* ---- the cases */

static size_t mapped_at_first;

static void *nothing(void *argument) { return argument; }

static void prepare(void)
{
    pthread_t thread;
    tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tally != MAP_FAILED);
    CHECK(pthread_create(&thread, NULL, nothing, NULL) == 0 && pthread_join(thread, NULL) == 0); /* libc keeps its stack */
    dlsym(RTLD_DEFAULT, "hak_stats_snapshot"); /* what it needs, too */
    mapped_at_first = mapped_by_others();
}

static uint64_t live(uint32_t calls, uint64_t nth, uint64_t count)
{
    hak_debug_fail(calls, nth, count);
    script();
    uint64_t made = hak_debug_fail(0, 0, 0), refused = made < nth ? 0 : made - nth < count ? made - nth + 1 : count;
    tally->refused += refused;
    recover();
    CHECK(mapped_by_others() == mapped_at_first, "%zd bytes are lost",
          (ssize_t)(mapped_by_others() - mapped_at_first));
    return refused;
}

/* Each n from 1 until there is no such call any more, each in a child of its own. */
static void every_call(uint32_t calls, uint64_t count)
{
    prepare();
    for (int without = 0; without < 3;) { /* a call more or less hangs on the clock */
        int status;
        uint64_t before = tally->refused;
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            alarm(60);
            live(calls, tally->children + 1, count);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(status == 0, "calls %u, %llu from number %llu on: a child ended with %#x", calls,
              (unsigned long long)count, (unsigned long long)tally->children + 1, (unsigned)status);
        tally->children++;
        without = tally->refused == before ? without + 1 : 0;
    }
    CHECK(tally->children > 8, "the script makes too few of these calls");
    dprintf(1, "%llu lives, %llu calls refused, %llu blocks, %llu NULLs\n", (unsigned long long)tally->children,
            (unsigned long long)tally->refused, (unsigned long long)tally->blocks, (unsigned long long)tally->nulls);
}

/* Many lives, one after the other, in one process: what it has mapped does not grow. */
static void again(uint32_t calls)
{
    size_t mapped = 0;
    prepare();
    for (int i = 0; i < 50; i++) {
        live(calls, 1 + (uint64_t)i * 7 % 13, 1 + (uint64_t)i % 5);
        if (i == 9) mapped = hak_stat("address_space_bytes") + hak_stat("metadata_bytes");
    }
    CHECK(tally->refused >= 25, "%d", (int)tally->refused);
    size_t now = hak_stat("address_space_bytes") + hak_stat("metadata_bytes");
    CHECK(now <= mapped, "%zd bytes more than after ten", (ssize_t)(now - mapped));
    dprintf(1, "%d calls refused\n", (int)tally->refused);
}

/* ---- the first calls, before main */

__attribute__((constructor(101))) static void before_hakmem(void)
{
    const char *text = getenv("REFUSE");
    char *end;
    if (!text) return;
    uint32_t calls = (uint32_t)strtoul(text, &end, 10);
    uint64_t nth = strtoull(end, &end, 10);
    hak_debug_fail(calls, nth, strtoull(end, NULL, 10));
}

static void started(void)
{
    for (int i = 0; i < 60; i++) take(&blocks[i], SIZES[i % COUNT_OF(SIZES)]);
    take(&blocks[60], 3 * MIB);
    for (int i = 0; i < 60; i += 2) give(&blocks[i]);
    with_another_thread();
    in_a_child();
    uint64_t made = hak_debug_fail(0, 0, 0);
    CHECK(made > 0);
    recover();
    live(ALL, 0, 0);
}

/* ---- a realloc to a smaller size was refused where the system would not cut a mapping, or had no memory for another
 * block: it can always stay as it is */

static void a_shrink_is_never_refused(void)
{
    static const size_t sizes[][2] = {{70 * MIB, 3 * MIB}, {70 * MIB, 1000}, {5 * MIB, 1000}, {MIB, 1000}, {5000, 50}};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) take(&blocks[i], sizes[i][0]);
    hak_debug_fail(ALL, 1, UINT64_MAX);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        CHECK(blocks[i].p);
        change(&blocks[i], sizes[i][1]);
        CHECK(blocks[i].n == sizes[i][1]);
    }
    CHECK(tally->nulls == 0);
    recover();
}

/* ---- a realloc of a mapping that mremap refused was NULL, with any amount of memory free */

static void growth_without_mremap(void)
{
    take(&blocks[0], 70 * MIB);
    hak_debug_fail(MREMAP, 1, UINT64_MAX);
    change(&blocks[0], 80 * MIB);
    CHECK(hak_debug_fail(0, 0, 0) > 0 && blocks[0].n == 80 * MIB);
    recover();
}

/* ---- a freed mapping that the system did not unmap was lost, with its memory, and counted nowhere */

static void what_is_not_unmapped_is_kept(void)
{
    CHECK(hak_option_set("retain", 0) == 0);
    take(&blocks[0], 70 * MIB);
    memset(blocks[0].p, 1, 20 * MIB);
    block_write(&blocks[0]);
    hak_debug_fail(MUNMAP, 1, UINT64_MAX);
    size_t rss = rss_bytes();
    give(&blocks[0]);
    CHECK(hak_debug_fail(MUNMAP, 1, UINT64_MAX) > 0, "munmap was not asked: the case tests nothing");
    CHECK(hak_stat("kept_whale_bytes") == 70 * MIB && hak_stat("live_blocks") == 0);
    CHECK(rss_bytes() + 15 * MIB < rss, "its memory stayed: %zu KiB of %zu", rss_bytes() / KIB, rss / KIB);
    laws();
    CHECK(mapped_by_others() == mapped_at_first);
    take_zeroed(&blocks[0], 69 * MIB); /* it is had again */
    CHECK(hak_stat("whale_hits") == 1);
    give(&blocks[0]);
    take_aligned(&blocks[1], 128 * MIB, MIB); /* ends that do not come off */
    laws();
    CHECK(mapped_by_others() == mapped_at_first);
    for (int i = 0; i < 1000; i++) { /* it is not tried for ever */
        take(&blocks[2], 70 * MIB + (size_t)i * 8192);
        give(&blocks[2]);
    }
    laws();
    recover();
    CHECK(mapped_by_others() == mapped_at_first);
}

/* ---- a large block and small ones in turn, the large one refused each time, used up all ranges: only the last was looked
 * at, and where it was too short another was reserved */

static void ranges_are_not_used_up(void)
{
    size_t reserved = 0;
    for (int i = 0; i < 200; i++) {
        hak_debug_fail(MPROTECT, 1, 1);
        take(&blocks[i], 40 * MIB); /* of its own mapping, then */
        hak_debug_fail(0, 0, 0);
        give(&blocks[i]);
        take(&blocks[i], 3 * MIB);
        take(&blocks[200 + i], MIB);
        if (i == 20) reserved = hak_stat("address_space_bytes");
    }
    CHECK(tally->nulls == 0);
    CHECK(hak_stat("address_space_bytes") < reserved + 1000 * MIB, "%zu MiB",
          (size_t)hak_stat("address_space_bytes") / MIB);
    laws();
    recover();
}

/* ---- a small block was refused while freed mappings were kept */

static void kept_mappings_stand_in_no_blocks_way(void)
{
    take(&blocks[0], 70 * MIB);
    take(&blocks[1], 70 * MIB);
    give(&blocks[0]);
    CHECK(hak_stat("kept_whale_bytes") > 0, "it was not kept: the case tests nothing");
    hak_debug_fail(MPROTECT, 1, 1);
    take(&blocks[2], 700000);
    CHECK(hak_debug_fail(0, 0, 0) == 2);
    CHECK(tally->nulls == 0 && hak_stat("kept_whale_bytes") == 0);
    recover();
}

/* ---- a slab whose OS pages the system did not take back was not asked about again before a block was freed in it */

static void a_refused_trim_can_be_repeated(void)
{
    for (int i = 0; i < 200; i++) take(&blocks[i], 20000);
    for (int i = 0; i < 200; i++)
        if (i % 3) give(&blocks[i]);
    hak_debug_fail(MADVISE, 1, UINT64_MAX);
    hak_trim();
    CHECK(hak_debug_fail(0, 0, 0) > 0, "madvise was not asked: the case tests nothing");
    CHECK(hak_stat("slab_purged_bytes") == 0);
    hak_trim();
    CHECK(hak_stat("slab_purged_bytes") > 100 * 12288, "%zu", (size_t)hak_stat("slab_purged_bytes"));
    recover();
}

/* ---- a thread whose heap could not be given a destructor kept it for ever */

static int specific_refused;

int pthread_setspecific(pthread_key_t key, const void *value)
{
    static int (*real)(pthread_key_t, const void *);
    if (specific_refused) return ENOMEM;
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_setspecific");
    return real(key, value);
}

static void *a_few_blocks(void *argument)
{
    struct block *b = argument;
    for (int i = 0; i < 100; i++) take(&b[i], SIZES[(size_t)i % COUNT_OF(SIZES)]);
    for (int i = 0; i < 100; i += 3) give(&b[i]);
    return argument;
}

static void a_heap_that_cannot_end_is_not_begun(void)
{
    pthread_t thread;
    take(&blocks[0], 100);
    for (int i = 0; i < 20; i++) {
        specific_refused = i % 2 == 0;
        CHECK(pthread_create(&thread, NULL, a_few_blocks, &blocks[100]) == 0 && pthread_join(thread, NULL) == 0);
        specific_refused = 0;
        for (int k = 100; k < 200; k++) give(&blocks[k]);
        CHECK(hak_stat("heaps") <= 2, "%d", (int)hak_stat("heaps")); /* the first thread's, and the shared one */
        CHECK(hak_stat("heaps_made") <= 2);
        laws();
    }
    CHECK(tally->nulls == 0);
    recover();
}

/* ---- not a fault yet: blocks of other threads find home without memory for a batch, and mappings need an entry */

static void *owner_that_waits(void *argument)
{
    for (int i = 0; i < SMALL; i++) small[i] = hak_malloc(16);
    pthread_barrier_wait(&turn);
    pthread_barrier_wait(&turn);
    return argument;
}

static void blocks_go_home_without_a_batch(void)
{
    pthread_t thread;
    uint64_t nulls;
    int i = 0;
    CHECK(pthread_barrier_init(&turn, NULL, 2) == 0);
    take(&blocks[0], 100);
    CHECK(pthread_create(&thread, NULL, owner_that_waits, NULL) == 0);
    pthread_barrier_wait(&turn);
    hak_debug_fail(MMAP, 1, UINT64_MAX);
    for (; tally->nulls == 0; i++) take(&blocks[1 + i], i < 20 ? 30 * MIB : 3 * MIB); /* metadata for superslabs ends */
    CHECK(i < 100);
    for (int k = 0; k < SMALL; k++) {
        errno = 4711;
        hak_free(small[k]);
        CHECK(errno == 4711);
    }
    CHECK(hak_stat("remote_frees") == SMALL);
    CHECK((hak_stat("batches_posted") + hak_stat("batches_claimed")) * 126 < SMALL - 1000, "there was memory for batches");
    nulls = tally->nulls;
    take(&blocks[200], 70 * MIB);
    CHECK(tally->nulls == nulls + 1);
    laws();
    pthread_barrier_wait(&turn);
    CHECK(pthread_join(thread, NULL) == 0);
    recover();
    CHECK(mapped_by_others() == mapped_at_first);
}

static const struct test_case CASES[] = {
    CASE(blocks_go_home_without_a_batch),
    CASE(a_heap_that_cannot_end_is_not_begun),
    CASE(a_refused_trim_can_be_repeated),
    CASE(kept_mappings_stand_in_no_blocks_way),
    CASE(ranges_are_not_used_up),
    CASE(what_is_not_unmapped_is_kept),
    CASE(a_shrink_is_never_refused),
    CASE(growth_without_mremap),
};

int main(int argc, char **argv)
{
    if (argc == 2) {
        prepare();
        if (strcmp(argv[1], "started") == 0) return started(), 0;
        return run_case(argc, argv, CASES, COUNT_OF(CASES));
    }
    CHECK(argc >= 3);
    uint32_t calls = (uint32_t)strtoul(argv[2], NULL, 10);
    uint64_t count = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    if (strcmp(argv[1], "every_call") == 0) return every_call(calls, count), 0;
    if (strcmp(argv[1], "again") == 0) return again(calls), 0;
    return 1;
}
