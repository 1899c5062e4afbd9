/* delete[] of an array twice in a row. */
#include "fault.h"

int main()
{
    long *p = new long[1000];
    names(p);
    delete[] reinterpret_cast<long *>(hidden(p));
    delete[] reinterpret_cast<long *>(hidden(p));
    lived();
    return 0;
}
