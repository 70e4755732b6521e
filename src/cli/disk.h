/*
 * `doppel disk`: its arguments, and the commands that have a file of their own (disk_info.c, disk_convert.c). Each
 * command takes parsed arguments and returns the exit status.
 */
#ifndef CLI_DISK_H
#define CLI_DISK_H

#include "backend/block/block.h"

struct disk_args {
	const char *format, *out_format, *options, *backing, *backing_format;
	bool json, repair, shrink, compress, help, quiet;
	char **names; /* what is not an option */
	int n;
};

enum { DISK_DIFFERENT = 1, DISK_CORRUPT = 2, DISK_LEAKS = 3 }; /* exit statuses of compare and check */

/* For writing unless readonly; no_lock: look even where a VM writes. NULL: err. */
struct block *disk_open(const char *path, const char *format, bool readonly, bool no_lock, struct error *err);
/* The format that a name's suffix says, else raw. */
const char *disk_format_of(const char *path);
/* Text that came out of an image, as a terminal may see it. */
const char *disk_safe_text(const char *s, char *out, size_t size);

int disk_info(const struct disk_args *a);
int disk_map(const struct disk_args *a);
int disk_convert(const struct disk_args *a);
int disk_compare(const struct disk_args *a);

#endif
