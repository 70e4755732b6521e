/*
 * Checksums (RFC 1071) and segmentation of frames in software, for a side that does not take them undone.
 *
 * Frames come from hostile guests and peers: whatever header and bytes, nothing outside the frame is read or written, and what
 * cannot be done is refused. Threads: no state.
 */
#ifndef BACKEND_NET_OFFLOAD_H
#define BACKEND_NET_OFFLOAD_H

#include "backend/net/net.h"

/* Ones' complement sum of the 16-bit words of p, added to sum; folded to 16 bits, in the byte order of memory. */
uint16_t net_sum(const void *p, size_t len, uint32_t sum);

/* Where the headers of a TCP or UDP packet are, in bytes from the frame's start. */
struct net_packet {
	unsigned l3, l4, payload; /* payload: after the TCP or UDP header */
	unsigned end;             /* by the IP header's length: Ethernet padding follows */
	uint8_t protocol;         /* IPPROTO_TCP or IPPROTO_UDP */
	bool ipv6, vlan;
};
/* False: not a whole, unfragmented TCP or UDP packet (IPv6: without extension headers). */
bool net_parse(const uint8_t *data, uint32_t len, struct net_packet *p);

/* Do flags, offsets and sizes fit the frame and each other? Only of the kinds in `allowed` (NET_CSUM ..., NET_ALL). */
bool net_offload_valid(const struct net_frame *f, unsigned allowed);
/* Is there anything in it that a side with these does not take undone? */
bool net_offload_acceptable(const struct net_hdr *h, unsigned accepts);

/* Do what NET_HDR_NEEDS_CSUM asks for, and clear it. The frame is valid, and not to be segmented. */
void net_csum_finish(struct net_frame *f);
/* The full TCP or UDP checksum of a frame, whatever is in the field, as if it were one packet. False: no such packet. */
bool net_csum_fill(uint8_t *data, uint32_t len);

/*
 * Cut a frame with a gso_type into packets of gso_size with all checksums done. emit returns the place for the next one, of
 * len bytes, or NULL to stop. False: not what gso_type says; nothing was emitted.
 */
bool net_segment(const struct net_frame *f, uint8_t *(*emit)(void *ctx, uint32_t len), void *ctx);

#endif
