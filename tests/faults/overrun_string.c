/* strcpy of a string into a block without room for the NUL at its end. */
#include "fault.h"

int main(void)
{
    const char *string = "a string of 33 characters, no NUL";
    size_t n = strlen(string);
    char *p = block(n);
    names(p);
    strcpy(hidden(p), string);
    lived();
    let_go(p);
    return 0;
}
