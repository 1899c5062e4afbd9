/* delete of an array of new[]: not portable, and no fault here. */
#include "fault.h"

int main()
{
    char *p = new char[100];
    names(p);
    ::operator delete(hidden(p));
    lived();
    return 0;
}
