/* delete of an object through a pointer to a larger type. */
#include "fault.h"

struct small { char bytes[24]; };
struct large { char bytes[240]; };

int main()
{
    small *p = new small;
    names(p);
    delete reinterpret_cast<large *>(hidden(p));
    lived();
    return 0;
}
