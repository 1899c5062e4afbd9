/* ACE, the learning thread, one case each. Run with hakmem preloaded; what a case needs of HAKMEM_ACE and HAKMEM_ACE_MS
 * its test sets. */
#include "common.h"
#include <dirent.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

enum { MANY = 4096 };
static void *block[MANY];

static uint64_t stat_of(const char *name)
{
    static struct snapshot s;
    take_snapshot(&s);
    return of(&s, name);
}

/* So many refills at least, of one class, by bursts that its stack cannot hold. */
static void refill(size_t size, uint64_t times)
{
    uint64_t before = stat_of("refills");
    do {
        for (int i = 0; i < MANY; i++) CHECK((block[i] = malloc(size)));
        for (int i = 0; i < MANY; i++) free(block[i]);
    } while (stat_of("refills") - before < times);
}

static uint64_t class_field(size_t size, const char *name)
{
    static struct rows r;
    take_rows(&r, "hak_class_table", "class");
    for (int i = 0; i < r.count; i++)
        if (field("class", row(&r, i), "size") == size) return field("class", row(&r, i), name);
    fail("class", __LINE__, "none of %zu bytes", size);
}

static uint64_t policy_field(const char *policy, const char *name)
{
    static struct rows r;
    take_rows(&r, "hak_ace_policies", "policy");
    for (int i = 0; i < r.count; i++)
        if (strcmp(text_field("policy", row(&r, i), "name"), policy) == 0) return field("policy", row(&r, i), name);
    fail("policy", __LINE__, "none called %s", policy);
}

static struct rows log_rows;
static int read_log(void)
{
    int (*get)(void *, size_t, int);
    *(void **)&get = hak("hak_ace_log");
    log_rows.row_size = record("decision")->size;
    log_rows.count = get(log_rows.bytes, log_rows.row_size, 256);
    return log_rows.count;
}

static void say_log(void)
{
    for (int i = 0; i < read_log(); i++) {
        const void *d = row(&log_rows, i);
        dprintf(2, "%llu ms: %s %llu: %llu -> %llu %s, %llu, %llu\n", (unsigned long long)field("decision", d, "ms"),
                text_field("decision", d, "policy"), (unsigned long long)field("decision", d, "size"),
                (unsigned long long)field("decision", d, "old"), (unsigned long long)field("decision", d, "new"),
                text_field("decision", d, "did"), (unsigned long long)field("decision", d, "before"),
                (unsigned long long)field("decision", d, "after"));
    }
}

#define CHECK_LOG(condition, ...)                                                                                      \
    do {                                                                                                               \
        if (!(condition)) say_log();                                                                                   \
        CHECK(condition, __VA_ARGS__);                                                                                 \
    } while (0)

static const void *decision(int from, const char *policy, size_t size, const char *did) /* the first from there on, or NULL */
{
    for (int i = from; i < read_log(); i++) {
        const void *d = row(&log_rows, i);
        if (strcmp(text_field("decision", d, "policy"), policy) == 0 && field("decision", d, "size") == size
            && strcmp(text_field("decision", d, "did"), did) == 0)
            return d;
    }
    return NULL;
}

static int index_of(const void *d)
{
    return (int)(((const unsigned char *)d - log_rows.bytes) / (ptrdiff_t)log_rows.row_size);
}

/* ---- contract A */

static void a_full_ring_drops(void)
{
    refill(1000, 20); /* HAKMEM_ACE_MS is long: nobody reads */
    uint64_t drops = stat_of("ace_drops"), events = stat_of("ace_events");
    CHECK(drops == 0 && events == 0, "%llu drops, %llu events", (unsigned long long)drops, (unsigned long long)events);
    refill(1000, 2 * 512 * 8 + 800); /* the thread may have begun in between, and what stood there is void */
    CHECK(stat_of("ace_drops") >= 90 && stat_of("ace_events") == 0, "%llu", (unsigned long long)stat_of("ace_drops"));
    drops = stat_of("ace_drops");
    refill(1000, 8000);
    CHECK(stat_of("ace_drops") >= drops + 480); /* or it may have begun only now */
    check_laws();
}

static void drops_are_ignored(void)
{
    while (stat_of("ace_windows_ignored") == 0) refill(1000, 20000);
    while (stat_of("ace_windows") == 0) { /* fewer events for as many refills, until they fit */
        refill(1000, 1000);
        sleep_ms(1);
    }
}

/* ---- contract B */

static void publish(const char *policy, uint32_t class, uint64_t value)
{
    static void (*target)(int, uint32_t, uint64_t);
    static struct rows r;
    if (!target) *(void **)&target = hak("hak_debug_target");
    take_rows(&r, "hak_ace_policies", "policy");
    for (int i = 0; i < r.count; i++)
        if (strcmp(text_field("policy", row(&r, i), "name"), policy) == 0) target(i, class, value);
}

static void a_target_waits_for_the_next_refill(void)
{
    enum { SIZE = 2048 }; /* a stack holds 32 at first, a refill brings 8 */
    uint32_t class = (uint32_t)class_field(SIZE, "index");
    void *one = malloc(SIZE);
    uint64_t cached = class_field(SIZE, "cached_blocks"), misses = class_field(SIZE, "misses"), n;
    CHECK(cached == 8 && misses == 1, "%llu cached", (unsigned long long)cached);
    publish("batch", class, 3);
    publish("capacity", class, 128);
    CHECK(class_field(SIZE, "cached_blocks") == cached);
    for (n = 0; n < cached; n++) CHECK((block[n] = malloc(SIZE)));
    CHECK(class_field(SIZE, "misses") == misses && class_field(SIZE, "cached_blocks") == 0);
    CHECK((block[n++] = malloc(SIZE)));
    CHECK(class_field(SIZE, "misses") == misses + 1 && class_field(SIZE, "cached_blocks") == 3);
    while (n < 120) CHECK((block[n++] = malloc(SIZE)));
    uint64_t flushed = class_field(SIZE, "flushed_blocks");
    while (n > 0) free(block[--n]);
    free(one);
    CHECK(class_field(SIZE, "flushed_blocks") == flushed, "a stack of 128 was flushed");
    cached = class_field(SIZE, "cached_blocks");
    CHECK(cached >= 120);
    publish("capacity", class, 0);
    publish("batch", class, 8);
    CHECK(class_field(SIZE, "cached_blocks") == cached);
    for (n = 0; n < cached; n++) CHECK((block[n] = malloc(SIZE)));
    CHECK(class_field(SIZE, "cached_blocks") == 0);
    while (n > 0) free(block[--n]);
    check_laws();
}

/* ---- contract C */

static int mappings(void)
{
    int n = 0;
    char text[4096];
    ssize_t got;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while ((got = read(fd, text, sizeof text)) > 0)
        for (ssize_t i = 0; i < got; i++) n += text[i] == '\n';
    close(fd);
    return n;
}

static void events_need_no_memory(void)
{
    uint64_t refills, metadata;
    refill(1000, 100000);
    while (stat_of("ace_windows") + stat_of("ace_windows_ignored") < 3) sleep_ms(1);
    refills = stat_of("refills");
    metadata = stat_of("metadata_bytes");
    int maps = mappings();
    /* so many that 64 bytes for each would show */
    while (stat_of("refills") - refills < 2000000 || stat_of("ace_events") < 20000) refill(1000, 10000);
    CHECK(stat_of("ace_events") + stat_of("ace_drops") > 0);
    CHECK(stat_of("metadata_bytes") == metadata, "%llu bytes more", (unsigned long long)(stat_of("metadata_bytes") - metadata));
    CHECK(mappings() == maps, "%d mappings, then %d", maps, mappings());
    CHECK(stat_of("heaps_made") == 1, "the learning thread has a heap");
}

/* ---- what is learned */

static void fetch(size_t size, int blocks) /* refills, and no flush: nothing is freed */
{
    for (int i = 0; i < blocks; i++) CHECK(malloc(size));
}

static void a_busy_class_fetches_more(void)
{
    const void *d;
    for (int i = 0; !(d = decision(0, "batch", 1024, "applied")); i++) {
        CHECK_LOG(i < 20000, "no decision");
        fetch(1024, 200);
        sleep_ms(1);
    }
    CHECK(field("decision", d, "old") == 16 && field("decision", d, "new") == 32);
    CHECK(field("decision", d, "windows") == 3 && field("decision", d, "evidence") >= 64);
    CHECK(field("decision", d, "before") > 50000 && field("decision", d, "before") < 65000, "one in 17 misses, not %llu",
          (unsigned long long)field("decision", d, "before"));
    CHECK(policy_field("batch", "target") >= 1);
    for (int i = 0; !(d = decision(0, "batch", 1024, "kept")); i++) {
        CHECK_LOG(i < 20000 && !decision(0, "batch", 1024, "undone"), "it is better");
        fetch(1024, 200);
        sleep_ms(1);
    }
    CHECK(field("decision", d, "after") < 35000, "one in 33 misses, not %llu", (unsigned long long)field("decision", d, "after"));
    CHECK(stat_of("ace_changes") >= 1);
}

static void what_has_no_case_goes_back(void)
{
    a_busy_class_fetches_more();
    int from = index_of(decision(0, "batch", 1024, "kept"));
    const void *d;
    for (int i = 0; !(d = decision(from, "batch", 1024, "applied")); i++) {
        CHECK_LOG(i < 20000, "nothing given back");
        sleep_ms(1);
    }
    CHECK(field("decision", d, "old") == 32 && field("decision", d, "new") == 16);
}

enum { AT_ONCE = 200 };
static atomic_int handed, over; /* whether block[] is the other thread's */

static void *free_what_comes(void *argument)
{
    for (; !atomic_load(&over); sched_yield()) {
        if (!atomic_load(&handed)) continue;
        for (int i = 0; i < AT_ONCE; i++) free(block[i]);
        atomic_store(&handed, 0);
    }
    return argument;
}

/* Blocks that leave one to a batch, whatever a batch may hold. */
static void a_change_without_gain_is_undone_and_remembered(void)
{
    uint64_t home = policy_field("remote", "initial"), ms = strtoull(getenv("HAKMEM_ACE_MS"), NULL, 10);
    const void *first = NULL, *undone = NULL, *again = NULL;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, free_what_comes, NULL) == 0);
    for (time_t start = time(NULL); !again; ) {
        CHECK_LOG(time(NULL) - start < 60, "%d decisions", read_log());
        for (int i = 0; i < AT_ONCE; i++) CHECK((block[i] = malloc(100000)));
        for (atomic_store(&handed, 1); atomic_load(&handed);) sched_yield();
        if (!(first = decision(0, "remote", 0, "applied"))) continue;
        CHECK(field("decision", first, "old") == home && field("decision", first, "new") == 2 * home);
        uint64_t rate = field("decision", first, "before"); /* a window may end between a block and its batch */
        CHECK(rate > 980000 && rate < 1020000, "%llu batches for a million blocks", (unsigned long long)rate);
        if (!(undone = decision(0, "remote", 0, "undone"))) continue;
        CHECK(field("decision", undone, "old") == 2 * home && field("decision", undone, "new") == home);
        again = decision(index_of(undone), "remote", 0, "applied");
        if (!again) CHECK(policy_field("remote", "target") == home);
    }
    CHECK(!decision(0, "remote", 0, "kept"));
    undone = decision(0, "remote", 0, "undone");
    uint64_t pause = field("decision", again, "ms") - field("decision", undone, "ms");
    CHECK(pause >= 80 * ms, "tried again after %llu ms", (unsigned long long)pause);
    atomic_store(&over, 1);
    pthread_join(thread, NULL);
    check_laws();
}

static void wave(void)
{
    enum { BLOCKS = 32 };
    for (int i = 0; i < BLOCKS; i++) {
        CHECK((block[i] = malloc(2 * MIB)));
        memset(block[i], 1, 2 * MIB);
    }
    for (int i = 0; i < BLOCKS; i++) free(block[i]);
}

static void waves_are_waited_for(void) /* HAKMEM_PURGE_MS=100, HAKMEM_RETAIN large: only age gives anything back */
{
    const void *d;
    for (int i = 0; !(d = decision(0, "purge", 0, "applied")); i++) {
        CHECK_LOG(i < 100, "no decision");
        wave();
        for (int k = 0; k < 30; k++, sleep_ms(10)) refill(100, 100); /* ticks, in little memory */
    }
    CHECK(field("decision", d, "old") == 100 && field("decision", d, "new") >= 200 && field("decision", d, "new") <= 1600);
    for (int i = 0; !decision(0, "purge", 0, "kept"); i++) {
        CHECK_LOG(i < 100 && !decision(0, "purge", 0, "undone"), "a longer delay is better");
        wave();
        for (int k = 0; k < 30; k++, sleep_ms(10)) refill(100, 100);
    }
}

static void shadow_only_says(void)
{
    const void *d;
    uint64_t before = class_field(1024, "misses");
    for (int i = 0; !(d = decision(0, "batch", 1024, "shadow")); i++) {
        CHECK_LOG(i < 20000, "no decision");
        fetch(1024, 200);
        sleep_ms(1);
    }
    CHECK(field("decision", d, "old") == 16 && field("decision", d, "new") == 32);
    for (int i = 0; i < read_log(); i++) CHECK(strcmp(text_field("decision", row(&log_rows, i), "did"), "shadow") == 0);
    CHECK(policy_field("batch", "target") == 0, "a target has changed");
    fetch(1024, 17);
    while (class_field(1024, "cached_blocks")) fetch(1024, 1);
    before = class_field(1024, "misses");
    fetch(1024, 17 * 64);
    CHECK(class_field(1024, "misses") - before >= 64, "a refill still brings 16 and one");
}

/* ---- a user's setting */

static void a_setting_voids_what_was_learned(void)
{
    int (*set)(const char *, int64_t);
    *(void **)&set = hak("hak_option_set");
    static const struct { const char *policy, *option; } of_option[] = {
        {"retain", "retain"}, {"bigcache", "retain"}, {"purge", "purge_ms"}};
    for (size_t i = 0; i < COUNT_OF(of_option); i++) {
        uint64_t home = policy_field(of_option[i].policy, "initial");
        CHECK(policy_field(of_option[i].policy, "target") == home);
        publish(of_option[i].policy, 0, 4 * home);
        CHECK(policy_field(of_option[i].policy, "target") == 4 * home);
        CHECK(set(of_option[i].option, (int64_t)home + 5) == 0);
        CHECK(policy_field(of_option[i].policy, "target") == home + 5 && policy_field(of_option[i].policy, "initial") == home + 5);
        CHECK(set(of_option[i].option, (int64_t)home) == 0);
    }
}

/* ---- the thread */

static int learning_threads(char *status, size_t size)
{
    char path[64], name[32];
    int n = 0;
    pid_t found = 0;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks);
    for (struct dirent *entry; (entry = readdir(tasks));) {
        pid_t thread = atoi(entry->d_name);
        snprintf(path, sizeof path, "/proc/self/task/%d/comm", thread);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        ssize_t got = read(fd, name, sizeof name - 1);
        close(fd);
        if (got > 0 && strncmp(name, "hakmem-ace\n", (size_t)got) == 0) n++, found = thread;
    }
    closedir(tasks);
    if (found && status) {
        snprintf(path, sizeof path, "/proc/self/task/%d/status", found);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0);
        ssize_t got = read(fd, status, size - 1);
        CHECK(got > 0);
        status[got] = 0;
        close(fd);
    }
    return n;
}

static void await_windows(uint64_t n)
{
    for (uint64_t start = stat_of("ace_windows"), i = 0; stat_of("ace_windows") < start + n; i++, sleep_ms(1))
        CHECK_LOG(i < 20000, "it does not run");
}

static void it_takes_no_signal(void)
{
    char status[8192];
    await_windows(1);
    CHECK(learning_threads(status, sizeof status) == 1);
    char *at = strstr(status, "SigBlk:");
    CHECK(at);
    uint64_t blocked = strtoull(at + 7, NULL, 16);
    for (int s = 1; s < 32; s++)
        if (s != SIGKILL && s != SIGSTOP) CHECK(blocked >> (s - 1) & 1, "signal %d is not blocked", s);
    sigset_t mine;
    pthread_sigmask(SIG_BLOCK, NULL, &mine);
    for (int s = 1; s < 32; s++) CHECK(!sigismember(&mine, s), "signal %d is blocked here", s);
}

static void off_has_no_thread(void)
{
    refill(1000, 2000);
    sleep_ms(30);
    CHECK(learning_threads(NULL, 0) == 0 && read_log() == 0);
    CHECK(stat_of("ace_events") + stat_of("ace_drops") + stat_of("ace_windows") == 0);
    for (int i = 0; i < 6; i++) {
        static struct rows r;
        take_rows(&r, "hak_ace_policies", "policy");
        CHECK(field("policy", row(&r, i), "target") == field("policy", row(&r, i), "initial"));
    }
}

static void *keep_refilling(void *argument)
{
    static _Thread_local void *mine[2000];
    while (!atomic_load(&over)) {
        for (int i = 0; i < 2000; i++) mine[i] = malloc(1000);
        for (int i = 0; i < 2000; i++) free(mine[i]);
    }
    return argument;
}

static void in_a_child(int depth)
{
    uint64_t events = stat_of("ace_events");
    await_windows(2);
    CHECK(learning_threads(NULL, 0) == 1);
    for (int i = 0; stat_of("ace_events") == events; i++) {
        CHECK(i < 5000, "no events arrive");
        refill(1000, 1000);
    }
    check_laws();
    pid_t child = depth ? fork() : -1;
    if (child == 0) in_a_child(depth - 1);
    int status = 0;
    CHECK(child < 0 || (waitpid(child, &status, 0) == child && status == 0), "status %x", status);
    if (depth < 2) _exit(0);
}

static void a_child_learns_too(void)
{
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, keep_refilling, NULL) == 0);
    for (int i = 0; i < 5; i++) {
        pid_t child = fork();
        if (child == 0) in_a_child(i ? 0 : 1);
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x", status);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

static void a_refused_thread_is_said_once(void)
{
    CHECK(read_log() == 1);
    CHECK(decision(0, "ace", 0, "refused") && field("decision", row(&log_rows, 0), "evidence") == EAGAIN);
    refill(1000, 5000);
    pid_t child = fork();
    if (child == 0) _exit(read_log() != 1);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "status %x", status);
    CHECK(stat_of("ace_windows") == 0 && read_log() == 1);
}

/* ---- off is the plain allocator: the same calls, and what they count */

static void counted(void)
{
    uint64_t seed = 7;
    struct snapshot s;
    for (int i = 0; i < 300000; i++) {
        size_t k = (size_t)random_between(&seed, 0, MANY - 1), bits = next_random(&seed);
        free(block[k]);
        block[k] = malloc(random_between(&seed, 1, bits % 100 ? bits % 7 ? 2000 : 40000 : 3000000));
    }
    take_snapshot(&s);
    for (uint32_t i = 0; i < record("stats")->nfields; i++) {
        const char *name = about_text(record("stats"), i, TEXT_NAME);
        if (strncmp(name, "ace_", 4) && strcmp(name, "metadata_bytes") && strcmp(name, "committed_bytes")
            && strncmp(name, "shared_locks", 12)) /* ACE's own lock, and the memory of rings, are not in question */
            printf("%s %llu\n", name, (unsigned long long)of(&s, name));
    }
}

static const struct test_case cases[] = {
    CASE(a_full_ring_drops),
    CASE(drops_are_ignored),
    CASE(a_target_waits_for_the_next_refill),
    CASE(events_need_no_memory),
    CASE(a_busy_class_fetches_more),
    CASE(what_has_no_case_goes_back),
    CASE(a_change_without_gain_is_undone_and_remembered),
    CASE(waves_are_waited_for),
    CASE(shadow_only_says),
    CASE(a_setting_voids_what_was_learned),
    CASE(it_takes_no_signal),
    CASE(off_has_no_thread),
    CASE(a_child_learns_too),
    CASE(a_refused_thread_is_said_once),
    CASE(counted),
};

int main(int argc, char **argv)
{
    run_case(argc, argv, cases, COUNT_OF(cases));
    return 0;
}
