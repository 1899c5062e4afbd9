/* A program with a stats page that reads it and writes commands itself. One case a run. */
#include "live.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { NO_OPTION = 5, RANGE = 6, WHEN = 7 };

static int code_of(const char *name)
{
    const char *(*error_name)(int);
    *(void **)&error_name = hak("hak_error_name");
    for (int i = 0; i < 100; i++)
        if (strcmp(error_name(i), name) == 0) return i;
    fail("error", __LINE__, "no error %s", name);
}

static void slow_path(void)
{
    void *volatile p = malloc(3 * MIB);
    CHECK(p);
    free(p);
}

/* What this process wants of itself, done in its next slow path. */
static void obey(struct live_command *c, uint32_t what, const char *name, int64_t value)
{
    uint64_t number = live_ask(c, what, name, value);
    for (int i = 0; i < 10000 && !live_is_done(c, number); i++) slow_path();
    CHECK(live_is_done(c, number), "command %u", what);
}

static int wait_for(pid_t pid)
{
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid, "errno %d", errno);
    return status;
}

static int files(void) /* of hakmem's */
{
    char path[64], link[64];
    int n = 0;
    for (int fd = 3; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        n += readlink(path, link, sizeof link) > 13 && strncmp(link, "/memfd:hakmem", 13) == 0;
    }
    return n;
}

/* ---- what stands there */

static void description(void)
{
    struct live l;
    char line[700];
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    CHECK(l.head->abi == about()->abi && l.head->pid == (uint32_t)getpid() && l.head->published > 0);
    const char *text = (const char *)l.head + l.head->text;
    snprintf(line, sizeof line, "hakmem\t%s\t%s\n", about()->version, about()->variant);
    CHECK(strncmp(text, line, strlen(line)) == 0, "%.60s", text);
    CHECK(l.sections == 13);
    for (size_t i = 0; i < l.sections; i++) {
        const struct hak_record *r = record(l.name[i]);
        CHECK(l.row_size[i] == r->size);
        snprintf(line, sizeof line, "record\t%s\t%zu\t%zu\t%zu\n", l.name[i], l.row_size[i], l.row[i], l.most[i]);
        const char *at = strstr(text, line);
        CHECK(at, "%s", line);
        at += strlen(line);
        for (uint32_t k = 0; k < r->nfields; k++, at += strlen(line)) {
            snprintf(line, sizeof line, "field\t%s\t%c\t%s\t%s\t%u\t%s\n", about_text(r, k, TEXT_NAME), r->kinds[k],
                     about_text(r, k, TEXT_UNIT), about_text(r, k, TEXT_VIEW), r->fields[k].offset, about_text(r, k, TEXT_HELP));
            CHECK(strncmp(at, line, strlen(line)) == 0, "%s", line);
        }
    }
}

static void rows(void)
{
    static const char *const parts[] = {"live_bytes",       "cached_bytes",     "transit_bytes",
                                        "slab_free_bytes",  "slab_tail_bytes",  "free_dirty_bytes",
                                        "free_clean_bytes", "kept_whale_bytes", "metadata_bytes"};
    struct live l;
    static struct snapshot now;
    struct live_command *c = live_command(getpid());
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    void *kept[1000];
    for (size_t i = 0; i < COUNT_OF(kept); i++) CHECK((kept[i] = malloc(i * 40)));
    obey(c, DO_PUBLISH, "", 0);
    take_snapshot(&now);
    live_whole(&l);
#define STAT(name) live_number(&l, "stats", 0, name)
    uint64_t sum = 0;
    for (size_t i = 0; i < COUNT_OF(parts); i++) sum += STAT(parts[i]);
    CHECK(sum == STAT("committed_bytes"));
    CHECK(STAT("allocs") - STAT("frees") == STAT("live_blocks") && STAT("live_blocks") >= COUNT_OF(kept));
    CHECK(STAT("alloc_bytes") - STAT("freed_bytes") == STAT("live_bytes"));
    for (uint32_t i = 0; i < record("stats")->nfields; i++) { /* but for the free that ended the slow path, and what tells of it */
        const char *name = about_text(record("stats"), i, TEXT_NAME);
        uint64_t a = STAT(name), b = of(&now, name), off = a > b ? a - b : b - a;
        CHECK(off <= 4 || strstr(name, "lock") || strstr(name, "claim") || off <= 8 * MIB, "%s: %llu, %llu", name, (unsigned long long)a, (unsigned long long)b);
        if (strcmp(name, "live_blocks") == 0) CHECK(a == b || a == b + 1 || b == a + 1, "%llu %llu", (unsigned long long)a, (unsigned long long)b);
    }
    uint64_t live = 0, in_tiers = 0;
    const uint64_t *classes = live_counts(&l, live_section(&l, "class")), *tiers = live_counts(&l, live_section(&l, "tier"));
    CHECK(classes[0] == classes[1] && classes[0] > 50 && tiers[0] == 4);
    for (size_t i = 0; i < classes[0]; i++) {
        uint64_t blocks = live_number(&l, "class", i, "live_blocks");
        CHECK(blocks == live_number(&l, "class", i, "allocs") - live_number(&l, "class", i, "frees"));
        live += blocks;
    }
    for (size_t i = 0; i < tiers[0]; i++) in_tiers += live_number(&l, "tier", i, "live_blocks");
    CHECK(live + STAT("large_blocks") + STAT("whale_blocks") == STAT("live_blocks") && in_tiers == STAT("live_blocks"));
    CHECK(strcmp(live_text(&l, "tier", 0, "name"), "tiny") == 0 && strcmp(live_text(&l, "tier", 3, "name"), "whale") == 0);
    CHECK(live_counts(&l, live_section(&l, "heap"))[0] == 1);
    /* every text of every option has found room */
    const uint64_t *options = live_counts(&l, live_section(&l, "option"));
    CHECK(options[0] > 20 && options[0] == options[1]);
    int found = 0;
    for (size_t i = 0; i < options[0]; i++) {
        const char *name = live_text(&l, "option", i, "name");
        CHECK(*name && strncmp(live_text(&l, "option", i, "env"), "HAKMEM_", 7) == 0 && *live_text(&l, "option", i, "use"), "%zu", i);
        CHECK(strcmp(live_text(&l, "setting", i, "name"), name) == 0);
        if (strcmp(name, "stats_page") == 0) found += live_number(&l, "setting", i, "value") == 1;
        if (strcmp(name, "site_rules") == 0) found += strcmp(live_text(&l, "setting", i, "text"), "42:nocache") == 0;
    }
    CHECK(found == 2);
    CHECK(strcmp(live_text(&l, "rule", 0, "where"), "42") == 0);
    for (size_t i = 0; i < COUNT_OF(kept); i++) free(kept[i]);
}

static void long_texts(void) /* as many rules as there is room for, as long as they may be */
{
    struct live l;
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    live_whole(&l);
    const uint64_t *rules = live_counts(&l, live_section(&l, "rule")), *options = live_counts(&l, live_section(&l, "option"));
    CHECK(rules[0] == 64 && rules[1] > 64, "%d, %d", (int)rules[0], (int)rules[1]);
    for (size_t i = 0; i < rules[0]; i++) CHECK(strlen(live_text(&l, "rule", i, "where")) > 450);
    for (size_t i = 0; i < options[0]; i++) {
        const char *name = live_text(&l, "setting", i, "name");
        CHECK(strcmp(name, live_text(&l, "option", i, "name")) == 0 && *name && *live_text(&l, "option", i, "help"));
        if (strcmp(name, "site_rules") == 0) CHECK(strcmp(live_text(&l, "setting", i, "text"), getenv("HAKMEM_SITE_RULES")) == 0);
    }
}

static pthread_barrier_t meet;
static void *live_on(void *argument)
{
    void *volatile p = malloc(100);
    pthread_barrier_wait(&meet);
    pthread_barrier_wait(&meet);
    free(p);
    return argument;
}

static void more_heaps_than_rows(void)
{
    enum { COUNT = 300 };
    pthread_t thread[COUNT];
    pthread_attr_t attributes;
    struct live l;
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, 64 * KIB) == 0);
    pthread_barrier_init(&meet, NULL, COUNT + 1);
    for (int i = 0; i < COUNT; i++) CHECK(pthread_create(&thread[i], &attributes, live_on, NULL) == 0);
    pthread_barrier_wait(&meet);
    obey(live_command(getpid()), DO_PUBLISH, "", 0);
    live_whole(&l);
    size_t heap = live_section(&l, "heap");
    const uint64_t *count = live_counts(&l, heap);
    CHECK(count[0] == l.most[heap] && count[0] == 256 && count[1] == COUNT + 1, "%d, %d", (int)count[0], (int)count[1]);
    CHECK(live_number(&l, "stats", 0, "heaps") == COUNT + 1);
    CHECK(strcmp(live_text(&l, "lock", 0, "name"), "heaps") == 0); /* the next section is whole */
    pthread_barrier_wait(&meet);
    for (int i = 0; i < COUNT; i++) CHECK(pthread_join(thread[i], NULL) == 0);
}

/* ---- commands */

static void commands(void)
{
    struct live l, detail;
    struct live_command *c = live_command(getpid());
    int64_t (*get)(const char *, int64_t *), value;
    *(void **)&get = hak("hak_option_get");
    CHECK(live_open(&l, getpid(), "hakmem-stats"));

    uint64_t before = l.head->published;
    obey(c, DO_PUBLISH, "", 0);
    CHECK(c->status == 0 && l.head->published > before);

    CHECK(live_find(getpid(), "hakmem-detail") < 0);
    void *large = malloc(5 * MIB - 1000), *volatile small = malloc(100);
    CHECK(large && small);
    obey(c, DO_DETAIL, "", 0);
    CHECK(c->status == 0 && live_open(&detail, getpid(), "hakmem-detail") && c->result == detail.size);
    live_whole(&detail);
    const uint64_t *count = live_counts(&detail, live_section(&detail, "segment"));
    int found = 0;
    CHECK(count[0] == count[1] && count[0] > 1);
    for (size_t i = 0; i < count[0]; i++) found += live_number(&detail, "segment", i, "total_size") == 5 * MIB;
    CHECK(found == 1, "%d segments of 5 MiB", found);
    live_close(&detail);
    obey(c, DO_DETAIL, "", 0); /* anew, instead of the last */
    CHECK(c->status == 0 && live_find(getpid(), "hakmem-detail") >= 0);
    obey(c, DO_RELEASE, "", 0);
    CHECK(c->status == 0 && live_find(getpid(), "hakmem-detail") < 0);
    obey(c, DO_RELEASE, "", 0); /* nothing is there */
    CHECK(c->status == 0);
    free(large);
    free(small);

    char *p[64];
    for (size_t i = 0; i < COUNT_OF(p); i++) memset(p[i] = malloc(MIB), 1, MIB);
    for (size_t i = 0; i < COUNT_OF(p); i++) free(p[i]);
    size_t rss = rss_bytes();
    obey(c, DO_TRIM, "", 0);
    CHECK(c->status == 0 && c->result > 16 * MIB, "%llu bytes", (unsigned long long)c->result);
    CHECK(rss_bytes() + 16 * MIB < rss);

    obey(c, DO_SET, "purge_ms", 4321);
    CHECK(c->status == 0 && get("purge_ms", &value) == 0 && value == 4321);
    obey(c, DO_SET, "purge_ms", -1);
    CHECK(c->status == RANGE && get("purge_ms", &value) == 0 && value == 4321);
    obey(c, DO_SET, "purge_m", 1);
    CHECK(c->status == NO_OPTION);
    obey(c, DO_SET, "enable_tls", 0);
    CHECK(c->status == WHEN);
    char without_end[sizeof c->name + 1];
    memset(without_end, 'p', sizeof without_end);
    without_end[sizeof c->name] = 0;
    uint64_t number = c->asked + 1;
    memset(c->name, 'p', sizeof c->name);
    c->what = DO_SET;
    c->until = UINT64_MAX;
    __atomic_store_n(&c->asked, number, __ATOMIC_RELEASE);
    __atomic_store_n(&c->look, 1, __ATOMIC_RELEASE);
    slow_path();
    CHECK(live_is_done(c, number) && c->status == NO_OPTION);

    obey(c, 77, "", 0);
    CHECK(c->status == (uint32_t)code_of("COMMAND"));
    obey(c, DO_PUBLISH, "", 0);
    CHECK(c->status == 0);
}

static void no_memory_for_details(void) /* debug library: each mapping that they need is refused in turn */
{
    enum { MMAP = 1 };
    struct live_command *c = live_command(getpid());
    uint64_t (*refuse)(uint32_t, uint64_t, uint64_t);
    *(void **)&refuse = hak("hak_debug_fail");
    int refused = 0;
    for (uint64_t nth = 1; nth <= 4; nth++) {
        slow_path();
        refuse(MMAP, nth, 1);
        obey(c, DO_DETAIL, "", 0);
        refuse(0, 0, 0);
        if (c->status == (uint32_t)code_of("NOMEM")) CHECK(files() == 2 && c->result == 0 && ++refused);
        else CHECK(c->status == 0 && files() == 3);
        obey(c, DO_DETAIL, "", 0);
        CHECK(c->status == 0 && files() == 3);
    }
    CHECK(refused == 2, "%d", refused); /* the file's, and that in which its rows are made */
}

static int files_mapped(void) /* of hakmem's */
{
    int n = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while (fgets(line, sizeof line, maps)) n += strstr(line, "/memfd:hakmem") != NULL;
    fclose(maps);
    return n;
}

static void no_memory_for_the_page(void) /* debug library: each mapping that a child's files need is refused in turn */
{
    enum { MMAP = 1 };
    uint64_t (*refuse)(uint32_t, uint64_t, uint64_t);
    *(void **)&refuse = hak("hak_debug_fail");
    int without = 0;
    CHECK(files() == 2 && files_mapped() == 2);
    for (uint64_t nth = 1; nth <= 5; nth++) {
        slow_path();
        pid_t pid = fork();
        if (pid == 0) {
            CHECK(files() == 0 && files_mapped() == 0);
            refuse(MMAP, nth, 1);
            for (int i = 0; i < 20; i++) slow_path(); /* BigCache has what they want */
            refuse(0, 0, 0);
            CHECK(files() == files_mapped() && (files() == 0 || files() == 2), "%d %d", files(), files_mapped());
            _exit(files() ? 0 : 7);
        }
        int how = wait_for(pid);
        CHECK(how == 0 || how == 7 << 8, "%d", how);
        without += how != 0;
    }
    CHECK(without == 3, "%d", without); /* the command page's, the page's, and that in which its rows are made */
}

static void texts_of_rules_that_come_and_go(void)
{
    struct live_command *c = live_command(getpid());
    int (*rule)(const char *);
    struct live l;
    char where[240], text[260];
    *(void **)&rule = hak("hak_site_rule");
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    for (int i = 0; i < 1000; i++) { /* more than there is room for at once */
        snprintf(where, sizeof where, "%0*d_function", 200, i);
        where[0] = 'x';
        snprintf(text, sizeof text, "%s:nocache", where);
        CHECK(rule(text) == 0);
        obey(c, DO_PUBLISH, "", 0);
        live_whole(&l);
        CHECK(strcmp(live_text(&l, "rule", 0, "where"), where) == 0, "rule %d: %s", i, live_text(&l, "rule", 0, "where"));
        CHECK(strcmp(live_text(&l, "lock", 0, "name"), "") != 0, "rule %d", i);
        snprintf(text, sizeof text, "%s:none", where);
        CHECK(rule(text) == 0);
    }
}

static atomic_int lanes_stop;
static _Atomic(void *) handed_on[512];

static void *short_life(void *argument) /* leaves blocks in its stacks, and others' in its batches */
{
    uint64_t seed = (uintptr_t)argument;
    for (int i = 0; i < 400; i++) {
        void *p = malloc(random_between(&seed, 1, i % 16 ? 800 : 100 * KIB));
        CHECK(p);
        free(atomic_exchange(&handed_on[next_random(&seed) % COUNT_OF(handed_on)], p));
    }
    return NULL;
}

static void *lane(void *argument) /* threads end and begin, and have the heaps of those before them */
{
    for (uintptr_t i = (uintptr_t)argument << 32; !atomic_load(&lanes_stop); i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, short_life, (void *)i) == 0);
        pthread_join(thread, NULL);
        if (i % 64 == 0) malloc_trim(0);
    }
    return NULL;
}

static void what_rises_never_falls(void)
{
    enum { MOST = 32768, FIELDS = 512 };
    static struct { size_t section, offset; char name[80]; } rises[FIELDS];
    static uint64_t last[MOST];
    struct live_command *c = live_command(getpid());
    struct live l;
    pthread_t thread[2];
    char line[1024], section[64] = "", name[64];
    size_t count = 0, n;
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    const char *at = (const char *)l.head + l.head->text, *end = at + l.head->text_len;
    for (; at < end; at += n + 1) {
        n = strcspn(at, "\n");
        CHECK(n < sizeof line);
        memcpy(line, at, n);
        line[n] = 0;
        sscanf(line, "record\t%63[a-z]", section);
        char kind, *views = line; /* field, name, kind, unit, views */
        if (sscanf(line, "field\t%63[a-z_0-9]\t%c", name, &kind) != 2) continue;
        for (int i = 0; i < 4; i++) views = strchr(views, '\t') + 1;
        *strchr(views, '\t') = 0;
        /* rows of these stay at their place; those of heaps and of BigCache's keys come and go */
        if (!strstr(views, "rises") || !strstr("stats class tier lock shard", section)) continue;
        CHECK(kind == 'Q' && count < FIELDS);
        rises[count].section = live_section(&l, section);
        rises[count].offset = live_offset(&l, section, name, &kind);
        snprintf(rises[count++].name, sizeof rises->name, "%.30s.%.40s", section, name);
    }
    CHECK(count > 60, "%zu", count);
    for (uintptr_t i = 0; i < 2; i++) CHECK(pthread_create(&thread[i], NULL, lane, (void *)(i + 1)) == 0);
    for (int reading = 0; reading < 5000; reading++) {
        uint64_t number = live_ask(c, DO_PUBLISH, "", 0);
        for (int i = 0; i < 1000000 && !live_is_done(c, number); i++) {
            slow_path();
            if (i % 100 == 99) sleep_ms(1); /* who obeys it may have to wait for a processor */
        }
        CHECK(live_is_done(c, number));
        /* The others publish, too: what is read is of one moment if none has done so meanwhile. */
        static uint64_t now[MOST];
        uint64_t seq = __atomic_load_n(&l.head->seq, __ATOMIC_ACQUIRE);
        size_t k = 0;
        for (size_t f = 0; f < count; f++)
            for (size_t r = 0; r < l.most[rises[f].section]; r++, k++) {
                const char *row = (const char *)l.head + l.row[rises[f].section] + r * l.row_size[rises[f].section];
                CHECK(k < MOST);
                now[k] = __atomic_load_n((const uint64_t *)(const void *)(row + rises[f].offset), __ATOMIC_RELAXED);
            }
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (seq % 2 || __atomic_load_n(&l.head->seq, __ATOMIC_RELAXED) != seq) continue;
        k = 0;
        for (size_t f = 0; f < count; f++)
            for (size_t r = 0; r < l.most[rises[f].section]; r++, k++) {
                CHECK(now[k] >= last[k], "%s of row %zu: %llu, then %llu", rises[f].name, r, (unsigned long long)last[k],
                      (unsigned long long)now[k]);
                last[k] = now[k];
            }
    }
    atomic_store(&lanes_stop, 1);
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    CHECK(last[0] > 0);
}

static void obeys_in_the_next_slow_path(void)
{
    struct live_command *c = live_command(getpid());
    struct live l;
    CHECK(live_open(&l, getpid(), "hakmem-stats") && l.head->thread == 0);
    slow_path();
    uint64_t number = live_ask(c, DO_PUBLISH, "", 0);
    sleep_ms(50);
    CHECK(!live_is_done(c, number));
    slow_path();
    CHECK(live_is_done(c, number));
    for (int i = 0; i < 3; i++) { /* so do those of small blocks, whichever thread */
        number = live_ask(c, DO_PUBLISH, "", 0);
        for (int k = 0; k < 5000; k++) CHECK(*(void *volatile *)&(void *){malloc(100)});
        CHECK(live_is_done(c, number));
    }
}

static void answers_while_it_sleeps(void)
{
    struct live_command *c = live_command(getpid());
    struct live l;
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    for (int ms = 0; !l.head->thread && ms < 10000; ms++) sleep_ms(1);
    CHECK(l.head->thread == 1);
    for (int i = 0; i < 200; i++) {
        uint64_t number = live_ask(c, i % 10 ? DO_PUBLISH : DO_TRIM, "", 0);
        for (int ms = 0; !live_is_done(c, number) && ms < 100000; ms++) nanosleep(&(struct timespec){0, 100000}, NULL);
        CHECK(live_is_done(c, number), "command %d", i);
    }
    pid_t pid = fork(); /* a child has a thread of its own, that answers */
    if (pid == 0) {
        CHECK(live_open(&l, getpid(), "hakmem-stats") && l.head->pid == (uint32_t)getpid());
        c = live_command(getpid());
        uint64_t number = live_ask(c, DO_PUBLISH, "", 0);
        for (int ms = 0; !live_is_done(c, number) && ms < 10000; ms++) sleep_ms(1);
        CHECK(live_is_done(c, number) && l.head->thread == 1);
        _exit(0);
    }
    CHECK(wait_for(pid) == 0);
}

/* ---- children */

static void a_childs_page_is_its_own(void)
{
    struct live l, mine;
    struct live_command *c = live_command(getpid());
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    obey(c, DO_DETAIL, "", 0);
    uint64_t number = live_ask(c, DO_PUBLISH, "", 0); /* a child must not take it */
    uint64_t published = l.head->published;
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(live_find(getpid(), "hakmem-stats") < 0 && live_find(getpid(), "hakmem-command") < 0);
        CHECK(live_find(getpid(), "hakmem-detail") < 0);
        CHECK(access("/proc/self/fd", R_OK) == 0);
        for (int i = 0; i < 20; i++) slow_path();
        CHECK(live_open(&mine, getpid(), "hakmem-stats") && mine.head->pid == (uint32_t)getpid());
        CHECK(mine.head->published > 0 && mine.head != l.head);
        c = live_command(getpid());
        obey(c, DO_TRIM, "", 0);
        CHECK(l.head->published == published, "it wrote to its parent's");
        pid = fork();
        if (pid == 0) {
            for (int i = 0; i < 20; i++) slow_path();
            CHECK(live_open(&l, getpid(), "hakmem-stats") && l.head->pid == (uint32_t)getpid());
            _exit(0);
        }
        _exit(wait_for(pid) != 0);
    }
    CHECK(wait_for(pid) == 0);
    CHECK(!live_is_done(c, number));
    slow_path();
    CHECK(live_is_done(c, number));
    CHECK(live_find(getpid(), "hakmem-detail") >= 0);
}

static void a_child_without_forks_handlers(void)
{
    struct live l, mine;
    struct live_command *c = live_command(getpid());
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    slow_path();
    uint64_t number = live_ask(c, DO_PUBLISH, "", 0), published = l.head->published;
    for (int i = 0; i < 3; i++) { /* also where it gets no files of its own */
        pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
        if (pid == 0) {
            if (i == 1) CHECK(setrlimit(RLIMIT_FSIZE, &(struct rlimit){0, 0}) == 0);
            if (i == 2) CHECK(setrlimit(RLIMIT_NOFILE, &(struct rlimit){3, 3}) == 0);
            for (int k = 0; k < 100; k++) slow_path();
            if (i) setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
            if (i == 0) CHECK(live_open(&mine, (pid_t)syscall(SYS_getpid), "hakmem-stats") && mine.head->published > 0);
            if (i == 0) CHECK(mine.head->pid == (uint32_t)syscall(SYS_getpid));
            if (i == 1) CHECK(live_find((pid_t)syscall(SYS_getpid), "hakmem-stats") < 0);
            _exit(0);
        }
        CHECK(wait_for(pid) == 0, "%d", i);
        CHECK(c->look == 1 && !live_is_done(c, number) && l.head->published == published);
    }
    slow_path();
    CHECK(live_is_done(c, number));
}

static int in_parents_memory(void *argument)
{
    for (int i = 0; i < 100; i++) slow_path();
    return argument != NULL;
}

static void a_child_in_its_parents_memory(void)
{
    static _Alignas(16) char stack[256 * 1024];
    struct live_command *c = live_command(getpid());
    int number = live_find(getpid(), "hakmem-stats");
    for (int i = 0; i < 3; i++) {
        live_ask(c, DO_PUBLISH, "", 0);
        pid_t pid = clone(in_parents_memory, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
        CHECK(wait_for(pid) == 0);
    }
    sleep_ms(20);
    for (int i = 0; i < 40; i++) slow_path();
    CHECK(live_find(getpid(), "hakmem-stats") == number && number > 0);
    obey(c, DO_PUBLISH, "", 0);
    CHECK(files() == 2, "%d", files());
}

static void has_none(void)
{
    for (int i = 0; i < 100; i++) slow_path();
    errno = 0;
    CHECK(live_find(getpid(), "hakmem-stats") < 0 && live_find(getpid(), "hakmem-command") < 0);
}

static void gone_after_exec(void)
{
    CHECK(live_find(getpid(), "hakmem-stats") >= 0);
    setenv("HAKMEM_STATS_PAGE", "0", 1);
    execl("/proc/self/exe", "live_cases", "has_none", (char *)NULL);
    fail("exec", __LINE__, "errno %d", errno);
}

static void without_the_system_call(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), /* the number of the call */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT_OF(filter), filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) _exit(77);
    execl("/proc/self/exe", "live_cases", "has_none", (char *)NULL);
    fail("exec", __LINE__, "errno %d", errno);
}

/* ---- programs that close what they do not know */

static void a_daemon(void)
{
    enum { MOST = 300 };
    struct live_command *c = live_command(getpid());
    ino_t own[MOST];
    struct stat about_it;
    char name[32];
    for (int fd = 3; fd < 1024; fd++) close(fd);
    for (int fd = 3; fd < MOST; fd++) {
        snprintf(name, sizeof name, "own-%d", fd);
        int got = (int)syscall(SYS_memfd_create, name, 0);
        CHECK(got == fd && fstat(fd, &about_it) == 0, "%d, not %d", got, fd);
        own[fd] = about_it.st_ino;
    }
    obey(c, DO_DETAIL, "", 0);
    CHECK(c->status == 0);
    obey(c, DO_RELEASE, "", 0);
    obey(c, DO_TRIM, "", 0);
    sleep_ms(20);
    for (int i = 0; i < 40; i++) slow_path();
    pid_t pid = fork();
    if (pid == 0) { /* it can be seen again */
        for (int i = 0; i < 20; i++) slow_path();
        CHECK(live_find(getpid(), "hakmem-stats") >= MOST);
    }
    for (int fd = 3; fd < MOST; fd++) CHECK(fstat(fd, &about_it) == 0 && about_it.st_ino == own[fd], "%d", fd);
    if (pid == 0) _exit(0);
    CHECK(wait_for(pid) == 0);
}

/* ---- a reader that means no good */

static atomic_int stop;

static void *churn(void *argument)
{
    void *p[300];
    while (!atomic_load(&stop)) {
        for (size_t i = 0; i < COUNT_OF(p); i++) CHECK((p[i] = malloc(i * 10)));
        for (size_t i = 0; i < COUNT_OF(p); i++) free(p[i]);
        slow_path();
    }
    return argument;
}

static void rubbish(void)
{
    pid_t parent = getpid();
    pthread_t thread[3];
    size_t size;
    char path[64];
    for (size_t i = 0; i < COUNT_OF(thread); i++) CHECK(pthread_create(&thread[i], NULL, churn, NULL) == 0);
    /* whoever reads the statistics cannot write them, nor make a file shorter under us */
    snprintf(path, sizeof path, "/proc/self/fd/%d", live_find(parent, "hakmem-stats"));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && write(fd, "x", 1) == -1 && errno == EPERM && ftruncate(fd, 0) == -1 && errno == EPERM);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
    snprintf(path, sizeof path, "/proc/self/fd/%d", live_find(parent, "hakmem-command"));
    fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 0) == -1 && errno == EPERM);
    pid_t pid = fork();
    if (pid == 0) {
        unsigned char *c = live_map(parent, "hakmem-command", &size, 1);
        uint64_t seed = 7;
        CHECK(c);
        for (int i = 0; i < 300; i++) {
            for (size_t k = 0; k < size; k += 4) {
                uint32_t word = (uint32_t)next_random(&seed);
                if (k == offsetof(struct live_command, what)) word %= 7;
                memcpy(c + k, &word, sizeof word);
            }
            sleep_ms(1);
        }
        _exit(0);
    }
    CHECK(wait_for(pid) == 0);
    struct live l;
    struct live_command *c = live_map(parent, "hakmem-command", &size, 1);
    CHECK(c && live_open(&l, parent, "hakmem-stats"));
    live_whole(&l);
    uint64_t number = live_ask(c, DO_PUBLISH, "", 0); /* which sets the numbers right, if they were rubbish */
    for (int ms = 0; !live_is_done(c, number) && c->taken != (number | 1ull << 63) && ms < 20000; ms++) sleep_ms(1);
    number = live_ask(c, DO_PUBLISH, "", 0);
    for (int ms = 0; !live_is_done(c, number) && ms < 20000; ms++) sleep_ms(1);
    CHECK(live_is_done(c, number) && c->status == 0);
    atomic_store(&stop, 1);
    for (size_t i = 0; i < COUNT_OF(thread); i++) pthread_join(thread[i], NULL);
}

/* ---- threads with little room, errno, signals */

static void *everything(void *argument)
{
    struct live_command *c = live_command(getpid());
    errno = 0;
    obey(c, DO_PUBLISH, "", 0);
    obey(c, DO_DETAIL, "", 0);
    obey(c, DO_RELEASE, "", 0);
    obey(c, DO_SET, "purge_ms", 100);
    obey(c, DO_TRIM, "", 0);
    CHECK(raise(SIGUSR2) == 0); /* a report */
    slow_path();
    return argument;
}

static void small_stacks(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, (size_t)sysconf(_SC_THREAD_STACK_MIN)) == 0);
    for (int i = 0; i < 3; i++) {
        CHECK(pthread_create(&thread, &attributes, everything, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
}

static void errno_stays(void)
{
    struct live_command *c = live_command(getpid());
    static const uint32_t all[] = {DO_PUBLISH, DO_DETAIL, DO_RELEASE, DO_TRIM, DO_SET, 77};
    CHECK(setrlimit(RLIMIT_FSIZE, &(struct rlimit){0, RLIM_INFINITY}) == 0); /* no file for details */
    for (size_t i = 0; i < 2 * COUNT_OF(all); i++) {
        void *p = malloc(3 * MIB), *q = malloc(100);
        CHECK(p && q);
        uint64_t number = live_ask(c, all[i % COUNT_OF(all)], "purge_ms", 1);
        errno = 4321;
        free(p);
        CHECK(errno == 4321 && live_is_done(c, number));
        free(q);
        if (all[i % COUNT_OF(all)] == DO_DETAIL) CHECK(c->status == (i < COUNT_OF(all) ? (uint32_t)code_of("NOMEM") : 0));
        if (i == COUNT_OF(all) - 1) setrlimit(RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY});
    }
}

static volatile sig_atomic_t handled;
static void own_handler(int number)
{
    handled = number;
}

static void report_on_a_signal(void)
{
    struct sigaction now;
    CHECK(sigaction(SIGUSR2, NULL, &now) == 0 && now.sa_handler != SIG_DFL);
    for (int i = 0; i < 2; i++) {
        raise(SIGUSR2);
        dprintf(2, "signal\n");
        slow_path();
        slow_path();
        pid_t pid = fork();
        if (pid == 0) {
            slow_path();
            _exit(0);
        }
        CHECK(wait_for(pid) == 0);
    }
}

static void report_with_an_own_handler(void)
{
    CHECK(signal(SIGUSR2, own_handler) != SIG_ERR);
    raise(SIGUSR2);
    for (int i = 0; i < 100; i++) slow_path();
    CHECK(handled == SIGUSR2);
    signal(SIGUSR2, SIG_IGN);
    setenv("AGAIN", "1", 1);
    execl("/proc/self/exe", "live_cases", "report_to_who_ignores_it", (char *)NULL);
}

static void report_to_who_ignores_it(void)
{
    struct sigaction now;
    CHECK(sigaction(SIGUSR2, NULL, &now) == 0);
    if (getenv("AGAIN")) CHECK(now.sa_handler == SIG_IGN);
    raise(SIGUSR2);
    for (int i = 0; i < 100; i++) slow_path();
}

/* ---- the end */

static atomic_int end_in_madvise;
int madvise(void *p, size_t n, int advice)
{
    if (advice == MADV_DONTNEED && atomic_exchange(&end_in_madvise, 0)) exit(3);
    return (int)syscall(SYS_madvise, p, n, advice);
}

static void ends_in_the_middle(void) /* of a purge of partly used slabs, under the claim of this thread's heap */
{
    enum { COUNT = 20000 };
    void **p = malloc(COUNT * sizeof *p);
    for (int i = 0; i < COUNT; i++) CHECK((p[i] = calloc(1, 500)));
    for (int i = 0; i < COUNT; i++)
        if (i % 100) free(p[i]);
    atomic_store(&end_in_madvise, 1);
    malloc_trim(0);
    fail("exit", __LINE__, "nothing was purged");
}

static void ends_with_children(void)
{
    int status = 0;
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        if (pid == 0) exit(0);
        status |= wait_for(pid);
    }
    CHECK(status == 0);
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    CHECK(wait_for(pid) == 0);
}

static void ends_while_others_publish(void)
{
    pthread_t thread[3];
    for (size_t i = 0; i < COUNT_OF(thread); i++) CHECK(pthread_create(&thread[i], NULL, churn, NULL) == 0);
    sleep_ms(20);
    exit(0);
}

static void ends_after_its_reader(void) /* standard error is a pipe that nobody reads any more */
{
    char c;
    CHECK(read(0, &c, 1) == 0);
    struct sigaction now;
    CHECK(sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
}

static void loaded_late(void)
{
    void *(*allocate)(size_t);
    CHECK(live_find(getpid(), "hakmem-stats") < 0);
    void *library = dlopen(getenv("LATE"), RTLD_NOW | RTLD_LOCAL);
    CHECK(library, "%s", dlerror());
    *(void **)&allocate = dlsym(library, "hak_malloc");
    struct live l;
    CHECK(live_open(&l, getpid(), "hakmem-stats"));
    live_whole(&l);
    uint64_t number = live_ask(live_command(getpid()), DO_PUBLISH, "", 0);
    CHECK(allocate(3 * MIB) && live_is_done(live_command(getpid()), number));
}

static const struct test_case CASES[] = {
    CASE(description), CASE(rows), CASE(long_texts), CASE(more_heaps_than_rows), CASE(commands), CASE(no_memory_for_details), CASE(no_memory_for_the_page),
    CASE(texts_of_rules_that_come_and_go), CASE(what_rises_never_falls), CASE(obeys_in_the_next_slow_path), CASE(answers_while_it_sleeps),
    CASE(a_childs_page_is_its_own), CASE(a_child_without_forks_handlers), CASE(a_child_in_its_parents_memory),
    CASE(has_none), CASE(gone_after_exec), CASE(without_the_system_call), CASE(a_daemon), CASE(rubbish),
    CASE(small_stacks), CASE(errno_stays), CASE(report_on_a_signal), CASE(report_with_an_own_handler),
    CASE(report_to_who_ignores_it), CASE(ends_in_the_middle), CASE(ends_with_children), CASE(ends_while_others_publish),
    CASE(ends_after_its_reader), CASE(loaded_late),
};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
