#include "backend/net/offload.h"

#include <string.h>

enum {
	ETH_LEN = 14, VLAN_LEN = 4, TYPE_IPV4 = 0x0800, TYPE_IPV6 = 0x86dd, TYPE_VLAN = 0x8100, TYPE_QINQ = 0x88a8,
	IPV4_LEN = 20, IPV6_LEN = 40, TCP_LEN = 20, UDP_LEN = 8,
	IPV4_TOTAL = 2, IPV4_ID = 4, IPV4_FRAGMENT = 6, IPV4_PROTOCOL = 9, IPV4_CSUM = 10, IPV4_ADDRESSES = 12,
	IPV6_PAYLOAD = 4, IPV6_NEXT = 6, IPV6_ADDRESSES = 8,
	TCP_SEQ = 4, TCP_DATA = 12, TCP_FLAGS = 13, TCP_CSUM = 16, UDP_TOTAL = 4, UDP_CSUM = 6,
	TCP_FIN = 1, TCP_PSH = 8, TCP_CWR = 0x80,
	SEGMENT_MIN = 8, /* a packet of 64 KiB becomes at most 8192 */
};

static uint16_t be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static void put_be16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
static uint32_t be32(const uint8_t *p) { return (uint32_t)be16(p) << 16 | be16(p + 2); }
static void put_be32(uint8_t *p, uint32_t v) { put_be16(p, v >> 16); put_be16(p + 2, v & 0xffff); }

static uint16_t fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

/* 32-bit words into 64-bit sums: the compiler makes vectors of the four lanes; 2^32 words would fit. */
uint16_t net_sum(const void *buf, size_t len, uint32_t start)
{
	const uint8_t *p = buf;
	uint64_t lane[4] = {start}, sum;

	for (; len >= 16; len -= 16, p += 16) {
		uint32_t word[4];

		memcpy(word, p, 16);
		for (unsigned i = 0; i < 4; i++)
			lane[i] += word[i];
	}
	sum = lane[0] + lane[1] + lane[2] + lane[3];
	for (; len >= 2; len -= 2, p += 2)
		sum += get_le16(p);
	if (len)
		sum += *p;
	return fold(sum);
}

/* Skip Ethernet and up to two VLAN tags; returns the EtherType, 0 when the frame is too short. */
static unsigned l3_of(const uint8_t *data, uint32_t len, unsigned *l3)
{
	unsigned at = ETH_LEN, type;

	if (len < ETH_LEN)
		return 0;
	type = be16(data + 12);
	for (unsigned tags = 0; tags < 2 && (type == TYPE_VLAN || type == TYPE_QINQ); tags++) {
		if (len < at + VLAN_LEN)
			return 0;
		type = be16(data + at + 2);
		at += VLAN_LEN;
	}
	*l3 = at;
	return type;
}

static bool parse_ipv4(const uint8_t *data, uint32_t len, struct net_packet *p)
{
	const uint8_t *ip = data + p->l3;
	unsigned header, total;

	if (len < p->l3 + IPV4_LEN || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 15u) * 4;
	total = be16(ip + IPV4_TOTAL);
	if (header < IPV4_LEN || total < header || total > len - p->l3 || be16(ip + IPV4_FRAGMENT) & 0x3fff)
		return false;
	p->protocol = ip[IPV4_PROTOCOL];
	p->l4 = p->l3 + header;
	p->end = p->l3 + total;
	return true;
}

static bool parse_ipv6(const uint8_t *data, uint32_t len, struct net_packet *p)
{
	const uint8_t *ip = data + p->l3;

	if (len < p->l3 + IPV6_LEN || ip[0] >> 4 != 6 || be16(ip + IPV6_PAYLOAD) > len - p->l3 - IPV6_LEN)
		return false;
	p->ipv6 = true;
	p->protocol = ip[IPV6_NEXT];
	p->l4 = p->l3 + IPV6_LEN;
	p->end = p->l4 + be16(ip + IPV6_PAYLOAD);
	return true;
}

bool net_parse(const uint8_t *data, uint32_t len, struct net_packet *p)
{
	unsigned type, header;

	*p = (struct net_packet){0};
	type = l3_of(data, len, &p->l3);
	p->vlan = p->l3 > ETH_LEN;
	if (!(type == TYPE_IPV4 && parse_ipv4(data, len, p)) && !(type == TYPE_IPV6 && parse_ipv6(data, len, p)))
		return false;
	if (p->protocol == IPPROTO_TCP && p->end - p->l4 >= TCP_LEN)
		header = (unsigned)(data[p->l4 + TCP_DATA] >> 4) * 4;
	else if (p->protocol == IPPROTO_UDP && p->end - p->l4 >= UDP_LEN)
		header = UDP_LEN;
	else
		return false;
	p->payload = p->l4 + header;
	return (p->protocol == IPPROTO_UDP || header >= TCP_LEN) && p->payload <= p->end;
}

/* ---- what a frame asks for ---- */

static unsigned needed(const struct net_hdr *h)
{
	unsigned bits = h->flags & NET_HDR_NEEDS_CSUM ? NET_CSUM : 0;

	switch (h->gso_type & ~NET_GSO_ECN) {
	case NET_GSO_NONE: return bits;
	case NET_GSO_TCPV4: bits |= NET_TSO4; break;
	case NET_GSO_TCPV6: bits |= NET_TSO6; break;
	case NET_GSO_UDP_L4: bits |= NET_USO; break;
	default: return ~0u; /* beyond NET_ALL */
	}
	return bits | (h->gso_type & NET_GSO_ECN ? NET_TSO_ECN : 0);
}

bool net_offload_acceptable(const struct net_hdr *h, unsigned accepts) { return !(needed(h) & ~accepts); }

bool net_offload_valid(const struct net_frame *f, unsigned allowed)
{
	const struct net_hdr *h = &f->hdr;

	if (f->len < NET_FRAME_MIN || f->len > NET_FRAME_MAX || needed(h) & ~allowed)
		return false;
	if (h->flags & NET_HDR_NEEDS_CSUM && (uint32_t)h->csum_start + h->csum_offset + 2 > f->len)
		return false;
	if (h->gso_type == NET_GSO_NONE)
		return true;
	/* 5.1.6.2: segmentation needs a checksum in each segment. */
	return h->gso_type != NET_GSO_ECN && h->flags & NET_HDR_NEEDS_CSUM && h->gso_size >= SEGMENT_MIN;
}

/* ---- checksums ---- */

void net_csum_finish(struct net_frame *f)
{
	struct net_hdr *h = &f->hdr;
	uint16_t sum;

	if (!(h->flags & NET_HDR_NEEDS_CSUM))
		return;
	sum = (uint16_t)~net_sum(f->data + h->csum_start, f->len - h->csum_start, 0);
	/* 0 would mean "none" in UDP; all ones is the same number, in TCP too. */
	put_le16(f->data + h->csum_start + h->csum_offset, sum ? sum : 0xffff);
	h->flags &= (uint8_t)~NET_HDR_NEEDS_CSUM;
	h->csum_start = h->csum_offset = 0;
}

/* RFC 793, RFC 8200 8.1; len: of TCP or UDP with payload. */
static uint16_t l4_sum(const uint8_t *data, const struct net_packet *p, uint32_t len)
{
	const uint8_t *ip = data + p->l3;
	uint32_t sum = (uint32_t)__builtin_bswap16(p->protocol) + __builtin_bswap16((uint16_t)len);

	sum = net_sum(p->ipv6 ? ip + IPV6_ADDRESSES : ip + IPV4_ADDRESSES, p->ipv6 ? 32 : 8, sum);
	return net_sum(data + p->l4, len, sum);
}

static void fill_l4(uint8_t *data, const struct net_packet *p)
{
	uint8_t *field = data + p->l4 + (p->protocol == IPPROTO_TCP ? TCP_CSUM : UDP_CSUM);
	uint16_t sum;

	put_le16(field, 0);
	sum = (uint16_t)~l4_sum(data, p, p->end - p->l4);
	put_le16(field, sum ? sum : 0xffff);
}

static void fill_ipv4(uint8_t *ip)
{
	put_le16(ip + IPV4_CSUM, 0);
	put_le16(ip + IPV4_CSUM, (uint16_t)~net_sum(ip, (ip[0] & 15u) * 4, 0));
}

bool net_csum_fill(uint8_t *data, uint32_t len)
{
	struct net_packet p;

	if (!net_parse(data, len, &p))
		return false;
	fill_l4(data, &p);
	return true;
}

/* ---- segmentation ---- */

static bool is_what_gso_says(const struct net_frame *f, const struct net_packet *p)
{
	switch (f->hdr.gso_type & ~NET_GSO_ECN) {
	case NET_GSO_TCPV4: return p->protocol == IPPROTO_TCP && !p->ipv6;
	case NET_GSO_TCPV6: return p->protocol == IPPROTO_TCP && p->ipv6;
	case NET_GSO_UDP_L4: return p->protocol == IPPROTO_UDP;
	default: return false;
	}
}

/* Headers of the segment at `off` of the payload, where data holds the original headers. */
static void set_headers(uint8_t *data, const struct net_packet *p, unsigned index, uint32_t off, bool last)
{
	uint8_t *ip = data + p->l3, *l4 = data + p->l4;

	if (p->ipv6) {
		put_be16(ip + IPV6_PAYLOAD, p->end - p->l4);
	} else {
		put_be16(ip + IPV4_TOTAL, p->end - p->l3);
		put_be16(ip + IPV4_ID, be16(ip + IPV4_ID) + index);
		fill_ipv4(ip);
	}
	if (p->protocol == IPPROTO_TCP) {
		put_be32(l4 + TCP_SEQ, be32(l4 + TCP_SEQ) + off);
		if (!last)
			l4[TCP_FLAGS] &= (uint8_t)~(TCP_FIN | TCP_PSH);
		if (index)
			l4[TCP_FLAGS] &= (uint8_t)~TCP_CWR; /* RFC 3168 6.1.2: once */
	} else {
		put_be16(l4 + UDP_TOTAL, p->end - p->l4);
	}
	fill_l4(data, p);
}

bool net_segment(const struct net_frame *f, uint8_t *(*emit)(void *ctx, uint32_t len), void *ctx)
{
	uint32_t total, size = f->hdr.gso_size, off = 0;
	struct net_packet p;

	if (size < SEGMENT_MIN || !net_parse(f->data, f->len, &p) || !is_what_gso_says(f, &p))
		return false;
	total = p.end - p.payload;
	for (unsigned i = 0; i == 0 || off < total; i++) {
		uint32_t n = (uint32_t)min_u64(size, total - off);
		struct net_packet part = p;
		uint8_t *out = emit(ctx, p.payload + n);

		if (!out)
			break;
		part.end = p.payload + n;
		memcpy(out, f->data, p.payload);
		memcpy(out + p.payload, f->data + p.payload + off, n);
		set_headers(out, &part, i, off, off + n == total);
		off += n;
	}
	return true;
}
