/*
 * Random numbers and random frames, for the fuzzers of networks.
 */
#ifndef TESTS_FUZZ_NET_FUZZ_H
#define TESTS_FUZZ_NET_FUZZ_H

#include <string.h>

#include "backend/net/net.h"

struct rng {
	uint64_t s;
};

static inline uint64_t next(struct rng *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return r->s * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

static inline uint64_t below(struct rng *r, uint64_t n) { return next(r) % n; }

/* Mostly TCP or UDP over IPv4 or IPv6 that could be true, then damaged. */
static inline uint32_t random_frame(struct rng *r, uint8_t *d, struct net_hdr *hdr)
{
	uint32_t len = (uint32_t)(below(r, 4) ? 60 + below(r, 3000) : 14 + below(r, NET_FRAME_MAX - 13)), l3 = 14;
	bool ipv6 = below(r, 2), udp = below(r, 2);
	static const uint16_t sizes[] = {0, 1, 8, 100, 536, 1460, 9000, 65535};

	for (uint32_t i = 0; i < len && i < 200; i++)
		d[i] = (uint8_t)next(r);
	memcpy(d + 12, ipv6 ? "\x86\xdd" : "\x08\x00", 2);
	if (len > l3 + 60) {
		uint8_t *ip = d + l3, *l4 = ip + (ipv6 ? 40 : 20);
		uint32_t l3_len = len - l3;

		ip[0] = ipv6 ? 0x60 : 0x45;
		ip[ipv6 ? 6 : 9] = udp ? 17 : 6;
		ip[ipv6 ? 4 : 2] = (uint8_t)((ipv6 ? l3_len - 40 : l3_len) >> 8);
		ip[ipv6 ? 5 : 3] = (uint8_t)(ipv6 ? l3_len - 40 : l3_len);
		if (!ipv6)
			ip[6] = ip[7] = 0;
		if (!udp) {
			l4[12] = (uint8_t)((5 + below(r, 4)) << 4);
			l4[13] = 0x10;
		}
	}
	for (unsigned n = (unsigned)below(r, 4); n; n--)
		d[below(r, len < 80 ? len : 80)] = (uint8_t)next(r);
	*hdr = (struct net_hdr){.flags = (uint8_t)below(r, 4), .gso_type = (uint8_t)(below(r, 8) ? below(r, 6) | below(r, 2) << 7 : next(r)),
				.gso_size = below(r, 8) ? sizes[below(r, ARRAY_LEN(sizes))] : (uint16_t)next(r),
				.csum_start = (uint16_t)(below(r, 4) ? l3 + (ipv6 ? 40 : 20) : next(r)),
				.csum_offset = (uint16_t)(below(r, 4) ? (udp ? 6 : 16) : next(r))};
	return len;
}

#endif
