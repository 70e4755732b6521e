#include "cli/opt_share.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static bool bad(const char *spec, const char *what, struct error *err)
{
	error_set(err, "--share '%.200s': %s", spec, what);
	return error_hint(err, "write DIRECTORY:TAG or DIRECTORY:TAG,ro");
}

bool opt_share_parse(const char *spec, struct machine_share *share, struct error *err)
{
	const char *colon = strrchr(spec, ':'), *comma;
	size_t n;

	*share = (struct machine_share){0};
	if (!colon || colon == spec)
		return bad(spec, "no tag", err);
	comma = strchr(colon, ',');
	n = comma ? (size_t)(comma - colon - 1) : strlen(colon + 1);
	if (n < 1 || n >= sizeof(share->tag))
		return bad(spec, "a tag has 1 to 31 characters", err);
	for (size_t i = 1; i <= n; i++)
		if (!isalnum((unsigned char)colon[i]) && !strchr("_.-", colon[i]))
			return bad(spec, "a tag is made of letters, digits, _ . and -", err);
	if (comma && strcmp(comma, ",ro"))
		return bad(spec, "unknown option behind the tag", err);
	share->readonly = comma;
	memcpy(share->tag, colon + 1, n);
	share->path = strndup(spec, (size_t)(colon - spec));
	return share->path || error_set(err, "out of memory");
}
