/*
 * Split virtqueues (virtio 1.2, 2.7), device side.
 *
 * The rings lie in guest RAM and nowhere else; so do the buffers: a descriptor that names anything but RAM breaks the
 * queue. Each descriptor is copied once, validated, then used; the guest may rewrite it at any moment.
 * Threads: machine lock held.
 */
#ifndef DEV_VIRTIO_VIRTQUEUE_H
#define DEV_VIRTIO_VIRTQUEUE_H

#include "base/bits.h"
#include "mem/ram.h"

#define VIRTQUEUE_MAX 256 /* largest queue, and most buffers of one chain */

/* All that a guest can see. */
struct virtqueue_state {
	uint16_t size; /* power of two */
	bool enabled;
	bool event_idx; /* VIRTIO_F_EVENT_IDX was negotiated */
	uint16_t msix_vector;
	gpa_t desc, avail, used;
	uint16_t next_avail; /* of the avail ring, not taken yet */
	uint16_t next_used;
	uint16_t signalled; /* next_used when the driver was last told, or need not be */
	bool quiet;         /* the driver was asked not to notify */
};

struct virtqueue {
	struct virtqueue_state s;
	struct ram *ram;
	/* Host addresses of the rings while enabled. */
	uint8_t *desc, *avail, *used;
};

struct virtqueue_seg {
	gpa_t gpa;
	uint8_t *ptr;
	uint32_t len; /* not 0 */
};

/* Buffers that the device reads, then those that it writes. */
struct virtqueue_chain {
	uint16_t head;
	unsigned nread, nwrite;
	uint32_t read_len, write_len;
	struct virtqueue_seg segs[VIRTQUEUE_MAX];
};

enum virtqueue_result { VIRTQUEUE_EMPTY, VIRTQUEUE_CHAIN, VIRTQUEUE_BROKEN };

/* Check where the rings are and begin; false: misaligned or not in RAM. */
bool virtqueue_enable(struct virtqueue *q);
/* Take the next chain. EMPTY: the next one will be notified. BROKEN: the driver violated 2.7; use it no more. */
enum virtqueue_result virtqueue_pop(struct virtqueue *q, struct virtqueue_chain *c);
/* Is a chain there to be popped? Asks for no notification. */
bool virtqueue_waiting(const struct virtqueue *q);
/* The device looks by itself for a while: the driver need not notify until a pop finds nothing (2.7.10). */
void virtqueue_suppress(struct virtqueue *q);
/* The end of that: ask for a notification of the next chain; true: one is there already. */
bool virtqueue_arm(struct virtqueue *q);
/* Hand the chain back, of which the first `written` bytes of the writable buffers were filled. */
void virtqueue_push(struct virtqueue *q, const struct virtqueue_chain *c, uint32_t written);
/* The same in two steps, for chains that the driver must see all at once: put each head, then publish. */
void virtqueue_put(struct virtqueue *q, uint16_t head, uint32_t written);
void virtqueue_publish(struct virtqueue *q);
/* After pushes: does the driver want an interrupt (2.7.7)? */
bool virtqueue_wants_interrupt(struct virtqueue *q);
/* Copy into the writable buffers from offset off; returns the bytes that fit. */
uint32_t virtqueue_write(struct virtqueue *q, const struct virtqueue_chain *c, uint32_t off, const void *buf,
			 uint32_t len);

#endif
