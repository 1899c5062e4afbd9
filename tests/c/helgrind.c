/* For helgrind, without thread caches (HAKMEM_ENABLE_TLS=0): threads that allocate, grow and free one another's blocks,
 * end and are replaced, beside one that trims, one that reads statistics and sets options, and one that forks. Blocks
 * change hands under mutexes, which helgrind understands. Uses hak_* only; compiled together with _hakmem_backend.c
 * and -DHAK_PTHREAD_LOCKS. Argument: rounds. */
#include "about.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void *hak_malloc(size_t), *hak_calloc(size_t, size_t), *hak_realloc(void *, size_t), *hak_aligned_alloc(size_t, size_t);
void hak_free(void *);
int hak_free_checked(void *);
size_t hak_usable_size(const void *), hak_trim(void);
int hak_stats_snapshot(void *, size_t), hak_class_table(void *, size_t, int), hak_tier_table(void *, size_t, int);
int hak_heap_table(void *, size_t, int), hak_lock_table(void *, size_t, int), hak_segment_table(void *, size_t, int);
int hak_mapping_table(void *, size_t, int);
int hak_owner_of(const void *, void *, size_t), hak_option_set(const char *, int64_t);
int hak_option_get(const char *, int64_t *);
void hak_reset_peaks(void);
const struct hak_about *hak_about(void);

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            dprintf(2, "helgrind.c:%d: %s\n", __LINE__, #condition);                                                   \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)
#include "lanes.h"

enum { WORKERS = 3, STEPS = 120, SLOTS = 64 };
static struct {
    pthread_mutex_t mutex;
    char *block;
    size_t n;
} slot[SLOTS];
static pthread_mutex_t stopping = PTHREAD_MUTEX_INITIALIZER;
static bool stop;

static bool stopped(void)
{
    pthread_mutex_lock(&stopping);
    bool now = stop;
    pthread_mutex_unlock(&stopping);
    return now;
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 29);
}

static size_t pick_size(uint64_t *seed)
{
    size_t r = next_random(seed) % 100;
    return 2 + next_random(seed) % (r < 80 ? 1024 : r < 95 ? 32768 : r < 99 ? 1 << 20 : 5 << 20);
}

static void put(size_t i, uint64_t *seed) /* a new block into slot i, and what was there goes */
{
    size_t n = pick_size(seed);
    char *p = next_random(seed) % 4 == 0   ? hak_calloc(1, n)
              : next_random(seed) % 4 == 0 ? hak_aligned_alloc((size_t)16 << next_random(seed) % 10, n)
                                           : hak_malloc(n);
    CHECK(p && hak_usable_size(p) >= n);
    p[0] = p[n - 1] = (char)n;
    pthread_mutex_lock(&slot[i].mutex);
    char *old = slot[i].block;
    size_t size = slot[i].n;
    slot[i].block = p;
    slot[i].n = n;
    pthread_mutex_unlock(&slot[i].mutex);
    if (!old) return;
    CHECK(old[0] == (char)size && old[size - 1] == (char)size);
    if (next_random(seed) % 4 == 0) CHECK((old = hak_realloc(old, pick_size(seed))));
    if (next_random(seed) % 4 == 0)
        CHECK(hak_free_checked(old) == 0);
    else
        hak_free(old);
}

static void *work(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    for (int i = 0; i < STEPS; i++) put(next_random(&seed) % SLOTS, &seed);
    char *p = hak_malloc(65 << 20);
    CHECK(p);
    p[0] = 1;
    CHECK((p = hak_realloc(p, 70 << 20)) && p[0] == 1);
    hak_free(p);
    return NULL;
}

static void *lane(void *argument) { return one_after_another(argument, work, WORKERS); }

static void *trim(void *argument)
{
    while (!stopped()) {
        hak_trim();
        pause_ms(5);
    }
    return argument;
}

static size_t size_of(const char *name)
{
    const struct hak_record *found = about_record(hak_about(), name);
    CHECK(found);
    return found->size;
}

static void *look(void *argument)
{
    static _Alignas(16) char out[1 << 20];
    int64_t value;
    for (int i = 0; !stopped(); i++) {
        CHECK(hak_stats_snapshot(out, size_of("stats")) == 0);
        CHECK(hak_class_table(out, size_of("class"), 500) > 0);
        CHECK(hak_tier_table(out, size_of("tier"), 20) > 0);
        CHECK(hak_heap_table(out, size_of("heap"), 500) >= 0);
        CHECK(hak_lock_table(out, size_of("lock"), 500) > 0);
        CHECK(hak_mapping_table(out, size_of("mapping"), 500) > 1);
        CHECK(hak_segment_table(out, size_of("segment"), (int)(sizeof out / size_of("segment"))) >= 0);
        if (i % 8 == 0) hak_reset_peaks();
        for (int s = 0; s < SLOTS; s++) {
            /* Of live blocks only: the unit word of another may change as it is read, by atomic loads and stores, of
             * which helgrind knows nothing. stress.c asks about those, under ThreadSanitizer. */
            pthread_mutex_lock(&slot[s].mutex);
            char *p = slot[s].block;
            if (p) hak_owner_of(p + 1, out, size_of("owner"));
            pthread_mutex_unlock(&slot[s].mutex);
        }
        CHECK(hak_option_set("purge_ms", i % 3 ? 1000 : 0) == 0 && hak_option_get("purge_ms", &value) == 0);
        CHECK(hak_option_set("retain", i % 2 ? 0 : 32 << 20) == 0);
        pause_ms(5);
    }
    return argument;
}

static void *fork_children(void *argument)
{
    for (int i = 0; i < 3 && !stopped(); i++) {
        pid_t pid = fork();
        if (pid == 0) {
            uint64_t seed = 4711;
            alarm(60);
            for (size_t k = 0; k < 50; k++) { /* the slots' mutexes may be those of threads that are gone */
                size_t n = pick_size(&seed);
                char *p = hak_malloc(n);
                CHECK(p && (p = hak_realloc(p, n * 2)));
                hak_free(p);
            }
            hak_trim();
            _exit(0);
        }
        int status;
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        pause_ms(20);
    }
    return argument;
}

int main(int argc, char **argv)
{
    size_t rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 2;
    pthread_t lanes[WORKERS], beside[3];
    void *(*const runs[3])(void *) = {trim, look, fork_children};
    int64_t caches = 1;
    CHECK(hak_option_get("enable_tls", &caches) == 0 && caches == 0);
    for (int i = 0; i < SLOTS; i++) pthread_mutex_init(&slot[i].mutex, NULL);
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&beside[i], NULL, runs[i], NULL) == 0);
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_create(&lanes[i], NULL, lane, (void *)(rounds << 8 | i)) == 0);
    for (int i = 0; i < WORKERS; i++) CHECK(pthread_join(lanes[i], NULL) == 0);
    pthread_mutex_lock(&stopping);
    stop = true;
    pthread_mutex_unlock(&stopping);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(beside[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++) hak_free(slot[i].block);
    printf("%zu rounds\n", rounds);
    return 0;
}
