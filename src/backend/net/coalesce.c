#include "backend/net/coalesce.h"

#include <string.h>

#include "backend/net/offload.h"

enum { TCP_SEQ = 4, TCP_ACK = 8, TCP_FLAGS = 13, TCP_WINDOW = 14, TCP_CSUM = 16, TCP_HEADER = 20, ACK = 0x10, PSH = 8 };

static uint32_t be32(const uint8_t *p) { return __builtin_bswap32(get_le32(p)); }

/* Can a segment be joined at all? */
static bool plain(const uint8_t *d, uint32_t len, const struct net_packet *p)
{
	return p->protocol == IPPROTO_TCP && !p->vlan && p->end == len && p->payload < p->end &&
	       (d[p->l4 + TCP_FLAGS] & ~PSH) == ACK && (p->ipv6 || p->l4 - p->l3 == 20);
}

/* Everything in the headers but lengths, checksums, the IPv4 identification, sequence number and PSH. */
static bool same_headers(const uint8_t *a, const uint8_t *b, const struct net_packet *p)
{
	const uint8_t *ai = a + p->l3, *bi = b + p->l3, *at = a + p->l4, *bt = b + p->l4;
	bool ip = p->ipv6 ? !memcmp(ai, bi, 4) && !memcmp(ai + 6, bi + 6, 34)
			  : !memcmp(ai, bi, 2) && !memcmp(ai + 6, bi + 6, 4) && !memcmp(ai + 12, bi + 12, 8);

	return ip && !memcmp(a, b, p->l3) && !memcmp(at, bt, 4) && !memcmp(at + TCP_ACK, bt + TCP_ACK, 5) &&
	       !memcmp(at + TCP_WINDOW, bt + TCP_WINDOW, 2) && !memcmp(at + 18, bt + 18, p->payload - p->l4 - 18);
}

/* After a join: lengths, and the pseudo-header's sum where the guest's stack expects it (virtio 1.2, 5.1.6.4). */
static void set_lengths(struct net_frame *f, const struct net_packet *p)
{
	uint8_t *ip = f->data + p->l3, *tcp = f->data + p->l4;
	uint32_t l4_len = f->len - p->l4, sum = __builtin_bswap16((uint16_t)l4_len) + __builtin_bswap16(IPPROTO_TCP);

	if (p->ipv6) {
		put_le16(ip + 4, __builtin_bswap16((uint16_t)l4_len));
		sum = net_sum(ip + 8, 32, sum);
	} else {
		put_le16(ip + 2, __builtin_bswap16((uint16_t)(f->len - p->l3)));
		put_le16(ip + 10, 0);
		put_le16(ip + 10, (uint16_t)~net_sum(ip, 20, 0));
		sum = net_sum(ip + 12, 8, sum);
	}
	put_le16(tcp + TCP_CSUM, (uint16_t)sum);
}

static bool join(struct net_fifo *f, const uint8_t *data, const struct net_packet *p, unsigned accepts)
{
	struct net_frame *last = net_fifo_last(f);
	uint32_t more = p->end - p->payload, old, size;

	if (!last || !last->coalesced || !(accepts & (p->ipv6 ? NET_TSO6 : NET_TSO4)) || !(accepts & NET_CSUM))
		return false;
	old = last->len;
	if (old <= p->payload) /* its headers end elsewhere */
		return false;
	size = last->hdr.gso_size ? last->hdr.gso_size : old - p->payload;
	/* All segments but the last are of one size. */
	if ((old - p->payload) % size || more > size || old - p->l3 + more > 65535)
		return false;
	if (last->data[p->l4 + TCP_FLAGS] & PSH || !same_headers(last->data, data, p) ||
	    be32(data + p->l4 + TCP_SEQ) != be32(last->data + p->l4 + TCP_SEQ) + (old - p->payload))
		return false;
	if (!net_fifo_grow(f, more))
		return false;
	memcpy(last->data + old, data + p->payload, more);
	last->data[p->l4 + TCP_FLAGS] |= data[p->l4 + TCP_FLAGS];
	last->hdr = (struct net_hdr){.flags = NET_HDR_NEEDS_CSUM, .gso_type = p->ipv6 ? NET_GSO_TCPV6 : NET_GSO_TCPV4,
				     .hdr_len = (uint16_t)p->payload, .gso_size = (uint16_t)size,
				     .csum_start = (uint16_t)p->l4, .csum_offset = TCP_CSUM};
	last->coalesced++;
	set_lengths(last, p);
	return true;
}

bool net_coalesce(struct net_fifo *f, const uint8_t *data, uint32_t len, unsigned accepts)
{
	struct net_packet p;
	struct net_frame *frame;
	bool joinable = net_parse(data, len, &p) && plain(data, len, &p);

	if (joinable && join(f, data, &p, accepts))
		return true;
	frame = net_fifo_reserve(f, len);
	if (!frame)
		return false;
	frame->len = len;
	frame->coalesced = joinable;
	frame->hdr.flags = NET_HDR_DATA_VALID;
	memcpy(frame->data, data, len);
	net_fifo_commit(f, frame);
	return true;
}
