#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	char *text = malloc(64);

	if (!text)
		return 1;
	snprintf(text, 64, "hello, %s", argc > 1 ? argv[1] : "world");
	printf("%s: %zu characters\n", text, strlen(text));
	free(text);
	return 0;
}
