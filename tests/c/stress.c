/* For the sanitizers: threads that allocate, free one another's blocks, grow them, die and are replaced, beside one
 * that trims, one that reads statistics and sets options, and one that forks. Uses hak_* only; compiled together with
 * _hakmem_backend.c. Argument: rounds (a round is a life of each worker). */
#include "laws.h"
#include "lanes.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void *hak_malloc(size_t), *hak_calloc(size_t, size_t), *hak_realloc(void *, size_t), *hak_aligned_alloc(size_t, size_t);
void *hak_alloc_at(size_t, uint64_t);
void hak_free(void *), hak_free_at(void *, uint64_t);
int hak_free_checked(void *);
size_t hak_usable_size(const void *), hak_trim(void);
int hak_tier_table(void *, size_t, int), hak_heap_table(void *, size_t, int), hak_lock_table(void *, size_t, int);
int hak_shard_table(void *, size_t, int), hak_mapping_table(void *, size_t, int), hak_owner_of(const void *, void *, size_t), hak_option_set(const char *, int64_t);
uint64_t hak_stat(const char *);
void hak_reset_peaks(void);

struct block {
    size_t n;
    uint64_t key; /* also in the last bytes, where there is room */
};

enum { WORKERS = 6, STEPS = 1500, SLOTS = 256 };
static _Atomic(struct block *) slots[SLOTS];
static atomic_int stop, forks;

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 29);
}

static struct block *write_block(void *p, size_t n, uint64_t key)
{
    struct block *b = p;
    CHECK(b);
    b->n = n;
    b->key = key;
    if (n >= sizeof *b + sizeof key) memcpy((char *)p + n - sizeof key, &key, sizeof key);
    return b;
}

static void check_block(const struct block *b)
{
    uint64_t end = b->key;
    if (b->n >= sizeof *b + sizeof end) memcpy(&end, (const char *)b + b->n - sizeof end, sizeof end);
    CHECK(end == b->key && hak_usable_size(b) >= b->n);
}

static size_t pick_size(uint64_t *seed)
{
    size_t r = next_random(seed) % 1000;
    size_t most = r < 850 ? 1024 : r < 970 ? 32768 : r < 998 ? 1 << 20 : 5 << 20;
    return sizeof(struct block) + next_random(seed) % most;
}

static struct block *make(uint64_t *seed)
{
    size_t n = pick_size(seed);
    switch (next_random(seed) % 8) {
    case 0: {
        struct block *b = hak_calloc(1, n);
        CHECK(b && b->n == 0 && ((char *)b)[n - 1] == 0);
        return write_block(b, n, next_random(seed));
    }
    case 1: return write_block(hak_aligned_alloc((size_t)16 << next_random(seed) % 10, n), n, next_random(seed));
    case 2: return write_block(hak_alloc_at(n, next_random(seed) % 100), n, next_random(seed));
    default: return write_block(hak_malloc(n), n, next_random(seed));
    }
}

static void end(struct block *b, uint64_t *seed)
{
    if (!b) return;
    check_block(b);
    switch (next_random(seed) % 8) {
    case 0: CHECK(hak_free_checked(b) == 0); break;
    case 1: hak_free_at(b, 5); break;
    case 2: hak_realloc(b, 0); break;
    default: hak_free(b);
    }
}

static void *work(void *argument)
{
    uint64_t seed = (uintptr_t)argument * 77 + 1;
    for (int i = 0; i < STEPS; i++) {
        struct block *b = make(&seed);
        if (i % 4 == 0) {
            size_t n = pick_size(&seed), old = b->n;
            uint64_t key = b->key;
            b = hak_realloc(b, n);
            CHECK(b && b->key == key && b->n == old);
            write_block(b, n, key);
        }
        if (i % 5 == 0) { /* a block that never leaves this thread */
            end(make(&seed), &seed);
        }
        end(atomic_exchange(&slots[next_random(&seed) % SLOTS], b), &seed);
    }
    if (next_random(&seed) % 4 == 0) /* one that only frees for a while, then dies */
        for (int i = 0; i < SLOTS; i++) end(atomic_exchange(&slots[i], NULL), &seed);
    return NULL;
}

static void *lane(void *argument) { return one_after_another(argument, work, WORKERS); }

static void *trim(void *argument)
{
    while (!atomic_load(&stop)) {
        hak_trim();
        pause_ms(2);
    }
    return argument;
}

static size_t record_size(const char *name) { return record(name)->size; }

static void *look(void *argument)
{
    static _Alignas(16) char out[512 * 1024];
    static const char *const rising[] = {"allocs", "frees", "alloc_bytes", "freed_bytes", "cache_misses", "refills",
        "flushes", "remote_frees", "shared_locks", "claims", "purged_bytes", "whale_hits", "shards",
        "shard_growths", "superslabs_moved", "runs_borrowed"};
    uint64_t last[sizeof rising / sizeof *rising] = {0};
    size_t stats = record_size("stats"), class = record_size("class"), tier = record_size("tier"), owner = record_size("owner");
    size_t heap = record_size("heap"), lock = record_size("lock"), segment = record_size("segment");
    size_t shard = record_size("shard"), mapping = record_size("mapping");
    CHECK(stats <= sizeof out && owner <= sizeof out && class * 500 <= sizeof out);
    for (int i = 0; !atomic_load(&stop); i++) {
        CHECK(hak_stats_snapshot(out, stats) == 0);
        for (size_t k = 0; k < sizeof rising / sizeof *rising; k++) {
            uint64_t now = about_number(record("stats"), out, rising[k]);
            if (now < last[k]) dprintf(2, "%s went from %llu to %llu\n", rising[k], (unsigned long long)last[k],
                                       (unsigned long long)now);
            CHECK(now >= last[k]);
            last[k] = now;
        }
        CHECK(hak_class_table(out, class, 500) > 0);
        CHECK(hak_tier_table(out, tier, 20) > 0);
        CHECK(hak_heap_table(out, heap, 500) >= 0);
        CHECK(hak_lock_table(out, lock, 500) > 0);
        CHECK(hak_shard_table(out, shard, 64) > 0);
        CHECK(hak_mapping_table(out, mapping, 500) > 1);
        CHECK(hak_segment_table(out, segment, (int)(sizeof out / segment)) >= 0);
        if (i % 8 == 0) hak_reset_peaks();
        for (int s = 0; s < SLOTS; s++) { /* alive or not: it may be wrong, never a fault */
            void *p = atomic_load(&slots[s]);
            if (p) hak_owner_of((char *)p + 8, out, owner);
        }
        CHECK(hak_stat("allocs") != UINT64_MAX);
        CHECK(hak_option_set("purge_ms", i % 3 ? 1000 : 0) == 0);
        CHECK(hak_option_set("retain", i % 2 ? 0 : 32 << 20) == 0);
        CHECK(hak_option_set("cache_limit", i % 5 ? 4 << 20 : 0) == 0);
        CHECK(hak_option_set("adaptive_sizing", i % 7 != 0) == 0);
        CHECK(hak_option_set("prewarm_tls", i % 3) == 0);
        pause_ms(1);
    }
    return argument;
}

static void *fork_children(void *argument)
{
    uint64_t seed = 4711;
    while (!atomic_load(&stop)) {
        pid_t pid = fork();
        if (pid == 0) {
            alarm(60);
            laws();
            for (int i = 0; i < 300; i++) end(make(&seed), &seed);
            for (int i = 0; i < SLOTS; i++) end(atomic_exchange(&slots[i], NULL), &seed);
            hak_trim();
            laws();
            _exit(0);
        }
        CHECK(pid > 0);
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        if (status) dprintf(2, "a child ended with status 0x%x\n", status);
        CHECK(status == 0);
        atomic_fetch_add(&forks, 1);
        pause_ms(20);
    }
    return argument;
}

int main(int argc, char **argv)
{
    size_t rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 10;
    pthread_t lanes[WORKERS], beside[3];
    void *(*const runs[3])(void *) = {trim, look, fork_children};
    int besides = argc > 2 ? 2 : 3; /* a second argument: without forks */
    for (int i = 0; i < besides; i++) CHECK(pthread_create(&beside[i], NULL, runs[i], NULL) == 0);
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_create(&lanes[i], NULL, lane, (void *)(rounds << 8 | i)) == 0);
    for (int i = 0; i < WORKERS; i++) CHECK(pthread_join(lanes[i], NULL) == 0);
    atomic_store(&stop, 1);
    for (int i = 0; i < besides; i++) CHECK(pthread_join(beside[i], NULL) == 0);
    uint64_t seed = 1;
    for (int i = 0; i < SLOTS; i++) end(atomic_exchange(&slots[i], NULL), &seed);
    laws();
    printf("%zu rounds, forks %s\n", rounds, atomic_load(&forks) ? "yes" : "no");
    return 0;
}
