/*
 * A NIC that is only queues of frames, for the tests of network back ends: what is given to rig_send goes out by the
 * back end's worker, what it delivers is kept until rig_wait.
 */
#ifndef TESTS_UNIT_BACKEND_NET_RIG_H
#define TESTS_UNIT_BACKEND_NET_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

#include "backend/net/net.h"

#define RIG_FRAMES 4096

struct rig_frame {
	struct net_hdr hdr;
	uint32_t len;
	uint8_t *data;
};

struct rig_queue {
	struct rig_frame frames[RIG_FRAMES];
	unsigned head, tail;
};

struct net_rig {
	struct net *net;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct rig_queue out, in;
	unsigned room;  /* frames that are taken; RIG_FRAMES: all */
	int link;       /* as told last; -1: never */
	unsigned links; /* times */
};

/* Opens and starts; false: err */
bool rig_open(struct net_rig *r, const struct net_options *o, unsigned accepts, struct error *err);
void rig_close(struct net_rig *r);
void rig_send(struct net_rig *r, const struct net_hdr *hdr, const void *data, uint32_t len);
/* The next frame that came; data is the caller's to free. False: none within ms. */
bool rig_wait(struct net_rig *r, struct rig_frame *f, unsigned ms);
bool rig_wait_link(struct net_rig *r, bool up, unsigned ms);
void rig_set_room(struct net_rig *r, unsigned frames);

/* ---- frames ---- */

struct flow {
	bool ipv6, udp;
	unsigned options; /* bytes of TCP options: a multiple of 4, up to 40 */
	uint8_t tcp_flags;
	uint8_t dst_mac[6], src_mac[6];
	uint32_t seq;
	uint16_t id;
};

/* A TCP or UDP frame with `payload` bytes (of `seed`), IP header and, when full, TCP or UDP checksum right. Returns its length. */
uint32_t flow_frame(const struct flow *f, uint8_t *out, const uint8_t *payload, uint32_t len, bool full);
/* The header that leaves its segmentation in pieces of `size` to the other side; the pseudo-header's sum is put into the frame. */
struct net_hdr flow_gso(const struct flow *f, uint8_t *frame, uint32_t len, uint16_t size);
/* Headers up to the payload. */
uint32_t flow_headers(const struct flow *f);
/* The checksum of RFC 1071, as slow and plain as it is written there: high byte first. */
uint16_t slow_sum(const uint8_t *p, size_t len, uint32_t start);
/* Are all checksums of the frame right, by slow_sum? */
bool sums_right(const uint8_t *frame, uint32_t len);

#endif
