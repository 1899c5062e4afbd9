/* dlopen of a late library (its path is the second argument) while threads run, and blocks freed at exit. */
#include "common.h"
#include <stdatomic.h>

static atomic_int stop;
static const char *path;
static char *(*_Atomic make)(size_t);
static void (*_Atomic end)(void);
static atomic_int inside;
static void *for_exit[50];

static void *work(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    while (!atomic_load(&stop)) {
        free(malloc(random_between(&seed, 0, 5000)));
        atomic_fetch_add(&inside, 1);
        char *(*now)(size_t) = atomic_load(&make);
        if (now) {
            char *p = now(300);
            CHECK(p[0] == 9 && p[299] == 9);
            free(p);
            atomic_load(&end)();
        }
        atomic_fetch_sub(&inside, 1);
    }
    return NULL;
}

static void at_exit(void)
{
    for (size_t i = 0; i < COUNT_OF(for_exit); i++) free(for_exit[i]);
    free(malloc(1000000));
}

static void opened_late(void)
{
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (int round = 0; round < 30; round++) {
        void *library = dlopen(path, RTLD_NOW);
        CHECK(library, "%s", dlerror());
        char *(*made)(size_t);
        void (*ended)(void);
        *(void **)&made = hak("malloc"); /* a look-up in between */
        *(void **)&made = dlsym(library, "late_make");
        *(void **)&ended = dlsym(library, "late_end");
        CHECK(made && ended);
        atomic_store(&end, ended);
        atomic_store(&make, made);
        sleep_ms(1);
        atomic_store(&make, NULL);
        while (atomic_load(&inside)) sched_yield();
        CHECK(dlclose(library) == 0);
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    check_laws();
}

static void freed_at_exit(void)
{
    atexit(at_exit);
    for (size_t i = 0; i < COUNT_OF(for_exit); i++) for_exit[i] = malloc((size_t)1 << (i % 24));
    on_exit((void (*)(int, void *))(void *)free, NULL);
}

static void *leave(void *argument)
{
    free(malloc(100));
    sleep_ms(50);
    freed_at_exit();
    exit(0);
    return argument;
}

/* exit from a thread, while the main thread and others still allocate */
static void exit_from_thread(void)
{
    pthread_t thread;
    for (size_t i = 0; i < 3; i++) CHECK(pthread_create(&thread, NULL, work, (void *)i) == 0);
    CHECK(pthread_create(&thread, NULL, leave, NULL) == 0);
    work((void *)9);
}

/* main ends by pthread_exit, and others go on */
static void *outlive(void *argument)
{
    void **blocks = argument;
    sleep_ms(50);
    for (int i = 0; i < 1000; i++) free(blocks[i]);
    free(blocks);
    check_laws();
    dprintf(1, "outlived main\n");
    return NULL;
}

static void main_ends_first(void)
{
    pthread_t thread;
    void **blocks = malloc(1000 * sizeof *blocks);
    for (size_t i = 0; i < 1000; i++) blocks[i] = malloc(i * 100);
    CHECK(pthread_create(&thread, NULL, outlive, blocks) == 0);
    pthread_exit(NULL);
}

static const struct test_case CASES[] = {CASE(opened_late), CASE(freed_at_exit), CASE(exit_from_thread),
                                         CASE(main_ends_first)};

int main(int argc, char **argv)
{
    path = argc > 2 ? argv[2] : NULL;
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
