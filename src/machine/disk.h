/*
 * A disk as the user asked for it; in a header of its own, as the engines have another struct block.
 */
#ifndef MACHINE_DISK_H
#define MACHINE_DISK_H

#include "backend/block/queue.h"

struct machine_disk {
	struct block_options image;
	uint64_t iops, bps; /* 0: no limit */
	enum block_on_error on_error;
	const char *serial; /* NULL: none */
};

#endif
