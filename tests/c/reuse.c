/* Prints how freed blocks come back: how often malloc returns the block that was freed just before, of 1,000 times, and
 * in which order blocks come that were freed by this thread, and by another. */
#include "common.h"

enum { ROUNDS = 1000, BLOCKS = 24, LOOKED = 2000 };

static void *block[BLOCKS];

static void make(size_t n)
{
    for (int i = 0; i < BLOCKS; i++) block[i] = malloc(n);
}

static void *free_all(void *unused)
{
    for (int i = 0; i < BLOCKS; i++) free(block[i]);
    return unused;
}

static void print_order(const char *whose, size_t n)
{
    printf("%s", whose);
    for (int i = 0; i < LOOKED; i++) {
        void *p = malloc(n); /* kept, so that each comes once */
        for (int k = 0; k < BLOCKS; k++)
            if (block[k] == p) printf(" %d", k);
    }
    printf("\n");
}

int main(void)
{
    pthread_t thread;
    int same = 0;
    make(100);
    free_all(NULL);
    for (int i = 0; i < ROUNDS; i++) {
        void *p = malloc(100), *q;
        uintptr_t was = (uintptr_t)p;
        free(p);
        q = malloc(100);
        same += (uintptr_t)q == was;
        free(q);
    }
    printf("same %d\n", same);
    make(200);
    free_all(NULL);
    print_order("own", 200);
    make(300);
    CHECK(pthread_create(&thread, NULL, free_all, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    print_order("other", 300);
    return 0;
}
