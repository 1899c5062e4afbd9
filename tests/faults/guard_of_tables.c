/* A write beside the tables that free believes: into the guard before them, or the one behind. */
#include "fault.h"

int main(int argc, char **argv)
{
    /* The first and the last stretch of the library's static data that may not be written. */
    char line[600], name[300], rights[8];
    unsigned long long from, to, end = 0, guard[2] = {0, 0};
    int inside = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    need(maps != NULL, "maps");
    while (fgets(line, sizeof line, maps)) {
        *name = 0;
        need(sscanf(line, "%llx-%llx %7s %*s %*s %*s %299s", &from, &to, rights, name) >= 3, "line");
        inside = strstr(name, "_hakmem_backend") || (inside && from == end && !*name);
        end = to;
        if (!inside || *name || strcmp(rights, "r--p")) continue;
        if (!guard[0]) guard[0] = to - 1;
        guard[1] = from;
    }
    if (!guard[0] || (guard[0] & ~0xFFFull) == (guard[1] & ~0xFFFull)) return puts("no guard") < 0;
    char *p = (char *)(uintptr_t)guard[number(argv[1])];
    names(p);
    flip(p);
    lived();
    return 0;
}
