/*
 * Results that appear whole or not at all: made in a directory with a temporary name beside the place where they shall
 * be, synced, and moved. Whoever dies in between leaves a directory `.NAME.XXXXXX`, and nothing else changed.
 */
#ifndef BASE_TEMPDIR_H
#define BASE_TEMPDIR_H

#include <limits.h>

#include "base/bits.h"
#include "base/error.h"

struct tempdir {
	char path[PATH_MAX];   /* of the directory; empty: none */
	char target[PATH_MAX]; /* what it is for */
};

/* Make a directory for a result named `target`, with mode 0700. */
bool tempdir_make(struct tempdir *t, const char *target, struct error *err);
/* The path of a file of that name in it. */
bool tempdir_file(const struct tempdir *t, const char *name, char out[PATH_MAX], struct error *err);
/* The path of the result in it: same base name as the target's. */
bool tempdir_main(const struct tempdir *t, char out[PATH_MAX], struct error *err);
/*
 * Move the files out, the target's last. The target is replaced when it is there; other files never replace anything,
 * and when one would, none is moved. The directory is gone afterwards, also on failure.
 */
bool tempdir_publish(struct tempdir *t, struct error *err);
/* The directory itself becomes the target, which must not be there; gone on failure. */
bool tempdir_become(struct tempdir *t, struct error *err);
/* Remove it with all that is in it (files only). Nothing, when it was published. */
void tempdir_discard(struct tempdir *t);

#endif
