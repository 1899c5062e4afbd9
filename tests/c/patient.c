/* A program to look at from outside: it says that it is there, and waits for the end of its input. */
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
	char c, *volatile block = malloc(100);

	free(block);
	if (write(1, "ready\n", 6) != 6)
		return 1;
	while (read(0, &c, 1) > 0)
		;
	return 0;
}
