/* What the fault programs share.  Each commits one misuse.  Before it names() writes what the message must name: the
 * pointer, the thread that freed it, and how far into its block the pointer is.  After it lived() says that the
 * process has outlived the misuse itself; what finds it later comes after that. */
#ifndef TESTS_FAULT_H
#define TESTS_FAULT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define UNIT (64 * KIB)
#define HELPER static inline __attribute__((unused))

HELPER int thread_id(void)
{
    return (int)syscall(SYS_gettid);
}

/* The same pointer, of which the compiler knows nothing. */
HELPER char *hidden(const void *p)
{
    char *q = (char *)(uintptr_t)p;
    __asm__ volatile("" : "+r"(q) : : "memory");
    return q;
}

/* A size, or another number, from the command line: 64, 2M, 0x10. */
HELPER size_t number(const char *text)
{
    char *end;
    size_t n = strtoull(text, &end, 0);
    return *end == 'M' ? n * MIB : n;
}

HELPER void names_freed(const void *p, const void *base, int thread)
{
    dprintf(1, "0x%llx %d %zu\n", (unsigned long long)(uintptr_t)p, thread, (size_t)((uintptr_t)p - (uintptr_t)base));
}

HELPER void names_inside(const void *p, const void *base)
{
    names_freed(p, base, thread_id());
}

HELPER void names(const void *p)
{
    names_inside(p, p);
}

HELPER void lived(void)
{
    dprintf(1, "lived\n");
}

/* What the program needs to get to its misuse has failed. */
HELPER void need(int condition, const char *what)
{
    if (condition) return;
    dprintf(2, "no %s, errno %d\n", what, errno);
    _exit(3);
}

HELPER char *block(size_t n)
{
    char *p = hidden(malloc(n));
    need(p != NULL, "block");
    return p;
}

HELPER void let_go(const void *p)
{
    free(hidden(p));
}

HELPER char *regrow(const void *p, size_t n)
{
    return hidden(realloc(hidden(p), n));
}

/* Writes another byte than the one that is there. */
HELPER void flip(const void *p)
{
    volatile unsigned char *at = (volatile unsigned char *)hidden(p);
    *at = (unsigned char)~*at;
}

HELPER void run_in_thread(void *(*run)(void *), const void *p)
{
    pthread_t thread;
    need(pthread_create(&thread, NULL, run, hidden(p)) == 0, "thread");
    need(pthread_join(thread, NULL) == 0, "end of the thread");
}

static int freeing_thread;

HELPER void *free_here(void *p)
{
    freeing_thread = thread_id();
    let_go(p);
    return NULL;
}

/* Freed by a thread that ends then, which posts what it has freed. */
HELPER void free_in_thread(const void *p)
{
    run_in_thread(free_here, p);
}

/* Takes and frees blocks of the size until whatever stood in this thread's stack has gone back to its slab. */
HELPER void flush(size_t n)
{
    static void *p[4000];
    size_t count = n <= KIB ? 4000 : n <= 32 * KIB ? 400 : 8;
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < count; i++) p[i] = malloc(n);
        for (size_t i = 0; i < count; i++) free(p[i]);
    }
    malloc_trim(0);
}

/* Takes blocks of the size, and keeps them, until p is among them. */
HELPER void take_until(const void *p, size_t n)
{
    for (int i = 0; i < 200000; i++)
        if (block(n) == p) return;
    need(0, "block there again");
}

/* Two live blocks of n bytes that lie next to each other; the lower one.  *next: the higher. */
HELPER char *neighbours(size_t n, char **next)
{
    static char *p[400];
    size_t room = 0;
    for (int i = 0; i < 400; i++) p[i] = block(n);
    for (int i = 0; i < 400; i++)
        for (int k = 0; k < 400; k++)
            if (p[k] > p[i] && (!room || (size_t)(p[k] - p[i]) < room)) room = (size_t)(p[k] - p[i]);
    for (int i = 0; i < 400; i++)
        for (int k = 0; k < 400; k++)
            if (p[k] - p[i] == (ptrdiff_t)room) return *next = p[k], p[i];
    need(0, "neighbours");
    return NULL;
}

#endif
