/* For fuzzers: what hakmem makes of texts for options, of variables of the environment and of names that were meant
 * for others. Holds _hakmem_backend.c itself, whose calls of write come here. For libFuzzer with -DFUZZ_LIBFUZZER=1,
 * else with a main of its own: fuzz_options SEED COUNT. Compiled with -Dwrite=fuzz_write -DHAK_NO_OVERRIDE=1. */
#include "../../_hakmem_backend.c"

static struct {
    char text[4096];
    size_t length;
} said;

ssize_t write(int fd, const void *text, size_t n) /* hakmem's; see above */
{
    if (fd != STDERR_FILENO || said.length + n > sizeof said.text) __builtin_trap();
    memcpy(said.text + said.length, text, n);
    said.length += n;
    return (ssize_t)n;
}

static __attribute__((noreturn)) void failed(const char *what, int line)
{
    fprintf(stderr, "fuzz_options.c:%d: %s\n", line, what);
    abort();
}
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) failed(#condition, __LINE__);                                                                \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *, size_t);

static void check_one_line(const char *begins)
{
    CHECK(said.length > 0 && said.length < 400);
    CHECK(strncmp(said.text, begins, strlen(begins)) == 0);
    for (size_t i = 0; i + 1 < said.length; i++) CHECK(said.text[i] >= ' ' && said.text[i] <= '~');
    CHECK(said.text[said.length - 1] == '\n');
}

static void check_untouched(const hak_options_t *before, int but)
{
    for (int i = 0; i < HAK_OPTION_COUNT; i++) {
        const char *at = (const char *)before + ((char *)hak_option_place(i) - (char *)&hak_option);
        CHECK(i == but || *hak_option_place(i) == *(const int64_t *)(const void *)at);
    }
}

/* A name and its "=" in front of the text, as one string that ends where its memory ends. */
static char *join(const char *name, const char *middle, const char *text)
{
    size_t n = strlen(name) + strlen(middle) + strlen(text) + 1;
    char *all = malloc(n);
    CHECK(all);
    snprintf(all, n, "%s%s%s", name, middle, text);
    return all;
}

static void fuzz_option(int k, const char *text)
{
    const hak_option_row_t *row = &hak_option_all()[k];
    hak_options_t before = hak_option;
    int64_t value = -77, again;
    char number[32], begins[64];
    int code = hak_option_parse(row->name, text, &value);

    CHECK(code == HAK_ERR_OK || code == HAK_ERR_TEXT || code == HAK_ERR_RANGE);
    CHECK(code != HAK_ERR_OK || (value >= row->least && value <= row->most));
    CHECK(code != HAK_ERR_RANGE || value < row->least || value > row->most);
    CHECK(said.length == 0);
    if (code == HAK_ERR_OK && row->type[0] == 't') CHECK(value == (int64_t)strlen(text));
    else if (code == HAK_ERR_OK) {
        snprintf(number, sizeof number, "%lld", (long long)value);
        CHECK(hak_option_parse(row->name, number, &again) == HAK_ERR_OK && again == value);
    }
    *hak_option_place(k) = row->most;
    char *variable = join(row->env, "=", text);
    hak_option_read(variable);
    free(variable);
    CHECK(*hak_option_place(k) == (code == HAK_ERR_OK ? value : row->initial));
    check_untouched(&before, k);
    snprintf(begins, sizeof begins, "hakmem: %s=", row->env);
    if (code == HAK_ERR_OK) CHECK(said.length == 0);
    else check_one_line(begins);
    hak_option = before;
}

static void fuzz_variable(const char *text)
{
    hak_options_t before = hak_option;
    char *variable = join(HAK_ENV_PREFIX, "", text);
    const char *equals = strchr(variable, '=');
    int known = -1;

    for (int i = 0; equals && i < HAK_OPTION_COUNT; i++)
        if (strlen(hak_option_all()[i].env) == (size_t)(equals - variable)
            && memcmp(hak_option_all()[i].env, variable, (size_t)(equals - variable)) == 0)
            known = i;
    hak_option_read(variable);
    check_untouched(&before, known);
    if (!equals || strncmp(variable, "HAKMEM_LIBRARY=", 15) == 0) CHECK(said.length == 0);
    else if (known < 0 || said.length) check_one_line("hakmem: HAKMEM_");
    free(variable);
    hak_option = before;
}

/* The same distance by the whole matrix. */
static unsigned distance(const char *a, const char *b)
{
    enum { MOST = 300 };
    static unsigned d[MOST + 1][64];
    size_t n = strlen(a), m = strlen(b);
    CHECK(n <= MOST && m < 64);
    for (size_t i = 0; i <= n; i++)
        for (size_t j = 0; j <= m; j++) {
            unsigned best = i == 0 ? (unsigned)j : j == 0 ? (unsigned)i : d[i - 1][j - 1] + ((a[i - 1] | 32) != (b[j - 1] | 32));
            if (i && d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (j && d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

static void fuzz_distance(int k, const char *text)
{
    char *a = join("", "", text), *b = join(text, "", text);
    if (strlen(a) > 300) a[300] = '\0';
    CHECK(hak_option_distance(a, hak_option_all()[k].env) == distance(a, hak_option_all()[k].env));
    if (strlen(b) < 64) CHECK(hak_option_distance(hak_option_all()[k].env, b) == distance(hak_option_all()[k].env, b));
    else CHECK(hak_option_distance(hak_option_all()[k].env, b) == UINT_MAX);
    free(a);
    free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    hak_boot_init();
    char *text = malloc(size - 1);
    CHECK(text);
    memcpy(text, data + 2, size - 2);
    text[size - 2] = '\0';
    said.length = 0;
    int k = data[1] % HAK_OPTION_COUNT;
    switch (data[0] % 4) {
    case 0: fuzz_option(k, text); break;
    case 1: fuzz_variable(text); break;
    case 2: { /* next to the right name */
        char *near = join(hak_option_all()[k].env + sizeof HAK_ENV_PREFIX - 1, text, "=1");
        fuzz_variable(near);
        free(near);
        break;
    }
    default: fuzz_distance(k, text);
    }
    memset(hak_option_texts, 0, sizeof hak_option_texts); /* the environment that they stand in is gone */
    free(text);
    return 0;
}

#ifndef FUZZ_LIBFUZZER
static uint64_t random_state;

static unsigned next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(random_state >> 33);
}

int main(int argc, char **argv)
{
    static const char *const pieces[] = {"0", "1", "9", "00", "24", "1099511627776", "9223372036854775807",
        "9223372036854775808", "-", "+", " ", "\n", "\t", "k", "M", "g", "T", "i", "B", "ib", "on", "OFF", "yes", "True",
        "e", ".", "x", "=", "RETAIN", "PURGE_MS", "LIBRARY", "\033[2J", "\x9b", "\xff", "\r", "hakmem: free(0x1): "};
    CHECK(argc == 3);
    uint64_t seed = strtoull(argv[1], NULL, 10), count = strtoull(argv[2], NULL, 10);
    uint8_t data[2048];
    for (uint64_t i = seed; i < seed + count; i++) {
        size_t n = 2, parts;
        random_state = i * 0x9e3779b97f4a7c15u;
        next_random();
        data[0] = (uint8_t)next_random();
        data[1] = (uint8_t)next_random();
        parts = next_random() % 50 ? next_random() % 6 : next_random() % 150;
        for (size_t k = 0; k < parts; k++) {
            const char *piece = pieces[next_random() % (sizeof pieces / sizeof *pieces)];
            if (next_random() % 8 == 0) data[n++] = (uint8_t)next_random();
            memcpy(data + n, piece, strlen(piece));
            n += strlen(piece);
            if (n > sizeof data - 64) break;
        }
        unsigned flip = next_random();
        if (flip % 4 == 0) data[2 + flip / 4 % (n - 1)] ^= (uint8_t)(1u << next_random() % 8);
        LLVMFuzzerTestOneInput(data, n);
    }
    printf("%llu inputs\n", (unsigned long long)count);
    return 0;
}
#endif
