/* 450 MB of blocks of 16 to 3,000 bytes from two threads, all written, then freed: how much is still resident three
 * seconds later, all threads alive and idle, and after malloc_trim(0). Arguments: "in_order" or "shuffled";
 * "own" or "other" (who frees). Prints both figures in KiB above the start; asserts nothing. */
#include "common.h"

enum { EACH = 225 * 1000 * 1000, MOST = 200000 };
static void **blocks[2];
static size_t counts[2];
static pthread_barrier_t step;
static int shuffled, other;

static void *fill_and_free(void *argument)
{
    size_t me = (uintptr_t)argument;
    uint64_t seed = me + 1;
    pthread_barrier_wait(&step); /* main takes the start */
    pthread_barrier_wait(&step);
    for (size_t sum = 0; sum < EACH;) {
        size_t n = random_between(&seed, 16, 3000);
        void *p = malloc(n);
        CHECK(p && counts[me] < MOST);
        memset(p, 0xcd, n);
        blocks[me][counts[me]++] = p;
        sum += n;
    }
    if (shuffled) {
        for (size_t i = counts[me] - 1; i > 0; i--) {
            size_t j = random_between(&seed, 0, i);
            void *p = blocks[me][i];
            blocks[me][i] = blocks[me][j];
            blocks[me][j] = p;
        }
    }
    pthread_barrier_wait(&step); /* main looks at the peak */
    pthread_barrier_wait(&step);
    size_t of = other ? 1 - me : me;
    for (size_t i = 0; i < counts[of]; i++) free(blocks[of][i]);
    pthread_barrier_wait(&step); /* freed */
    pthread_barrier_wait(&step); /* and idle until the end */
    return NULL;
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    shuffled = strcmp(argv[1], "shuffled") == 0;
    other = strcmp(argv[2], "other") == 0;
    pthread_t threads[2];
    pthread_barrier_init(&step, NULL, 3);
    for (size_t i = 0; i < 2; i++) {
        blocks[i] = own_pages(MOST * sizeof **blocks);
        memset(blocks[i], 0, MOST * sizeof **blocks);
        CHECK(pthread_create(&threads[i], NULL, fill_and_free, (void *)i) == 0);
    }
    pthread_barrier_wait(&step);
    free(malloc(1));
    long start = (long)(rss_bytes() / KIB);
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    long peak = (long)(rss_bytes() / KIB) - start;
    CHECK(peak > 430000, "%ld KiB at the peak", peak);
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    sleep_ms(3000);
    long idle = (long)(rss_bytes() / KIB) - start;
    check_laws();
    malloc_trim(0);
    long trimmed = (long)(rss_bytes() / KIB) - start;
    check_laws();
    dprintf(1, "peak %ld idle %ld trimmed %ld\n", peak, idle, trimmed);
    pthread_barrier_wait(&step);
    for (size_t i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    return 0;
}
