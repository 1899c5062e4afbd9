/* fork while other threads are, one each, in every slow path that the allocator has. Second argument: number of
 * children. Each checks and frees blocks of the parent's threads, allocates, starts threads, forks again and ends with
 * 0; the last line of output says how many did. Of one that hangs a debugger, if there is one, shows where. */
#include "common.h"
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>

extern char **environ;

enum { EACH = 16, AT_ONCE = 4, SECONDS = 60 };
static atomic_int stop;
static pthread_barrier_t begun;

/* ---- waiting for a child, but not for ever */

static void show_where(pid_t pid)
{
    char number[16];
    char *arguments[] = {"gdb", "-batch", "-nx", "-p", number, "-ex", "thread apply all bt", NULL};
    pid_t gdb;
    snprintf(number, sizeof number, "%d", (int)pid);
    if (posix_spawnp(&gdb, "gdb", NULL, NULL, arguments, environ) == 0) waitpid(gdb, NULL, 0);
}

static void wait_for(pid_t pid, const char *what, int i)
{
    int status = 0;
    pid_t got = 0;
    for (long waited = 0; (got = waitpid(pid, &status, WNOHANG)) == 0 && waited < SECONDS * 2000l; waited++)
        nanosleep(&(struct timespec){0, 500000}, NULL);
    if (got == 0) {
        show_where(pid);
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        fail("waitpid", __LINE__, "%s %d hung", what, i);
    }
    CHECK(got == pid, "errno %d", errno);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s %d ended with status 0x%x", what, i, status);
}

/* ---- the parent's threads: each leaves blocks for the children, then keeps to one slow path */

struct role {
    const char *name;
    void (*round)(uint64_t *seed);
};
struct kept {
    unsigned char *block;
    size_t n;
    uint32_t key;
};

static _Atomic(void *) ring[256];
static _Atomic(void **) bundle;

static int (*set_option)(const char *, int64_t);
static int (*tables[4])(void *, size_t, int);
static const char *const table_functions[] = {"hak_class_table", "hak_heap_table", "hak_lock_table", "hak_segment_table"};
static const char *const table_records[] = {"class", "heap", "lock", "segment"};

static void use(void *p, size_t n)
{
    CHECK(p || n == 0, "%zu", n);
    memset(p, 1, n < 64 ? n : 64);
}

static void refill_and_flush(uint64_t *seed)
{
    void *p[200];
    size_t most = next_random(seed) % 8 ? 1000 : 20000;
    for (size_t i = 0; i < COUNT_OF(p); i++) {
        size_t n = random_between(seed, 1, most);
        use(p[i] = malloc(n), n);
    }
    for (size_t i = 0; i < COUNT_OF(p); i++) free(p[i]);
}

static void post_and_drain(uint64_t *seed) /* two threads do it, so that each has blocks of the other's to free */
{
    for (int i = 0; i < 300; i++) {
        size_t n = random_between(seed, 1, i % 20 ? 2000 : 100 * KIB);
        void *p = malloc(n);
        use(p, n);
        free(atomic_exchange(&ring[next_random(seed) % COUNT_OF(ring)], p));
    }
}

enum { BUNDLE = 1500 };
static void hand_out_and_sleep(uint64_t *seed)
{
    void **all = malloc(BUNDLE * sizeof *all);
    for (int i = 0; i < BUNDLE; i++) use(all[i] = malloc(1000), 1000);
    while (!atomic_load(&stop) && atomic_load(&bundle)) nanosleep(&(struct timespec){0, 200000}, NULL);
    all = atomic_exchange(&bundle, all);
    for (int i = 0; all && i < BUNDLE; i++) free(all[i]);
    free(all);
    (void)seed;
}

static void claim_of_a_sleeper(uint64_t *seed) /* its inbox overflows, and at last it loses its slabs */
{
    void **all = atomic_exchange(&bundle, NULL);
    for (int i = 0; all && i < BUNDLE; i++) free(all[i]);
    if (!all) nanosleep(&(struct timespec){0, 100000}, NULL);
    free(all);
    (void)seed;
}

static void large(uint64_t *seed)
{
    static _Thread_local void *p[6];
    size_t n = random_between(seed, MIB + 1, 6 * MIB), i = next_random(seed) % COUNT_OF(p);
    free(p[i]);
    use(p[i] = next_random(seed) % 4 ? malloc(n) : aligned_alloc(256 * KIB, n), n);
    if (atomic_load(&stop))
        for (i = 0; i < COUNT_OF(p); i++) free(p[i]), p[i] = NULL;
}

static void whales(uint64_t *seed)
{
    void *p = next_random(seed) % 2 ? malloc(65 * MIB) : calloc(1, 70 * MIB);
    use(p, 64);
    free(p);
}

static void realloc_by_mremap(uint64_t *seed)
{
    char *p = NULL;
    for (size_t n = 1 + next_random(seed) % 1000; n < 100 * MIB; n *= 5) {
        CHECK((p = realloc(p, n)), "%zu", n);
        p[n - 1] = 1;
    }
    CHECK((p = realloc(p, 30 * MIB)) && (p = realloc(p, 3000)));
    free(p);
}

static void trim(uint64_t *seed)
{
    malloc_trim(0);
    sleep_ms((long)(next_random(seed) % 3));
}

static void options_and_purge(uint64_t *seed)
{
    if (set_option) {
        CHECK(set_option("purge_ms", next_random(seed) % 2 ? 0 : 1000) == 0);
        CHECK(set_option("retain", next_random(seed) % 2 ? 0 : 8 << 20) == 0);
    }
    refill_and_flush(seed);
    free(malloc(2 * MIB));
}

static void statistics(uint64_t *seed)
{
    static char rows[1 << 20];
    struct snapshot s;
    mallinfo2();
    if (!about()) return;
    take_snapshot(&s);
    size_t i = next_random(seed) % COUNT_OF(tables), size = record(table_records[i])->size;
    CHECK(tables[i](rows, size, (int)(sizeof rows / size)) >= 0);
}

static void *short_life(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    for (int i = 0; i < 40; i++) {
        size_t n = random_between(&seed, 1, 5000);
        void *p = malloc(n);
        use(p, n);
        free(i % 3 ? p : atomic_exchange(&ring[next_random(&seed) % COUNT_OF(ring)], p));
    }
    return NULL;
}

static void threads_come_and_go(uint64_t *seed)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, short_life, (void *)(uintptr_t)next_random(seed)) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

#define ROLE(function) {#function, function}
static const struct role roles[] = {
    ROLE(refill_and_flush), ROLE(post_and_drain), ROLE(post_and_drain), ROLE(hand_out_and_sleep),
    ROLE(claim_of_a_sleeper), ROLE(large), ROLE(whales), ROLE(realloc_by_mremap), ROLE(trim), ROLE(options_and_purge),
    ROLE(statistics), ROLE(threads_come_and_go),
};
enum { ROLES = COUNT_OF(roles) };
static struct kept kept[ROLES][EACH];
static atomic_ulong rounds[ROLES];

static void *keep_to(void *argument)
{
    size_t me = (uintptr_t)argument;
    uint64_t seed = me + 1;
    for (size_t i = 0; i < EACH; i++) {
        struct kept *k = &kept[me][i];
        k->n = i == 0 ? (me % 4 ? 40 * KIB : 2 * MIB) : random_between(&seed, 1, i % 5 == 0 ? 100 * KIB : 3000);
        k->key = (uint32_t)next_random(&seed);
        CHECK((k->block = malloc(k->n)), "%zu", k->n);
        pattern_write(k->block, k->n, k->key);
    }
    pthread_barrier_wait(&begun);
    while (!atomic_load(&stop)) {
        roles[me].round(&seed);
        atomic_fetch_add(&rounds[me], 1);
        nanosleep(&(struct timespec){0, (long)(next_random(&seed) % 1500000)}, NULL); /* the children want processors */
    }
    roles[me].round(&seed); /* what it keeps from round to round goes */
    return NULL;
}

static void check_kept(const char *whose)
{
    for (size_t role = 0; role < ROLES; role++)
        for (size_t i = 0; i < EACH; i++) {
            const struct kept *k = &kept[role][i];
            size_t wrong = pattern_wrong(k->block, k->n, k->key, k->n);
            CHECK(wrong == SIZE_MAX, "%s: block %zu of %s differs at %zu", whose, i, roles[role].name, wrong);
        }
}

/* ---- a child */

static void *thread_of_a_child(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    for (int i = 0; i < 3; i++) post_and_drain(&seed); /* the ring has blocks of threads that are gone */
    for (size_t role = (uintptr_t)argument; role < ROLES; role += 2)
        for (size_t i = 1; i < EACH; i += 2) free(kept[role][i].block);
    return NULL;
}

static void grandchild(void)
{
    uint64_t seed = 5;
    pthread_t thread;
    refill_and_flush(&seed);
    for (size_t role = 0; role < ROLES; role++) free(kept[role][0].block);
    CHECK(pthread_create(&thread, NULL, short_life, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    _exit(0);
}

static void child(int i)
{
    uint64_t seed = (uint64_t)i;
    pthread_t threads[2];
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    alarm(2 * SECONDS); /* so that nothing outlives a test that was killed */
    check_kept("in the child");
    refill_and_flush(&seed);
    size_t n = i % 4 ? 50 * KIB : 2 * MIB;
    void *zero = calloc(1, n);
    CHECK(zero && is_zero(zero, n));
    free(zero);
    for (size_t role = 0; role < ROLES; role++)
        for (size_t k = 2; k < EACH; k += 2) free(kept[role][k].block);
    for (size_t t = 0; t < 2; t++) CHECK(pthread_create(&threads[t], NULL, thread_of_a_child, (void *)t) == 0);
    if (i % 2) sleep_ms(0); /* the others fork beside threads that have begun, these more often after */
    pid_t pid = fork();
    if (pid == 0) grandchild();
    CHECK(pid > 0, "errno %d", errno);
    wait_for(pid, "grandchild of", i);
    for (size_t t = 0; t < 2; t++) CHECK(pthread_join(threads[t], NULL) == 0);
    struct kept *k = &kept[i % ROLES][0];
    CHECK((k->block = realloc(k->block, 5 * MIB)) && pattern_wrong(k->block, k->n, k->key, k->n) == SIZE_MAX);
    if (i % 8 == 0) malloc_trim(0);
    if (i % 3 == 0) check_laws();
    exit(0);
}

int main(int argc, char **argv)
{
    int children = argc > 1 ? atoi(argv[1]) : 100, good = 0;
    pthread_t threads[ROLES];
    for (size_t i = 0; about() && i < COUNT_OF(tables); i++) *(void **)&tables[i] = hak(table_functions[i]);
    if (about()) *(void **)&set_option = hak("hak_option_set");
    CHECK(pthread_barrier_init(&begun, NULL, ROLES + 1) == 0);
    for (size_t i = 0; i < ROLES; i++) CHECK(pthread_create(&threads[i], NULL, keep_to, (void *)i) == 0);
    pthread_barrier_wait(&begun);
    sleep_ms(20);
    while (good < children) {
        pid_t pid[AT_ONCE];
        int n = 0;
        for (; n < AT_ONCE && good + n < children; n++) {
            CHECK((pid[n] = fork()) >= 0, "errno %d", errno);
            if (pid[n] == 0) child(good + n);
            nanosleep(&(struct timespec){0, 300000}, NULL);
        }
        for (int i = 0; i < n; i++) wait_for(pid[i], "child", good + i);
        good += n;
    }
    atomic_store(&stop, 1);
    for (size_t i = 0; i < ROLES; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    check_kept("in the parent");
    for (size_t role = 0; role < ROLES; role++) {
        CHECK(atomic_load(&rounds[role]) > 0, "%s never ran", roles[role].name);
        if (argc > 2) fprintf(stderr, "%-20s %8lu rounds\n", roles[role].name, atomic_load(&rounds[role]));
        for (size_t i = 0; i < EACH; i++) free(kept[role][i].block);
    }
    for (size_t i = 0; i < COUNT_OF(ring); i++) free(atomic_load(&ring[i]));
    void **all = atomic_load(&bundle);
    for (int i = 0; all && i < BUNDLE; i++) free(all[i]);
    free(all);
    check_laws();
    printf("%d of %d children ended with 0\n", good, children);
    return 0;
}
