/* Threads that allocate, free each other's blocks, trim and fork until standard input ends. Arguments: how many, and
 * anything for no trim and no fork. Says its number once all run. */
#include "common.h"
#include <stdatomic.h>
#include <sys/wait.h>

static _Atomic(void *) ring[1024];
static atomic_int stop;
static int disturbs;
static pthread_barrier_t begun;

static void work(uint64_t *seed, int rounds)
{
    for (int i = 0; i < rounds; i++) {
        size_t most = i % 1000 == 0 ? 3 * MIB : i % 20 ? 500 : 40 * KIB, n = random_between(seed, 1, most);
        char *p = malloc(n);
        CHECK(p);
        p[0] = p[n - 1] = 1;
        free(atomic_exchange(&ring[next_random(seed) % COUNT_OF(ring)], p));
    }
}

static void *run(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    pthread_barrier_wait(&begun);
    while (!atomic_load(&stop)) {
        work(&seed, 1000);
        if (disturbs && seed % 64 == 0) malloc_trim(0);
    }
    return NULL;
}

static void *forks(void *argument)
{
    uint64_t seed = 99;
    int status;
    while (!atomic_load(&stop)) {
        sleep_ms(20);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            work(&seed, 500);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "0x%x", status);
    }
    return argument;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 4;
    pthread_t thread[256], forker;
    char c;
    CHECK(count > 0 && (size_t)count <= COUNT_OF(thread));
    disturbs = argc < 3;
    pthread_barrier_init(&begun, NULL, (unsigned)count + 1);
    for (int i = 0; i < count; i++) CHECK(pthread_create(&thread[i], NULL, run, (void *)(uintptr_t)(i + 1)) == 0);
    pthread_barrier_wait(&begun);
    if (disturbs) CHECK(pthread_create(&forker, NULL, forks, NULL) == 0);
    dprintf(1, "%d\n", (int)getpid());
    CHECK(read(0, &c, 1) == 0);
    atomic_store(&stop, 1);
    for (int i = 0; i < count; i++) pthread_join(thread[i], NULL);
    if (disturbs) pthread_join(forker, NULL);
    return 0;
}
