/*
 * virtio-vsock (virtio 1.2, 5.10): receive, transmit and event queue; the host's side is backend/vsock/vsock.h.
 *
 * Everything is done by the loop's thread, which takes the machine lock to move packets between queues and buffers of its own; a
 * vCPU only wakes it.
 * Threads: new with the machine lock held; free where the loop does not run.
 */
#ifndef DEV_VIRTIO_VSOCK_H
#define DEV_VIRTIO_VSOCK_H

#include <pthread.h>

#include "backend/vsock/vsock.h"
#include "dev/virtio/virtio.h"

struct virtio_vsock;

struct virtio_vsock_config {
	struct vsock_options host;
	struct loop *loop;
	pthread_mutex_t *lock; /* the machine lock */
};

struct virtio_vsock *virtio_vsock_new(const struct virtio_config *cfg, const struct virtio_vsock_config *vsock, struct error *err);
void virtio_vsock_free(struct virtio_vsock *s);

#endif
