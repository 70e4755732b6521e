/*
 * virtio-9p (virtio device 9: no section in 1.2; as Linux' net/9p/trans_virtio.c has it): one queue of requests with room for the
 * reply behind them, and a mount tag in the configuration.
 *
 * A thread of its own takes the requests one after the other under the machine lock, copies them, and has the file server
 * (backend/fs/fs.h) answer without it. A reset waits for a copy that is under way, not for the file server: the answer is then nobody's.
 * Threads: new with the machine lock held; free without it, as it ends the thread.
 */
#ifndef DEV_VIRTIO_P9_H
#define DEV_VIRTIO_P9_H

#include <pthread.h>

#include "backend/fs/fs.h"
#include "dev/virtio/virtio.h"

#define P9_TAG_MAX 31u

struct virtio_p9;

struct virtio_p9_config {
	struct fs *fs;         /* outlives the device, unless free says otherwise */
	pthread_mutex_t *lock; /* the machine lock */
	const char *tag;       /* 1 to P9_TAG_MAX bytes; copied */
};

struct virtio_p9 *virtio_p9_new(const struct virtio_config *cfg, const struct virtio_p9_config *p9, struct error *err);
/* False: the thread hangs in the host's file system, and the file server must not be closed. */
bool virtio_p9_free(struct virtio_p9 *p);

#endif
