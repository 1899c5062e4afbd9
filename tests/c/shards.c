/* The shards of the page heap. Uses hak_* only; compiled together with _hakmem_backend.c.
 * Argument: grow: threads wait for each other until there are more shards;
 * follow: memory that one shard has is all that is used when others want some;
 * serve: so is what BigCache keeps of a shard. */
#include "laws.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void *hak_malloc(size_t), hak_free(void *);
size_t hak_trim(void);
int hak_shard_table(void *, size_t, int), hak_option_set(const char *, int64_t);
uint64_t hak_stat(const char *);

enum { MIB = 1 << 20, THREADS = 4, MOST = 64 };
static atomic_int stop;

static void pause_ms(long ms)
{
    struct timespec t = {0, ms * 1000000};
    nanosleep(&t, NULL);
}

/* The rows of the table are those of the shards, in order, and add up to the counters of all. */
static void check_table(void)
{
    static _Alignas(16) char rows[MOST * 1024], stats[4096];
    const struct hak_record *r = record("shard"), *s = record("stats");
    CHECK(r->size * MOST <= sizeof rows && hak_stats_snapshot(stats, s->size) == 0);
    int n = hak_shard_table(rows, r->size, MOST);
    uint64_t supers = 0, used = 0, dirty = 0, clean = 0, orphans = 0, large = 0, moved = 0, lent = 0;
    for (int i = 0; i < n; i++) {
        const char *row = rows + (size_t)i * r->size;
#define ROW_OF(name) about_number(r, row, name)
        uint64_t all = ROW_OF("used_bytes") + ROW_OF("dirty_bytes") + ROW_OF("clean_bytes");
        CHECK(ROW_OF("shard") == (uint64_t)i && all == ROW_OF("superslabs") * 4 * MIB);
        CHECK(ROW_OF("contended") <= ROW_OF("taken"));
        CHECK((ROW_OF("free_runs") == 0) == (ROW_OF("dirty_bytes") + ROW_OF("clean_bytes") == 0));
        supers += ROW_OF("superslabs");
        used += ROW_OF("used_bytes");
        dirty += ROW_OF("dirty_bytes");
        clean += ROW_OF("clean_bytes");
        orphans += ROW_OF("orphan_slabs");
        large += ROW_OF("large_blocks");
        moved += ROW_OF("moved_in");
        lent += ROW_OF("lent");
    }
#define ALL(name) about_number(s, stats, name)
    CHECK((uint64_t)n == ALL("shards") && supers == ALL("superslabs"));
    CHECK(orphans <= ALL("orphan_slabs")); /* the others wait with a heap */
    /* Some units are at hand in heaps, some runs in BigCache; no mappings are made here. */
    CHECK(used + dirty == ALL("in_use_bytes") - ALL("whale_bytes") + ALL("free_dirty_bytes") + ALL("kept_whale_bytes"));
    CHECK(dirty <= ALL("free_dirty_bytes") && clean == ALL("free_clean_bytes"));
    CHECK(large == ALL("large_blocks") + ALL("big_entries"));
    CHECK(moved == ALL("superslabs_moved") && lent == ALL("runs_borrowed"));
}

static void *take_and_give(void *argument)
{
    void *p[8];
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 8; i++) CHECK((p[i] = hak_malloc(1 * MIB)) != NULL);
        for (int i = 0; i < 8; i++) hak_free(p[i]);
        for (int i = 0; i < 8; i++) CHECK((p[i] = hak_malloc(2 * MIB)) != NULL);
        for (int i = 0; i < 8; i++) hak_free(p[i]);
    }
    return argument;
}

static void grow(void)
{
    pthread_t thread[THREADS];
    void *kept = hak_malloc(3 * MIB);
    uint64_t shards = hak_stat("shards");
    CHECK(shards == 1 && hak_option_set("shard_threshold", 0) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, take_and_give, NULL) == 0);
    for (int i = 0; i < 10000 && hak_stat("shared_locks_contended") < 10; i++) pause_ms(1);
    CHECK(hak_stat("shared_locks_contended") >= 10 && hak_stat("shards") == 1); /* 0: never */
    CHECK(hak_option_set("shard_threshold", 1) == 0);
    for (int i = 0; i < 20000 && hak_stat("shards") < 4; i++) pause_ms(1);
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    shards = hak_stat("shards");
    CHECK(shards >= 4 && (shards & (shards - 1)) == 0 && shards == 1ull << hak_stat("shard_growths"));
    check_table();
    laws();
    hak_free(kept);
    hak_trim();
    check_table();
    laws();
}

enum { SLABS = 400, BLOCK = 48 << 10 };

static void *fill_and_free(void *argument)
{
    static char *p[SLABS];
    for (int i = 0; i < SLABS; i++) {
        CHECK((p[i] = hak_malloc(BLOCK)) != NULL);
        memset(p[i], i, BLOCK);
    }
    for (int i = 0; i < SLABS; i++) hak_free(p[i]);
    return argument;
}

static void *stand_by(void *argument)
{
    hak_free(hak_malloc(100));
    while (!atomic_load(&stop)) pause_ms(1);
    return argument;
}

/* Threads of other shards, one after another, do the same as the first, with the memory that it has left. */
static void follow(void)
{
    enum { ROUNDS = 20 };
    pthread_t idle[ROUNDS], thread;
    size_t before, after;
    CHECK(hak_stat("shards") == MOST);
    CHECK(hak_option_set("purge_ms", 3600000) == 0 && hak_option_set("retain", 1 << 30) == 0);
    CHECK(pthread_create(&thread, NULL, fill_and_free, NULL) == 0 && pthread_join(thread, NULL) == 0);
    before = hak_stat("free_dirty_bytes") + hak_stat("in_use_bytes");
    CHECK(before >= (size_t)SLABS * BLOCK);
    for (int i = 0; i < ROUNDS; i++) { /* who stands by keeps the last heap, so that the next thread has another */
        CHECK(pthread_create(&idle[i], NULL, stand_by, NULL) == 0);
        while (hak_stat("heaps") < (uint64_t)i + 1) pause_ms(1);
        CHECK(pthread_create(&thread, NULL, fill_and_free, NULL) == 0 && pthread_join(thread, NULL) == 0);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < ROUNDS; i++) CHECK(pthread_join(idle[i], NULL) == 0);
    after = hak_stat("free_dirty_bytes") + hak_stat("in_use_bytes");
    if (after > before * 3 / 2) dprintf(2, "dirty or in use were %zu, are %zu\n", before, after);
    CHECK(after <= before * 3 / 2); /* of 21 times as much */
    CHECK(hak_stat("superslabs_moved") > 0 && hak_stat("runs_borrowed") > 0);
    check_table();
    laws();
}

static void serve(void)
{
    enum { LARGE = 60 };
    char *p[LARGE];
    pthread_t thread;
    CHECK(hak_stat("shards") == MOST);
    CHECK(hak_option_set("purge_ms", 3600000) == 0 && hak_option_set("retain", 1 << 30) == 0);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < LARGE; i++) CHECK((p[i] = memset(hak_malloc(2 * MIB), 1, 2 * MIB)) != NULL);
        for (int i = 0; i < LARGE; i++) hak_free(p[i]);
    }
    size_t kept = hak_stat("kept_whale_bytes"), all = kept + hak_stat("free_dirty_bytes") + hak_stat("in_use_bytes");
    CHECK(kept >= (size_t)LARGE / 2 * 2 * MIB);
    CHECK(pthread_create(&thread, NULL, fill_and_free, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(hak_stat("kept_whale_bytes") <= kept - 16 * MIB); /* 19 MiB, but for what was free anyway */
    CHECK(hak_stat("kept_whale_bytes") + hak_stat("free_dirty_bytes") + hak_stat("in_use_bytes") <= all + 4 * MIB);
    check_table();
    laws();
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    if (strcmp(argv[1], "grow") == 0)
        grow();
    else if (strcmp(argv[1], "follow") == 0)
        follow();
    else
        serve();
    puts("done");
    return 0;
}
