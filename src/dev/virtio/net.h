/*
 * virtio-net (virtio 1.2, 5.1): mergeable buffers, checksum and segmentation offloads, control queue, as many queue pairs as the
 * back end has.
 *
 * The back end's workers move the frames: they take chains under the machine lock, copy without it, and hand the chains back
 * under it again. A reset waits for a copy that is under way: after it, no guest memory is touched.
 * Ownership: the net outlives the device, which is its client.
 * Threads: new with the machine lock held; free without it, as it ends the workers.
 */
#ifndef DEV_VIRTIO_NET_H
#define DEV_VIRTIO_NET_H

#include <pthread.h>

#include "backend/net/net.h"
#include "dev/virtio/virtio.h"

struct virtio_net;

struct virtio_net_config {
	struct net *net;
	pthread_mutex_t *lock; /* the machine lock */
	uint8_t mac[6];
	bool mac_filter; /* the guest can neither change its address nor send from another */
	uint16_t mtu;    /* 0: the guest is told none */
};

struct virtio_net *virtio_net_new(const struct virtio_config *cfg, const struct virtio_net_config *net, struct error *err);
void virtio_net_free(struct virtio_net *n);

#endif
