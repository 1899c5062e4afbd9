/* "name env type when default min max value" a line for each option of hakmem, and what setting does. */
#include "common.h"

static struct rows options;
static int (*get)(const char *, int64_t *);
static int (*set)(const char *, int64_t);

static void load(void)
{
    const void *(*table)(int *);
    *(void **)&table = hak("hak_option_table");
    *(void **)&get = hak("hak_option_get");
    *(void **)&set = hak("hak_option_set");
    options.row_size = record("option")->size;
    const void *rows = table(&options.count);
    CHECK(options.count > 0 && (size_t)options.count * options.row_size <= sizeof options.bytes, "%d", options.count);
    memcpy(options.bytes, rows, (size_t)options.count * options.row_size);
}

static void show(void)
{
    load();
    for (int i = 0; i < options.count; i++) {
        const void *r = row(&options, i);
        const char *name = text_field("option", r, "name");
        int64_t value = 0;
        CHECK(get(name, &value) == 0, "%s", name);
        printf("%s %s %s %s %lld %lld %lld %lld\n", name, text_field("option", r, "env"), text_field("option", r, "type"),
               text_field("option", r, "when"), (long long)field("option", r, "initial"),
               (long long)field("option", r, "least"), (long long)field("option", r, "most"), (long long)value);
    }
}

static void set_and_get(void)
{
    load();
    int64_t value;
    CHECK(get("no_such_option", &value) == 5);
    CHECK(set("no_such_option", 0) == 5);
    for (int i = 0; i < options.count; i++) {
        const void *r = row(&options, i);
        const char *name = text_field("option", r, "name");
        int64_t low = (int64_t)field("option", r, "least"), high = (int64_t)field("option", r, "most");
        int64_t before, after;
        CHECK(low <= high, "%s", name);
        CHECK(get(name, &before) == 0, "%s", name);
        CHECK(before >= low && before <= high, "%s is %lld", name, (long long)before);
        if (strcmp(text_field("option", r, "when"), "start") == 0) {
            CHECK(set(name, before == low ? high : low) == 7, "%s", name);
        } else {
            if (low > INT64_MIN) CHECK(set(name, low - 1) == 6, "%s", name);
            if (high < INT64_MAX) CHECK(set(name, high + 1) == 6, "%s", name);
            CHECK(get(name, &after) == 0 && after == before, "%s", name);
            CHECK(set(name, low) == 0 && get(name, &after) == 0 && after == low, "%s", name);
            free(malloc(100));
            CHECK(set(name, high) == 0 && get(name, &after) == 0 && after == high, "%s", name);
            free(malloc(100));
            CHECK(set(name, before) == 0, "%s", name);
            continue;
        }
        CHECK(get(name, &after) == 0 && after == before, "%s", name);
    }
}

static const struct test_case CASES[] = {CASE(show), CASE(set_and_get)};

int main(int argc, char **argv)
{
    return run_case(argc, argv, CASES, COUNT_OF(CASES));
}
