/*
 * A bounded queue of frames in one block of memory, in the order in which they came.
 *
 * A frame is put together in place: reserve room for the longest, fill in, commit what it became.
 * Threads: the owner's.
 */
#ifndef BACKEND_NET_FIFO_H
#define BACKEND_NET_FIFO_H

#include "base/bits.h"

/* An IP packet of 64 KiB, the Ethernet header and two VLAN tags. */
#define NET_FRAME_MAX (65535u + 14 + 8)
#define NET_FRAME_MIN 14u

enum {
	NET_HDR_NEEDS_CSUM = 1,
	NET_HDR_DATA_VALID = 2, /* checksums were verified */
	NET_GSO_NONE = 0,
	NET_GSO_TCPV4 = 1,
	NET_GSO_TCPV6 = 4,
	NET_GSO_UDP_L4 = 5,
	NET_GSO_ECN = 0x80,
};

/* struct virtio_net_hdr (virtio 1.2, 5.1.6) but num_buffers; little-endian. */
struct net_hdr {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
};

struct net_frame {
	uint32_t len; /* of data */
	uint32_t room; /* the fifo's */
	uint32_t coalesced; /* coalesce.h's: segments in it, 0: never to be joined */
	uint16_t spare;
	struct net_hdr hdr; /* data follows without a gap, as tap wants it */
	uint8_t data[];
};

/* Header and data in a row, as tap and link carry them. */
static inline void *net_frame_wire(struct net_frame *f) { return (uint8_t *)f + offsetof(struct net_frame, hdr); }

struct net_fifo {
	uint8_t *buf;
	uint32_t size, head, tail; /* tail: where the next frame goes */
	uint32_t wrap;             /* where the frames before the wrap end; 0: not wrapped */
	uint32_t count, last;      /* last: where the newest frame begins */
};

bool net_fifo_init(struct net_fifo *f, uint32_t size);
void net_fifo_fini(struct net_fifo *f);
static inline bool net_fifo_empty(const struct net_fifo *f) { return !f->count; }
/* Bytes between first and last frame: how full it is. */
uint32_t net_fifo_used(const struct net_fifo *f);
/* A place for a frame of up to max bytes; NULL: no room. It counts from net_fifo_commit on, which takes frame->len. */
struct net_frame *net_fifo_reserve(struct net_fifo *f, uint32_t max);
void net_fifo_commit(struct net_fifo *f, struct net_frame *frame);
/* NULL: empty */
struct net_frame *net_fifo_first(struct net_fifo *f);
struct net_frame *net_fifo_last(struct net_fifo *f);
/* Make the newest frame longer; false: no room. */
bool net_fifo_grow(struct net_fifo *f, uint32_t bytes);
void net_fifo_drop(struct net_fifo *f);
void net_fifo_clear(struct net_fifo *f);

#endif
