/*
 * The host's side of a guest's vsock (virtio 1.2, 5.10): stream connections to and from unix sockets, with credit-based flow control. The
 * convention is that of Firecracker:
 *
 *   a host program connects to PATH and sends "CONNECT PORT\n"; when the guest accepts, it reads "OK NUMBER\n", then the stream
 *   a guest program connects to CID 2, port PORT; the host program listens on PATH_PORT
 *
 * The guest is hostile: connections, what is kept for each, and replies to nonsense are bounded; one that sends more than it was
 * allowed to is cut off.
 * Threads: all functions run in the loop's thread, or while it does not run.
 */
#ifndef BACKEND_VSOCK_VSOCK_H
#define BACKEND_VSOCK_VSOCK_H

#include "base/bits.h"
#include "base/error.h"
#include "base/loop.h"

#define VSOCK_HDR_LEN 44
#define VSOCK_DATA_MAX 65536u /* of one packet */
#define VSOCK_HOST_CID 2u

struct vsock;

struct vsock_options {
	const char *path; /* copied */
	uint64_t cid;     /* of the guest */
};

/* ready: something may be there for vsock_next. */
struct vsock *vsock_open(const struct vsock_options *o, struct loop *loop, void (*ready)(void *ctx), void *ctx, struct error *err);
void vsock_close(struct vsock *v);
/* The guest forgot everything. */
void vsock_reset(struct vsock *v);
/* A packet of the guest: header and len bytes behind it. */
void vsock_packet(struct vsock *v, const uint8_t hdr[VSOCK_HDR_LEN], const uint8_t *data, uint32_t len);
/* The next packet for the guest, in at most room bytes, VSOCK_HDR_LEN or more; 0: there is none. */
uint32_t vsock_next(struct vsock *v, uint8_t *packet, uint32_t room);

#endif
