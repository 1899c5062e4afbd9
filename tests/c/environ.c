/* Runs a program in an environment that holds what a file says, byte by byte: entries that end with a NUL, in their
 * order, names twice or without "=" among them. Arguments: the file, the program and its arguments. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static char text[1 << 20];
    static char *entries[4096];
    FILE *f = argc > 2 ? fopen(argv[1], "rb") : NULL;
    if (!f) return 90;
    size_t size = fread(text, 1, sizeof text - 1, f), count = 0;
    for (char *at = text; at < text + size && count + 1 < sizeof entries / sizeof *entries; at += strlen(at) + 1)
        entries[count++] = at;
    execve(argv[2], argv + 2, entries);
    return 91;
}
