/* Programs that each have one reason for their RSS.  Each says "ready", waits for a line, takes the reason away, says
 * "ready" again, and waits for the end of its input. */
#include "common.h"

enum { TOTAL = 48 << 20, THREADS = 48 };

static char *block[TOTAL / 160];

static void wait_for_line(void)
{
    char c;
    CHECK(write(1, "ready\n", 6) == 6);
    while (read(0, &c, 1) == 1 && c != '\n') {}
}

static size_t fill(size_t size)
{
    size_t n = TOTAL / size;
    for (size_t i = 0; i < n; i++) {
        CHECK((block[i] = malloc(size)));
        memset(block[i], 1, size);
    }
    return n;
}

static void free_but(size_t n, size_t each) /* every each'th stays; 0: none */
{
    for (size_t i = 0; i < n; i++)
        if (!each || i % each) free(block[i]), block[i] = NULL;
}

static void free_all(size_t n)
{
    free_but(n, 0);
}

static void live(void)
{
    size_t n = fill(1000);
    wait_for_line();
    free_all(n);
}

static void rested(void) /* published once more: however long the last time took, a second later it may be again */
{
    size_t n = fill(1000);
    sleep_ms(1200);
    for (int i = 0; i < 40; i++) {
        void *volatile p = malloc(3 << 20);
        free(p);
    }
    wait_for_line();
    free_all(n);
}

static void sparse(void) /* a few blocks in each slab, and OS pages without any */
{
    size_t n = fill(160);
    free_but(n, 128);
    wait_for_line();
    free_all(n);
}

static void dense(void) /* a block in each OS page */
{
    size_t n = fill(160);
    free_but(n, 16);
    wait_for_line();
    free_all(n);
}

static void freed(void)
{
    free_all(fill(1000));
    wait_for_line();
}

static void whales(void)
{
    free_all(fill(6 << 20));
    wait_for_line();
}

static pthread_barrier_t all;

static void *burst(UNUSED void *argument)
{
    char *mine[64];
    for (size_t size = 2048; size <= 32768; size *= 2) {
        size_t n = 131072 / size < 8 ? 8 : 131072 / size;
        for (int round = 0; round < 40; round++) {
            for (size_t i = 0; i < n; i++) {
                CHECK((mine[i] = malloc(size)));
                memset(mine[i], 1, size);
            }
            for (size_t i = n; i-- > 0;) free(mine[i]);
        }
    }
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    return NULL;
}

static void *deep(UNUSED void *argument)
{
    volatile char local[TOTAL / THREADS];
    memset((char *)local, 1, sizeof local);
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    return NULL;
}

static void with_threads(void *(*run)(void *))
{
    pthread_t thread[THREADS];
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, TOTAL / THREADS + (256 << 10));
    pthread_barrier_init(&all, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], &attributes, run, NULL) == 0);
    pthread_barrier_wait(&all);
    wait_for_line();
    pthread_barrier_wait(&all);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
}

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

/* A slab of each class for each thread, with a block in each OS page.  In turn, so that one heap would do for all. */
static void *own(UNUSED void *argument)
{
    enum { BYTES = 60 << 10 };
    pthread_mutex_lock(&one);
    for (size_t size = 128; size <= 256; size += 32) {
        char *mine[BYTES / 128];
        for (size_t i = 0; i < BYTES / size; i++) {
            CHECK((mine[i] = malloc(size)));
            memset(mine[i], 1, size);
        }
        for (size_t i = 0; i < BYTES / size; i++)
            if (i % (4096 / size)) free(mine[i]);
    }
    pthread_mutex_unlock(&one);
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all);
    return NULL;
}

static void spread(void)
{
    with_threads(own);
}

static void caches(void)
{
    with_threads(burst);
}

static void stacks(void)
{
    with_threads(deep);
}

static void mapped(void)
{
    char *p = own_pages(TOTAL);
    memset(p, 1, TOTAL);
    wait_for_line();
    munmap(p, TOTAL);
}

static void huge(void) /* with huge_pages=1 the first byte of each huge page brings all of it */
{
    for (int i = 0; i < 12; i++) {
        CHECK((block[i] = malloc(4 << 20)));
        for (size_t at = 0; at < (4 << 20); at += 256 << 10) block[i][at] = 1;
    }
    wait_for_line();
}

static void zeros(void) /* read and never written: present, but not in RSS */
{
    volatile char *p = calloc(1, TOTAL);
    CHECK(p);
    for (size_t at = 0; at < TOTAL; at += 4096) CHECK(p[at] == 0);
    wait_for_line();
}

static _Atomic int done;

static void *churn(UNUSED void *argument)
{
    uint64_t random = 1;
    while (!done) {
        size_t size = random_between(&random, 1, 2 << 20), i = random_between(&random, 0, 15);
        free(block[i]);
        CHECK((block[i] = malloc(size)));
        memset(block[i], 1, size);
    }
    return NULL;
}

static void busy(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, churn, NULL) == 0);
    wait_for_line();
    done = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv)
{
    static const struct test_case cases[] = {
        CASE(live),   CASE(rested), CASE(sparse), CASE(dense),  CASE(freed), CASE(whales),
        CASE(caches), CASE(stacks), CASE(mapped), CASE(huge),  CASE(zeros), CASE(spread), CASE(busy),
    };
    run_case(argc, argv, cases, COUNT_OF(cases));
    wait_for_line();
    return 0;
}
