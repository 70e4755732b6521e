/*
 * Hostile frames through checks, checksums, segmentation and joining, and into a restricted user network. Meant for sanitizer
 * builds: there must be no report, no hang, no assertion.
 *
 *   net_fuzz SECONDS SEED
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/net/coalesce.h"
#include "backend/net/net.h"
#include "backend/net/offload.h"
#include "base/timer.h"
#include "net_fuzz.h"

#define MAX_OP_NS INT64_C(2000000000)

/* ---- frames ---- */

struct emitted {
	uint8_t *buf;
	unsigned n;
	uint64_t bytes;
};

static uint8_t *emit(void *ctx, uint32_t len)
{
	struct emitted *e = ctx;

	if (++e->n > 8192 || len > NET_FRAME_MAX)
		abort();
	e->bytes += len;
	free(e->buf); /* of its own, so that a byte too much is seen */
	e->buf = malloc(len);
	return e->buf;
}

static uint64_t fuzz_frames(struct rng *r)
{
	struct net_fifo fifo;
	uint64_t useful = 0;

	if (!net_fifo_init(&fifo, 256 * KIB))
		abort();
	for (unsigned i = 0; i < 2000; i++) {
		uint8_t *data = malloc(NET_FRAME_MAX);
		struct net_hdr hdr;
		uint32_t len = random_frame(r, data, &hdr);
		struct net_frame *f = malloc(sizeof(*f) + len);
		struct emitted e = {0};

		*f = (struct net_frame){.len = len, .hdr = hdr};
		memcpy(f->data, data, len);
		data = realloc(data, len); /* exactly as long as it is */
		if (net_offload_valid(f, NET_ALL)) {
			useful++;
			if (hdr.gso_type == NET_GSO_NONE)
				net_csum_finish(f);
			else
				useful += net_segment(f, emit, &e);
		}
		net_csum_fill(f->data, f->len);
		for (unsigned k = 0; k < 3; k++) { /* the next segments of the same, now and then */
			if (!net_coalesce(&fifo, data, len, NET_ALL))
				net_fifo_clear(&fifo);
			if (len > 60 && below(r, 4))
				data[38 + below(r, 4)]++;
		}
		while (!net_fifo_empty(&fifo) && below(r, 3))
			net_fifo_drop(&fifo);
		free(e.buf);
		free(f);
		free(data);
	}
	net_fifo_fini(&fifo);
	return useful;
}

/* ---- the user network ---- */

struct sender {
	struct rng rng;
	_Atomic unsigned left, got;
};

static unsigned sender_fetch(void *ctx, unsigned q, struct net_fifo *out)
{
	struct sender *s = ctx;
	struct net_frame *f;

	if (!atomic_load(&s->left))
		return 0;
	f = net_fifo_reserve(out, NET_FRAME_MAX);
	f->len = random_frame(&s->rng, f->data, &f->hdr);
	f->hdr.flags &= NET_HDR_NEEDS_CSUM;
	if (below(&s->rng, 2)) { /* to the router, from an address that it believes */
		memcpy(f->data, "\x52\x55\x0a\x00\x02\x02", 6);
		memcpy(f->data + 26, "\x0a\x00\x02\x0f\x0a\x00\x02", 7);
		f->data[33] = (uint8_t)(2 + below(&s->rng, 3));
	}
	if (!below(&s->rng, 8))
		memcpy(f->data + 12, "\x08\x06\x00\x01\x08\x00\x06\x04\x00", 9);
	if (net_offload_valid(f, NET_ALL))
		net_fifo_commit(out, f);
	atomic_fetch_sub(&s->left, 1);
	return 1;
}

static bool sender_deliver(void *ctx, unsigned q, struct net_fifo *in)
{
	net_fifo_drop(in);
	atomic_fetch_add(&((struct sender *)ctx)->got, 1);
	return true;
}

static bool sender_arm(void *ctx, unsigned q, bool starved) { return atomic_load(&((struct sender *)ctx)->left); }

/* Restricted: nothing of it leaves this process. */
static uint64_t fuzz_user(struct rng *r)
{
	struct sender s = {.rng = {next(r) | 1}, .left = 1000};
	struct net_options o = {.kind = NET_USER, .restricted = true, .ipv6 = true};
	struct net *n = net_open(&o, NULL);
	struct net_client c = {sender_fetch, sender_deliver, sender_arm, NULL, &s};
	int64_t end = clock_now() + 20 * MAX_OP_NS;

	if (!n)
		abort();
	net_set_accepts(n, NET_ALL);
	if (!net_start(n, &c, NULL))
		abort();
	while (atomic_load(&s.left)) {
		usleep(1000);
		if (clock_now() > end) {
			fprintf(stderr, "net_fuzz: the user network hangs\n");
			abort();
		}
	}
	net_close(n);
	return atomic_load(&s.got);
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 5, begin = clock_now();
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, rounds = 0, useful = 0, answers = 0;

	for (; clock_now() - begin < seconds * 1000000000; seed++, rounds++) {
		struct rng r = {seed * UINT64_C(0x9e3779b97f4a7c15) | 1};

		useful += fuzz_frames(&r);
		if (rounds % 4 == 0)
			answers += fuzz_user(&r);
	}
	printf("net_fuzz: %" PRIu64 " rounds, next seed %" PRIu64 "; %" PRIu64 " frames valid or cut, %" PRIu64 " answers\n", rounds, seed, useful,
	       answers);
	return useful && answers ? 0 : 1; /* a run that reached nothing proves nothing */
}
