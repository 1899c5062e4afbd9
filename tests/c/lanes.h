/* For the stress programs, each with a CHECK of its own: threads that follow one another, and a pause. */
#ifndef TESTS_LANES_H
#define TESTS_LANES_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* A thread's function.  argument: how many threads to start, one when the last has ended, times 256, and which of the
 * `lanes` that go on side by side this is; each thread gets a number of its own. */
static void *one_after_another(void *argument, void *(*work)(void *), size_t lanes)
{
    size_t rounds = (uintptr_t)argument >> 8, me = (uintptr_t)argument & 255;
    for (size_t round = 0; round < rounds; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, work, (void *)(me + round * lanes)) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    return NULL;
}

static void pause_ms(long ms)
{
    struct timespec t = {0, ms * 1000000};
    nanosleep(&t, NULL);
}

#endif
