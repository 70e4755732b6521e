/*
 * Between the files of backend/block only.
 */
#ifndef BACKEND_BLOCK_BLOCK_INT_H
#define BACKEND_BLOCK_BLOCK_INT_H

#include "backend/block/block.h"

/*
 * A block whose writes go to a temporary file, which is gone at close; `below` is read, and owned by the result. NULL: err, and
 * below is still the caller's.
 */
struct block *overlay_new(struct block *below, struct error *err);

#endif
