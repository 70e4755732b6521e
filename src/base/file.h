/*
 * Whole files, read at once. The caller frees with file_free.
 */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include "base/bits.h"
#include "base/error.h"

struct file_data {
	uint8_t *data;
	uint64_t size;
};

/* Read a regular file of 1 to `max` bytes. `what` names its role in messages ("kernel"). */
bool file_read(struct file_data *f, const char *path, const char *what, uint64_t max, struct error *err);
void file_free(struct file_data *f);

#endif
