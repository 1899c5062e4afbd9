/* The forms that return a code instead of ending the process, and that everything works on after a fault. */
#include "common.h"

enum { OK, FOREIGN, INTERIOR, ALREADY_FREE, NOMEM, OVERRUN = 11 };

int main(void)
{
    int (*free_checked)(void *), (*realloc_checked)(void *, size_t, void **), (*usable_checked)(const void *, size_t *);
    const char *(*error_text)(int);
    *(void **)&free_checked = hak("hak_free_checked");
    *(void **)&realloc_checked = hak("hak_realloc_checked");
    *(void **)&usable_checked = hak("hak_usable_size_checked");
    *(void **)&error_text = hak("hak_error_text");

    static _Alignas(16) char there[64];
    static const size_t sizes[] = {8, 64, 1000, 4096, 20000, 100000, 300000, MIB, 3 * MIB, 100 * MIB};
    for (int code = 0; code <= 8; code++) CHECK(error_text(code) && *error_text(code), "code %d", code);
    CHECK(error_text(99) && error_text(-1), "an unknown code has a text too");
    CHECK(free_checked(NULL) == OK);

    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t n = sizes[i], usable = 0;
        void *foreign[] = {there, &n, (void *)16, (void *)-16, (void *)0x8000000000000010};
        for (size_t f = 0; f < COUNT_OF(foreign); f++) {
            void *out = there;
            CHECK(free_checked(foreign[f]) == FOREIGN, "foreign %zu", f);
            CHECK(usable_checked(foreign[f], &usable) == FOREIGN, "foreign %zu", f);
            CHECK(realloc_checked(foreign[f], 100, &out) == FOREIGN, "foreign %zu", f);
        }
        char *p = malloc(n), *neighbour = malloc(n);
        pattern_write(p, n, 3);
        pattern_write(neighbour, n, 4);
        int code = free_checked(p + n / 2);
        CHECK(code == INTERIOR, "%zu: code %d", n, code);
        code = usable_checked(p, &usable);
        CHECK(code == OK && usable >= n, "%zu: code %d, %zu", n, code, usable);
        code = usable_checked(p + n / 2, &usable);
        CHECK(code == INTERIOR, "%zu: code %d", n, code);
        void *out = NULL;
        code = realloc_checked(p, (size_t)PTRDIFF_MAX + 1, &out);
        CHECK(code == NOMEM, "%zu: code %d", n, code);
        CHECK(pattern_wrong(p, n, 3, n) == SIZE_MAX, "%zu", n);
        code = realloc_checked(p, n + n / 2, &out);
        CHECK(code == OK && out && pattern_wrong(out, n, 3, n) == SIZE_MAX, "%zu: code %d", n, code);
        p = out;
        CHECK(free_checked(p) == OK, "%zu", n);
        code = free_checked(p);
        CHECK(code == ALREADY_FREE || (n >= MIB && code == FOREIGN), "%zu: code %d", n, code);
        code = usable_checked(p, &usable);
        CHECK(code == ALREADY_FREE || (n >= MIB && code == FOREIGN), "%zu: code %d", n, code);
        CHECK(pattern_wrong(neighbour, n, 4, n) == SIZE_MAX, "%zu", n);
        CHECK(free_checked(neighbour) == OK, "%zu", n);
    }
    for (size_t i = 0; i < COUNT_OF(sizes) && strcmp(about()->variant, "hardened") == 0; i++) {
        unsigned char *p = malloc(sizes[i]);
        size_t usable;
        void *out = NULL;
        p[sizes[i]] ^= 1;
        CHECK(free_checked(p) == OVERRUN && usable_checked(p, &usable) == OVERRUN, "%zu", sizes[i]);
        CHECK(realloc_checked(p, 10, &out) == OVERRUN && realloc_checked(p, 4 * MIB, &out) == OVERRUN, "%zu", sizes[i]);
        p[sizes[i]] ^= 1;
        CHECK(free_checked(p) == OK, "%zu", sizes[i]);
    }
    CHECK(malloc_usable_size(NULL) == 0);
    check_laws();
    for (int i = 0; i < 100000; i++) free(malloc((size_t)i));
    malloc_trim(0);
    check_laws();
    return 0;
}
