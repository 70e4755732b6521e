/* Inside virtio-net: net.c (device), net_queue.c (frames, by the back end's workers), net_ctrl.c (control queue). */
#ifndef DEV_VIRTIO_NET_INT_H
#define DEV_VIRTIO_NET_INT_H

#include <stdatomic.h>
#include <string.h>

#include "dev/virtio/net.h"

#define NET_HDR_LEN 12u /* struct virtio_net_hdr with num_buffers */
#define NET_MAC_TABLE 64

/* Feature bits (5.1.3; those of USO: virtio 1.3). */
enum {
	NET_F_CSUM = 0, NET_F_GUEST_CSUM = 1, NET_F_CTRL_GUEST_OFFLOADS = 2, NET_F_MTU = 3, NET_F_MAC = 5, NET_F_GUEST_TSO4 = 7,
	NET_F_GUEST_TSO6 = 8, NET_F_GUEST_ECN = 9, NET_F_HOST_TSO4 = 11, NET_F_HOST_TSO6 = 12, NET_F_HOST_ECN = 13, NET_F_MRG_RXBUF = 15,
	NET_F_STATUS = 16, NET_F_CTRL_VQ = 17, NET_F_CTRL_RX = 18, NET_F_CTRL_VLAN = 19, NET_F_CTRL_RX_EXTRA = 20, NET_F_MQ = 22,
	NET_F_CTRL_MAC_ADDR = 23, NET_F_GUEST_USO4 = 54, NET_F_GUEST_USO6 = 55, NET_F_HOST_USO = 56,
};

struct net_filter {
	uint8_t mac[6];
	bool promisc, allmulti, alluni, nomulti, nouni, nobcast, vlan;
	bool uni_overflow, multi_overflow; /* the driver has more addresses than the tables hold */
	unsigned nuni, nmulti;
	uint8_t uni[NET_MAC_TABLE][6], multi[NET_MAC_TABLE][6];
	uint64_t vlans[4096 / 64];
};

/* All that a guest can see, apart from the queues. */
struct virtio_net_state {
	uint64_t features;
	bool started, link_up;
	uint16_t pairs;    /* in use */
	unsigned accepts;  /* NET_CSUM ...: what the driver takes undone */
	struct net_filter filter;
};

/* A chain that a worker has taken. */
struct net_chain {
	uint16_t head, first, count; /* segs[first ...] */
	uint32_t len, written;
};

#define NET_CHAINS 256
#define NET_SEGS 1024

/* One virtqueue, in its worker's hands. Only the worker touches it, but for `busy`. */
struct net_ring {
	unsigned q, size;
	_Atomic bool busy; /* guest memory is being copied without the lock */
	uint64_t generation;
	unsigned nchains, nsegs, used; /* used: chains from the first that are to be handed back */
	unsigned owed;                 /* chains handed back without an interrupt so far */
	uint64_t bytes;                /* in chains that are not used */
	struct net_chain chains[NET_CHAINS];
	struct virtqueue_seg segs[NET_SEGS];
	struct virtqueue_chain popped;
};

/* What a worker needs of the device's state while it has no lock. */
struct net_view {
	uint64_t version;
	bool mergeable;
	unsigned allowed, accepts;
	struct net_filter filter;
};

struct net_pair {
	struct net_ring tx, rx;
	struct net_view view;
};

struct virtio_net {
	struct virtio_net_state s;
	struct virtio *virtio;
	struct virtio_net_config cfg;
	struct virtio_class class;
	struct ram *ram;
	uint64_t generation; /* counts resets */
	uint64_t version;    /* counts changes of what a view has */
	unsigned npairs;
	struct net_pair *pairs;
};

/* net_queue.c: the client's functions (backend/net/net.h) */
unsigned virtio_net_fetch(void *ctx, unsigned pair, struct net_fifo *out);
bool virtio_net_deliver(void *ctx, unsigned pair, struct net_fifo *in);
bool virtio_net_arm(void *ctx, unsigned pair, bool starved);

/* net_ctrl.c: lock held */
bool virtio_net_control(struct virtio_net *n, unsigned q);
unsigned virtio_net_accepts(uint64_t features);
/* Does the driver want this frame? */
bool virtio_net_wants(const struct net_filter *f, const uint8_t *data);

/* Copy len bytes from offset off of segs; false: they are not there. */
static inline bool net_gather(const struct virtqueue_seg *segs, unsigned n, uint64_t off, void *buf, uint32_t len)
{
	uint8_t *out = buf;

	for (unsigned i = 0; i < n && len; i++) {
		uint32_t part;

		if (off >= segs[i].len) {
			off -= segs[i].len;
			continue;
		}
		part = (uint32_t)min_u64(len, segs[i].len - off);
		memcpy(out, segs[i].ptr + off, part);
		out += part;
		len -= part;
		off = 0;
	}
	return !len;
}

#endif
