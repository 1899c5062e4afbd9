/* Children that the C library's fork handlers know nothing of: clone and fork as system calls, _Fork, and clone with
 * the parent's memory. One case a run. This program's own madvise can stop a thread inside the allocator. */
#include "common.h"
#include <linux/stat.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { THREADS = 6, EACH = 400, CHILDREN = 9 };

static struct { unsigned char *block; size_t n; } kept[THREADS][EACH];
static pthread_barrier_t made;
static int gate[2];
static atomic_int hold, held;

/* The library calls it without a lock but that of the purge. */
int madvise(void *p, size_t n, int advice)
{
    if (advice == MADV_DONTNEED && atomic_exchange(&hold, 0)) {
        char c;
        atomic_store(&held, 1);
        CHECK(read(gate[0], &c, 1) == 0);
    }
    return (int)syscall(SYS_madvise, p, n, advice);
}

/* Nor does it call this with a lock that it waits for. */
static atomic_int end_the_holder;
static pthread_t holder;
long syscall(long number, ...)
{
    static _Atomic(long (*)(long, ...)) next;
    long (*libc_syscall)(long, ...) = atomic_load(&next), a[6];
    va_list list;
    if (!libc_syscall) {
        *(void **)&libc_syscall = dlsym(RTLD_NEXT, "syscall");
        atomic_store(&next, libc_syscall);
    }
    va_start(list, number);
    for (size_t i = 0; i < COUNT_OF(a); i++) a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_statx && atomic_exchange(&end_the_holder, 0)) {
        struct statx tasks = {0};
        close(gate[1]);
        CHECK(pthread_join(holder, NULL) == 0);
        while (tasks.stx_nlink != 3) /* the system counts it for a moment more */
            CHECK(libc_syscall(SYS_statx, -1, "/proc/self/task", 0, STATX_NLINK, &tasks) == 0);
    }
    return libc_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- ways to make a child */

static pid_t by_clone(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL); }

#ifdef SYS_fork
static pid_t by_fork(void) { return (pid_t)syscall(SYS_fork); }
#else
#define by_fork by_clone
#endif

static pid_t (*libc_fork)(void);
static pid_t by_libc_fork(void) /* glibc 2.34: runs no handlers */
{
    return libc_fork ? libc_fork() : by_clone();
}

static pid_t (*const ways[])(void) = {by_clone, by_fork, by_libc_fork};

static int end_of(pid_t pid)
{
    int status;
    CHECK(pid > 0, "errno %d", errno);
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static void wait_for(pid_t pid, int i)
{
    int status = end_of(pid);
    CHECK(!(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM), "child %d hung", i);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with status 0x%x", i, status);
}

/* ---- what all of them have to be able to do */

static void *in_thread(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    void *own[200];
    for (size_t i = 0; i < COUNT_OF(own); i++) CHECK(own[i] = malloc(random_between(&seed, 1, i % 50 ? 3000 : 300 * KIB)));
    for (size_t i = 0; i < COUNT_OF(own); i++) free(own[i]);
    return NULL;
}

static void use_everything(void)
{
    pthread_t threads[2];
    in_thread((void *)7);
    for (size_t t = 0; t < 2; t++) CHECK(pthread_create(&threads[t], NULL, in_thread, (void *)t) == 0);
    for (size_t t = 0; t < 2; t++) CHECK(pthread_join(threads[t], NULL) == 0);
    char *p = malloc(3 * MIB);
    CHECK((p = realloc(p, 80 * MIB)));
    free(p);
    malloc_trim(0);
    check_laws();
}

static uint64_t in_use(void)
{
    static struct snapshot s;
    if (!about()) return 0;
    take_snapshot(&s);
    return of(&s, "in_use_bytes");
}

static int own_row(void) /* whether the table of heaps has this thread under its id */
{
    static struct rows heaps;
    if (!about()) return 1;
    take_rows(&heaps, "hak_heap_table", "heap");
    for (int i = 0; i < heaps.count; i++)
        if (field("heap", row(&heaps, i), "thread") == (uint64_t)gettid()) return 1;
    return 0;
}

static void free_kept(void)
{
    for (size_t t = 0; t < THREADS; t++)
        for (size_t i = 0; i < EACH; i++) {
            size_t wrong = pattern_wrong(kept[t][i].block, kept[t][i].n, (uint32_t)i, kept[t][i].n);
            CHECK(wrong == SIZE_MAX, "block %zu of thread %zu differs at %zu", i, t, wrong);
            free(kept[t][i].block);
        }
}

/* report: a child by fork says how much is left in use, and the others must have no more. */
static uint64_t *left_by_fork;
static void child(int depth, int report)
{
    alarm(60);
    use_everything();
    CHECK(own_row(), "no heap of thread %d", gettid());
    free_kept();
    malloc_trim(0);
    sleep_ms(150); /* inboxes of threads that never come are helped after a tenth of a second */
    for (int i = 0; i < 20; i++) use_everything();
    uint64_t left = in_use();
    if (report) *left_by_fork = left;
    CHECK(left <= *left_by_fork + MIB, "%llu bytes in use, %llu after fork", (unsigned long long)left,
          (unsigned long long)*left_by_fork);
    if (depth < 2) { /* children of this child: by fork with its handlers, and without */
        pid_t pid = depth ? fork() : by_clone();
        if (pid == 0) {
            alarm(60);
            use_everything();
            CHECK(own_row(), "no heap of thread %d", gettid());
            exit(0);
        }
        wait_for(pid, depth);
    }
    exit(0);
}

static void *keep(void *argument)
{
    size_t me = (uintptr_t)argument;
    uint64_t seed = me;
    char c;
    for (size_t i = 0; i < EACH; i++) {
        kept[me][i].n = random_between(&seed, 1, i % 20 ? 3000 : 100 * KIB);
        kept[me][i].block = malloc(kept[me][i].n);
        pattern_write(kept[me][i].block, kept[me][i].n, (uint32_t)i);
    }
    in_thread(argument); /* its stacks are not empty */
    pthread_barrier_wait(&made);
    if (me) CHECK(read(gate[0], &c, 1) == 0);
    return NULL;
}

static void children(void)
{
    left_by_fork = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(left_by_fork != MAP_FAILED);
    for (int i = -1; i < CHILDREN; i++) {
        pid_t pid = i < 0 ? fork() : ways[(size_t)i % COUNT_OF(ways)]();
        if (pid == 0) child(i % 3, i < 0);
        wait_for(pid, i);
    }
    free_kept();
    check_laws();
    printf("%d of %d children ended with 0\n", CHILDREN, CHILDREN);
}

static void of_one_thread(void)
{
    CHECK(pthread_barrier_init(&made, NULL, 1) == 0);
    CHECK(close(gate[1]) == 0);
    for (size_t t = 0; t < THREADS; t++) keep((void *)t);
    children();
}

static void beside_idle_threads(void)
{
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&made, NULL, THREADS + 1) == 0);
    for (size_t t = 0; t < THREADS; t++) CHECK(pthread_create(&threads[t], NULL, keep, (void *)t) == 0);
    pthread_barrier_wait(&made);
    CHECK(pthread_join(threads[0], NULL) == 0); /* one has ended, the others wait */
    children();
    close(gate[1]);
    for (size_t t = 1; t < THREADS; t++) CHECK(pthread_join(threads[t], NULL) == 0);
}

/* ---- beside threads that allocate: exec, and nothing else */

static atomic_int stop;
static void *busy(void *argument)
{
    while (!atomic_load(&stop)) {
        in_thread(argument);
        malloc_trim(0);
    }
    return NULL;
}

static int run_true(void *argument)
{
    (void)argument;
    char *arguments[] = {"true", NULL}, *none[] = {NULL};
    execve("/bin/true", arguments, none);
    execve("/usr/bin/true", arguments, none);
    _exit(127);
}

static int allocate_and_run_true(void *argument) /* in the parent's memory, while the parent waits */
{
    for (size_t i = 1; i < 500; i++) free(realloc(malloc(i * 50), i * 100));
    return run_true(argument);
}

static void exec_beside_busy_threads(void)
{
    static _Alignas(16) char stack[64 * KIB];
    pthread_t threads[THREADS];
    for (size_t t = 0; t < THREADS; t++) CHECK(pthread_create(&threads[t], NULL, busy, (void *)t) == 0);
    for (int i = 0; i < 100; i++) {
        pid_t pid = ways[(size_t)i % COUNT_OF(ways)]();
        if (pid == 0) run_true(NULL);
        wait_for(pid, i);
        wait_for(clone(allocate_and_run_true, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL), i);
    }
    atomic_store(&stop, 1);
    for (size_t t = 0; t < THREADS; t++) CHECK(pthread_join(threads[t], NULL) == 0);
    check_laws();
}

/* A thread is in the middle of a purge: the child has its lock and not the thread. */
static void *trim(void *argument)
{
    free(malloc(30 * MIB));
    malloc_trim(0);
    return argument;
}

static void a_lock_left_behind(void)
{
    pthread_t thread;
    memset(malloc(2 * MIB), 1, 2 * MIB); /* so that there is something to purge */
    void *p = malloc(20 * MIB);
    memset(p, 1, 20 * MIB);
    free(p);
    atomic_store(&hold, 1);
    CHECK(pthread_create(&thread, NULL, trim, NULL) == 0);
    while (!atomic_load(&held)) sched_yield();
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        pid_t pid = ways[i]();
        if (pid == 0) {
            alarm(20);
            setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
            free(malloc(100)); /* this needs no lock, or one that is free */
            malloc_trim(0);
            _exit(0);
        }
        int status = end_of(pid);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status 0x%x", status);
    }
    close(gate[1]);
    CHECK(pthread_join(thread, NULL) == 0);
    check_laws();
}

/* The same lock, with a thread that will let go of it: nobody is in its way, before fork and after. */
static void *let_go(void *argument)
{
    sleep_ms(100);
    close(gate[1]);
    return argument;
}

static void a_lock_held_in_the_child(void)
{
    pid_t pid = by_clone();
    if (pid == 0) {
        pthread_t threads[2];
        alarm(60);
        void *p = malloc(20 * MIB);
        memset(p, 1, 20 * MIB);
        free(p);
        atomic_store(&hold, 1);
        CHECK(pthread_create(&threads[0], NULL, trim, NULL) == 0);
        while (!atomic_load(&held)) sched_yield();
        CHECK(pthread_create(&threads[1], NULL, let_go, NULL) == 0);
        malloc_trim(0);
        for (size_t t = 0; t < 2; t++) CHECK(pthread_join(threads[t], NULL) == 0);
        use_everything();
        exit(0);
    }
    close(gate[1]);
    wait_for(pid, 0);
}

/* It lets go and ends just before the one that waits looks whether it is alone. */
static void a_lock_let_go_by_the_last_other_thread(void)
{
    pid_t pid = by_clone();
    if (pid == 0) {
        alarm(60);
        void *p = malloc(20 * MIB);
        memset(p, 1, 20 * MIB);
        free(p);
        atomic_store(&hold, 1);
        CHECK(pthread_create(&holder, NULL, trim, NULL) == 0);
        while (!atomic_load(&held)) sched_yield();
        atomic_store(&end_the_holder, 1);
        malloc_trim(0);
        CHECK(!atomic_load(&end_the_holder) || !about(), "nobody waited");
        use_everything();
        exit(0);
    }
    close(gate[1]);
    wait_for(pid, 0);
}

static const struct test_case CASES[] = {
    CASE(of_one_thread), CASE(beside_idle_threads), CASE(exec_beside_busy_threads), CASE(a_lock_left_behind),
    CASE(a_lock_held_in_the_child), CASE(a_lock_let_go_by_the_last_other_thread),
};

int main(int argc, char **argv)
{
    *(void **)&libc_fork = dlsym(RTLD_DEFAULT, "_Fork");
    CHECK(pipe(gate) == 0);
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
