/* fork from a process whose threads are all inside the allocator; one case a run. A child that hangs is ended by
 * its alarm, and the parent says so. Second argument: number of children. */
#include "common.h"
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/wait.h>

extern char **environ;

enum { WORKERS = 8, SHARED = 400 };
static int children = 100;
static atomic_int stop;
static unsigned char *parents[SHARED];
static size_t sizes[SHARED];
static _Atomic(void *) passed[64];

static void *work(void *argument)
{
    uint64_t seed = (uintptr_t)argument + 1;
    void *mine[200] = {0};
    while (!atomic_load(&stop)) {
        size_t i = random_between(&seed, 0, 199), r = random_between(&seed, 0, 999);
        size_t n = random_between(&seed, 0, r < 900 ? KIB : r < 990 ? 32 * KIB : r < 999 ? 300 * KIB : 3 * MIB);
        free(mine[i]);
        mine[i] = malloc(n);
        CHECK(mine[i]);
        memset(mine[i], 1, n < 64 ? n : 64);
        if (r % 8 == 0) mine[i] = atomic_exchange(&passed[r % COUNT_OF(passed)], mine[i]); /* frees across threads */
    }
    for (int i = 0; i < 200; i++) free(mine[i]);
    return NULL;
}

static pthread_t workers[WORKERS];

static void start_workers(void)
{
    uint64_t seed = 99;
    for (size_t i = 0; i < SHARED; i++) {
        sizes[i] = random_between(&seed, 1, i % 40 == 0 ? 2 * MIB : i % 5 == 0 ? 40 * KIB : 2000);
        parents[i] = malloc(sizes[i]);
        pattern_write(parents[i], sizes[i], (uint32_t)i);
    }
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_create(&workers[i], NULL, work, (void *)i) == 0);
    sleep_ms(20);
}

static void stop_workers(void)
{
    atomic_store(&stop, 1);
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_join(workers[i], NULL) == 0);
    for (size_t i = 0; i < COUNT_OF(passed); i++) free(atomic_load(&passed[i]));
    for (size_t i = 0; i < SHARED; i++) {
        CHECK(pattern_wrong(parents[i], sizes[i], (uint32_t)i, sizes[i]) == SIZE_MAX, "a child wrote into block %zu", i);
        free(parents[i]);
    }
    check_laws();
}

static void *in_child_thread(void *argument)
{
    uint64_t seed = 7;
    void *own[300];
    for (int i = 0; i < 300; i++) CHECK(own[i] = malloc(random_between(&seed, 0, i % 50 ? 3000 : 300 * KIB)));
    for (int i = 0; i < 300; i++) free(own[i]);
    for (size_t i = 1; i < SHARED; i += 2) free(parents[i]);
    return argument;
}

static void in_child(void)
{
    uint64_t seed = (uint64_t)getpid();
    alarm(30);
    void *own[300];
    for (int i = 0; i < 300; i++) {
        size_t n = random_between(&seed, 0, i % 50 ? 3000 : 300 * KIB);
        own[i] = i & 1 ? calloc(1, n) : malloc(n);
        CHECK(own[i] && (!(i & 1) || is_zero(own[i], n)), "%zu", n);
        memset(own[i], 3, n);
    }
    for (size_t i = 0; i < SHARED; i++) {
        CHECK(pattern_wrong(parents[i], sizes[i], (uint32_t)i, sizes[i]) == SIZE_MAX, "block %zu in the child", i);
        if (i % 2 == 0) free(parents[i]); /* and the thread frees the others */
    }
    for (int i = 0; i < 300; i++) free(own[i]);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, in_child_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    for (size_t i = 0; i < COUNT_OF(passed); i++) free(atomic_load(&passed[i])); /* blocks of threads that are gone */
    malloc_trim(0);
    void *after = malloc(5000);
    memset(after, 1, 5000);
    free(after);
}

static void wait_for(pid_t pid, const char *what, int i)
{
    int status;
    CHECK(pid > 0, "%s: errno %d", what, errno);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(!(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM), "%s %d hung", what, i);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s %d ended with status 0x%x", what, i, status);
}

static void allocating_threads(void)
{
    start_workers();
    for (int i = 0; i < children; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            in_child();
            if (i % 2) check_laws();
            exit(0);
        }
        wait_for(pid, "child", i);
    }
    stop_workers();
}

static void *fork_from_thread(void *argument)
{
    for (int i = 0; i < children / 10; i++) {
        free(malloc(100));
        pid_t pid = fork();
        if (pid == 0) {
            in_child();
            exit(0);
        }
        wait_for(pid, "child of a thread", i);
    }
    return argument;
}

static void from_threads(void)
{
    pthread_t threads[3];
    start_workers();
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, fork_from_thread, NULL) == 0);
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    stop_workers();
}

static void *keep_busy(void *argument)
{
    for (uint64_t seed = 3;;) free(malloc(random_between(&seed, 0, 50 * KIB)));
    return argument;
}

static void nested(void)
{
    start_workers();
    for (int i = 0; i < children / 5; i++) {
        pid_t pid = fork();
        if (pid == 0) { /* a child with threads of its own, and its child, and that one's */
            alarm(60);
            pthread_t busy;
            for (int t = 0; t < 2; t++) CHECK(pthread_create(&busy, NULL, keep_busy, NULL) == 0);
            for (int depth = 0; depth < 3; depth++) {
                void *p = malloc(10000);
                memset(p, 5, 10000);
                pid_t next = fork();
                if (next > 0) {
                    free(p);
                    wait_for(next, "nested child", depth);
                    _exit(0);
                }
                CHECK(next == 0, "errno %d", errno);
                free(p);
            }
            in_child();
            _exit(0);
        }
        wait_for(pid, "child", i);
    }
    stop_workers();
}

/* The child shares nothing, whatever it does: the parent's blocks and its RSS are its own. */
static void memory_is_separate(void)
{
    enum { N = 50000 };
    static char *p[N];
    for (int i = 0; i < N; i++) memset(p[i] = malloc(1000), 1, 1000);
    for (int round = 0; round < 5; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            alarm(30);
            for (int i = 0; i < N; i++) free(p[i]);
            malloc_trim(0);
            size_t rss = rss_bytes();
            CHECK(rss < 30 * MIB, "%zu KiB in the child after freeing everything", rss / KIB);
            for (int i = 0; i < N; i++) memset(p[i] = malloc(1000), 2, 1000);
            check_laws();
            exit(0);
        }
        wait_for(pid, "child", round);
        for (int i = 0; i < N; i++) CHECK(p[i][0] == 1 && p[i][999] == 1, "block %d", i);
    }
}

static void programs_from_threads(void)
{
    static char *arguments[] = {"true", NULL};
    start_workers();
    for (int i = 0; i < children / 2; i++) {
        pid_t pid;
        int code = posix_spawnp(&pid, "true", NULL, NULL, arguments, environ);
        CHECK(code == 0, "posix_spawn: %d", code);
        wait_for(pid, "posix_spawn", i);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
        pid = vfork();
#pragma GCC diagnostic pop
        if (pid == 0) {
            execvp("true", arguments);
            _exit(127);
        }
        wait_for(pid, "vfork", i);
        if (i % 5 == 0) {
            CHECK(system("exit 0") == 0);
            FILE *f = popen("echo one", "r");
            char line[16] = "";
            CHECK(f && fgets(line, sizeof line, f) && strcmp(line, "one\n") == 0, "%s", line);
            CHECK(pclose(f) == 0);
        }
    }
    stop_workers();
}

static const struct test_case CASES[] = {
    CASE(allocating_threads), CASE(from_threads), CASE(nested), CASE(memory_is_separate), CASE(programs_from_threads),
};

int main(int argc, char **argv)
{
    if (argc > 2) children = atoi(argv[2]);
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
