#include "net_rig.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct rig_frame *push(struct rig_queue *q, const struct net_hdr *hdr, const void *data, uint32_t len)
{
	struct rig_frame *f = &q->frames[q->tail++ % RIG_FRAMES];

	f->hdr = hdr ? *hdr : (struct net_hdr){0};
	f->len = len;
	f->data = malloc(len ? len : 1);
	memcpy(f->data, data, len);
	return f;
}

static unsigned fetch(void *ctx, unsigned q, struct net_fifo *out)
{
	struct net_rig *r = ctx;
	unsigned n = 0;

	pthread_mutex_lock(&r->lock);
	for (; r->out.head != r->out.tail && n < 8; n++) {
		struct rig_frame *f = &r->out.frames[r->out.head++ % RIG_FRAMES];
		struct net_frame *to = net_fifo_reserve(out, f->len);

		if (to) {
			to->len = f->len;
			to->hdr = f->hdr;
			memcpy(to->data, f->data, f->len);
			net_fifo_commit(out, to);
		}
		free(f->data);
	}
	pthread_mutex_unlock(&r->lock);
	return n;
}

static bool deliver(void *ctx, unsigned q, struct net_fifo *in)
{
	struct net_rig *r = ctx;
	struct net_frame *f;
	bool some = false;

	pthread_mutex_lock(&r->lock);
	while (r->in.tail - r->in.head < r->room && (f = net_fifo_first(in)) != NULL) {
		push(&r->in, &f->hdr, f->data, f->len);
		net_fifo_drop(in);
		some = true;
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	return some;
}

static bool arm(void *ctx, unsigned q, bool starved)
{
	struct net_rig *r = ctx;
	bool work;

	pthread_mutex_lock(&r->lock);
	work = r->out.head != r->out.tail || (starved && r->in.tail - r->in.head < r->room);
	pthread_mutex_unlock(&r->lock);
	return work;
}

static void set_link(void *ctx, bool up)
{
	struct net_rig *r = ctx;

	pthread_mutex_lock(&r->lock);
	r->link = up;
	r->links++;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

bool rig_open(struct net_rig *r, const struct net_options *o, unsigned accepts, struct error *err)
{
	struct net_client client = {fetch, deliver, arm, set_link, r};

	memset(r, 0, sizeof(*r));
	r->room = RIG_FRAMES;
	r->link = -1;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->changed, NULL);
	r->net = net_open(o, err);
	if (!r->net)
		return false;
	net_set_accepts(r->net, accepts);
	assert_true(net_start(r->net, &client, err));
	return true;
}

static void drain(struct rig_queue *q)
{
	while (q->head != q->tail)
		free(q->frames[q->head++ % RIG_FRAMES].data);
}

void rig_close(struct net_rig *r)
{
	net_close(r->net);
	r->net = NULL;
	drain(&r->in);
	drain(&r->out);
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
}

void rig_send(struct net_rig *r, const struct net_hdr *hdr, const void *data, uint32_t len)
{
	pthread_mutex_lock(&r->lock);
	push(&r->out, hdr, data, len);
	pthread_mutex_unlock(&r->lock);
	net_kick(r->net, 0);
}

static struct timespec deadline(unsigned ms)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += ms / 1000 + (ts.tv_nsec + ms % 1000 * 1000000L) / 1000000000;
	ts.tv_nsec = (ts.tv_nsec + ms % 1000 * 1000000L) % 1000000000;
	return ts;
}

bool rig_wait(struct net_rig *r, struct rig_frame *f, unsigned ms)
{
	struct timespec until = deadline(ms);
	bool ok;

	pthread_mutex_lock(&r->lock);
	while (r->in.head == r->in.tail && !pthread_cond_timedwait(&r->changed, &r->lock, &until))
		;
	ok = r->in.head != r->in.tail;
	if (ok)
		*f = r->in.frames[r->in.head++ % RIG_FRAMES];
	pthread_mutex_unlock(&r->lock);
	if (ok)
		net_kick(r->net, 0);
	return ok;
}

bool rig_wait_link(struct net_rig *r, bool up, unsigned ms)
{
	struct timespec until = deadline(ms);
	bool ok;

	pthread_mutex_lock(&r->lock);
	while (r->link != up && !pthread_cond_timedwait(&r->changed, &r->lock, &until))
		;
	ok = r->link == up;
	pthread_mutex_unlock(&r->lock);
	return ok;
}

void rig_set_room(struct net_rig *r, unsigned frames)
{
	pthread_mutex_lock(&r->lock);
	r->room = frames;
	pthread_mutex_unlock(&r->lock);
	net_kick(r->net, 0);
}

/* ---- frames ---- */

static void be16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }

uint16_t slow_sum(const uint8_t *p, size_t len, uint32_t start)
{
	uint64_t sum = start;

	for (size_t i = 0; i < len; i++)
		sum += i % 2 ? p[i] : (uint64_t)p[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

uint32_t flow_headers(const struct flow *f) { return 14u + (f->ipv6 ? 40 : 20) + (f->udp ? 8 : 20 + f->options); }

/* Sum of the pseudo-header, for len bytes of TCP or UDP. */
static uint16_t pseudo(const uint8_t *frame, bool ipv6, bool udp, uint32_t len)
{
	return slow_sum(ipv6 ? frame + 22 : frame + 26, ipv6 ? 32 : 8, len + (udp ? 17 : 6));
}

uint32_t flow_frame(const struct flow *f, uint8_t *out, const uint8_t *payload, uint32_t len, bool full)
{
	uint32_t head = flow_headers(f), l4_at = 14u + (f->ipv6 ? 40 : 20);
	uint8_t *ip = out + 14, *l4 = out + l4_at, *sum = l4 + (f->udp ? 6 : 16);

	memset(out, 0, head);
	memcpy(out, f->dst_mac, 6);
	memcpy(out + 6, f->src_mac, 6);
	be16(out + 12, f->ipv6 ? 0x86dd : 0x0800);
	if (f->ipv6) {
		ip[0] = 0x60;
		be16(ip + 4, head - l4_at + len);
		ip[6] = f->udp ? 17 : 6;
		ip[7] = 64;
		for (unsigned i = 0; i < 32; i++)
			ip[8 + i] = (uint8_t)(i * 7 + 1);
		ip[8] = ip[24] = 0xfd;
	} else {
		ip[0] = 0x45;
		be16(ip + 2, head - 14 + len);
		be16(ip + 4, f->id);
		ip[6] = 0x40;
		ip[8] = 64;
		ip[9] = f->udp ? 17 : 6;
		memcpy(ip + 12, "\x0a\x01\x00\x01\x0a\x01\x00\x02", 8);
		be16(ip + 10, (uint16_t)~slow_sum(ip, 20, 0));
	}
	be16(l4, 40000);
	be16(l4 + 2, 5001);
	if (f->udp) {
		be16(l4 + 4, 8 + len);
	} else {
		be16(l4 + 4, f->seq >> 16);
		be16(l4 + 6, f->seq & 0xffff);
		be16(l4 + 8, 0x1234);
		l4[12] = (uint8_t)((20 + f->options) << 2);
		l4[13] = f->tcp_flags;
		be16(l4 + 14, 501);
		memset(l4 + 20, 1, f->options); /* NOP */
	}
	memcpy(out + head, payload, len);
	if (full) {
		uint16_t s = (uint16_t)~slow_sum(l4, head - l4_at + len, pseudo(out, f->ipv6, f->udp, head - l4_at + len));

		be16(sum, s ? s : 0xffff);
	}
	return head + len;
}

struct net_hdr flow_gso(const struct flow *f, uint8_t *frame, uint32_t len, uint16_t size)
{
	uint32_t l4_at = 14u + (f->ipv6 ? 40 : 20), offset = f->udp ? 6 : 16;

	be16(frame + l4_at + offset, pseudo(frame, f->ipv6, f->udp, len - l4_at));
	return (struct net_hdr){
		.flags = NET_HDR_NEEDS_CSUM,
		.gso_type = f->udp ? NET_GSO_UDP_L4 : f->ipv6 ? NET_GSO_TCPV6 : NET_GSO_TCPV4,
		.hdr_len = (uint16_t)flow_headers(f), .gso_size = size, .csum_start = (uint16_t)l4_at, .csum_offset = (uint16_t)offset,
	};
}

bool sums_right(const uint8_t *frame, uint32_t len)
{
	bool ipv6 = frame[12] == 0x86;
	uint32_t l4_at = ipv6 ? 54 : 34;
	uint32_t l4_len = ipv6 ? (uint32_t)(frame[18] << 8 | frame[19]) : (uint32_t)(frame[16] << 8 | frame[17]) - 20;
	bool udp = frame[ipv6 ? 20 : 23] == 17;

	return l4_at + l4_len <= len && (ipv6 || slow_sum(frame + 14, 20, 0) == 0xffff) &&
	       slow_sum(frame + l4_at, l4_len, pseudo(frame, ipv6, udp, l4_len)) == 0xffff;
}
