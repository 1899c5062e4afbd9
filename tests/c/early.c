/* A library to be preloaded with hakmem, before or after it: uses the allocator in its constructor, which may run
 * before the allocator's own, and again in its destructor, which may run after. */
#include "common.h"

static void *kept[20];
static pthread_key_t key;

static void *in_thread(void *argument)
{
    void *p = malloc(3000);
    memset(p, 1, 3000);
    pthread_setspecific(key, p);
    return argument;
}

__attribute__((constructor)) static void first(void)
{
    for (size_t i = 0; i < COUNT_OF(kept); i++) {
        size_t n = (size_t)1 << i;
        void *p = calloc(1, n);
        CHECK(p && is_zero(p, n), "calloc of %zu before main", n);
        memset(p, 0xff, n);
        free(p);
        p = calloc(n, 1);
        CHECK(p && is_zero(p, n), "calloc of %zu before main", n);
        kept[i] = realloc(p, n * 2);
        CHECK(kept[i] && is_zero(kept[i], n), "realloc of %zu before main", n);
    }
    free(NULL);
    pthread_t thread;
    CHECK(pthread_key_create(&key, free) == 0);
    CHECK(pthread_create(&thread, NULL, in_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    dlsym(RTLD_NEXT, "no_such_function"); /* its error message is allocated */
    dlerror();
}

__attribute__((destructor)) static void last(void)
{
    for (size_t i = 0; i < COUNT_OF(kept); i++) {
        CHECK(is_zero(kept[i], (size_t)1 << i), "block %zu was overwritten", i);
        free(kept[i]);
    }
    free(calloc(1, 100000));
}
