/* Reads the stats page of another process: arguments its number, how many whole readings, and most seconds. Prints how
 * many were whole, how many were begun anew as somebody wrote, the publications seen, and the torn. It goes on until it
 * has seen some, but not for ever. */
#include "live.h"

int main(int argc, char **argv)
{
    struct live l;
    struct timespec begin, now;
    uint64_t whole = 0, again = 0, torn = 0, seen = 0, last = 0, published;
    CHECK(argc == 4);
    CHECK(live_open(&l, atoi(argv[1]), "hakmem-stats"), "no stats page");
    uint64_t most = strtoull(argv[2], NULL, 10);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (now = begin; whole < most; clock_gettime(CLOCK_MONOTONIC, &now)) {
        if (now.tv_sec - begin.tv_sec >= (seen < 3 ? 60 : atoi(argv[3]))) break;
        int got = live_read(&l, &published);
        if (got == 1) {
            CHECK(published >= last, "%llu after %llu", (unsigned long long)published, (unsigned long long)last);
            seen += published != last;
            last = published;
        }
        whole += got == 1;
        again += got == 0;
        torn += got < 0;
    }
    printf("%llu %llu %llu %llu %.6f %llu\n", (unsigned long long)whole, (unsigned long long)again,
           (unsigned long long)seen, (unsigned long long)torn, 1e-9 * (double)l.head->cost_ns, (unsigned long long)l.head->published);
    return 0;
}
