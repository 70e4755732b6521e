/*
 * Long work on a terminal: a bar on stderr, with speed and the time that is left, and an end by Ctrl-C that cleans up.
 * Nothing is shown when stderr is no terminal, or in the first half second.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <time.h>

#include "base/bits.h"

struct progress {
	const char *what;
	bool terminal, shown;
	struct timespec start, last;
	int signal; /* that asked for the end; 0: none */
};

/* Blocks SIGINT, SIGTERM, SIGHUP and SIGQUIT for all threads started later; progress_stop sees them. */
void progress_begin(struct progress *p, const char *what);
void progress_show(void *progress, uint64_t done, uint64_t total); /* bytes */
bool progress_stop(void *progress);
void progress_end(struct progress *p); /* the bar is gone */

/* "1.5 GiB" */
const char *size_text(uint64_t bytes, char out[32]);

#endif
