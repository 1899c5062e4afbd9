/* A write beside metadata: into the guard before it, or the one behind. */
#include "fault.h"

int main(int argc, char **argv)
{
    /* Metadata is what stands between two stretches without rights and is not where blocks are. */
    char line[600], name[300], rights[8];
    unsigned long long from, to, end = 0, guard[2] = {0, 0};
    int state = 0;
    char *p = block(64);
    FILE *maps = fopen("/proc/self/maps", "r");
    need(maps != NULL, "maps");
    while (state < 3 && fgets(line, sizeof line, maps)) {
        *name = 0;
        need(sscanf(line, "%llx-%llx %7s %*s %*s %*s %299s", &from, &to, rights, name) >= 3, "line");
        int forbidden = !*name && !strcmp(rights, "---p"), next = from == end;
        end = to;
        if (state == 2 && next && forbidden) {
            guard[1] = from;
            state = 3;
        } else if (state == 1 && next && !*name && !strcmp(rights, "rw-p") &&
                   (to <= (uintptr_t)p - 4 * MIB || from >= (uintptr_t)p + 4 * MIB)) {
            guard[0] = from - 1;
            state = 2;
        } else {
            state = forbidden;
        }
    }
    if (state < 3) return puts("no guard") < 0;
    p = (char *)(uintptr_t)guard[number(argv[1])];
    names(p);
    flip(p);
    lived();
    return 0;
}
