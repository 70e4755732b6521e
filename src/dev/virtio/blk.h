/*
 * virtio-blk (virtio 1.2, 5.2): multiqueue, flush, discard, write zeroes, serial number, resize, write cache switch.
 *
 * Data goes between the block and guest RAM without a copy. Requests run in a block_queue; what it finds done in its threads it
 * tells this device, which takes the machine lock to hand the results to the driver. Reset comes through PCI and waits for
 * what is in flight.
 * Ownership: the block outlives the device, which alone uses it.
 * Threads: machine lock held, but for virtio_blk_free, which takes it.
 */
#ifndef DEV_VIRTIO_BLK_H
#define DEV_VIRTIO_BLK_H

#include <pthread.h>

#include "backend/block/queue.h"
#include "dev/virtio/virtio.h"

#define VIRTIO_BLK_QUEUES_MAX 16
#define VIRTIO_BLK_SERIAL_LEN 20

struct virtio_blk;

struct virtio_blk_config {
	struct virtio_config virtio;
	struct block_queue_config queue; /* all but notify and ctx */
	pthread_mutex_t *lock;           /* the machine lock */
	unsigned nqueues;                /* 1 to VIRTIO_BLK_QUEUES_MAX */
	const char *serial;              /* at most VIRTIO_BLK_SERIAL_LEN characters count; NULL: none */
};

struct virtio_blk *virtio_blk_new(const struct virtio_blk_config *cfg, struct error *err);
/* Without the lock. */
void virtio_blk_free(struct virtio_blk *b);

/* For status, retry of held requests, and errors. */
struct block_queue *virtio_blk_queue(struct virtio_blk *b);
/* Resize the disk and tell the driver. */
bool virtio_blk_resize(struct virtio_blk *b, uint64_t size, struct error *err);

#endif
