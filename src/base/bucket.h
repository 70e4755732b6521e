/*
 * Token bucket: limits a flow to `rate` tokens (bytes, requests) a second, with bursts of up to `burst` at once.
 *
 * It may go into debt: who finds it open takes what the next request costs, however much, and the bucket stays shut until the
 * debt is paid. So a request larger than the burst still passes, and the mean rate holds.
 * Threads: the owner's. Time is the caller's: ns, as from clock_now.
 */
#ifndef BASE_BUCKET_H
#define BASE_BUCKET_H

#include "base/bits.h"

struct bucket {
	uint64_t rate;  /* tokens a second; 0: no limit */
	int64_t burst;
	int64_t level;  /* tokens; below 0: debt */
	int64_t at;     /* when the level was right */
};

/* burst 0: what the rate gives in 1/10 s, at least 1. */
void bucket_init(struct bucket *b, uint64_t rate, uint64_t burst, int64_t now);
/* When the bucket is open: now or before, or the time to come back. */
int64_t bucket_open_at(struct bucket *b, int64_t now);
static inline bool bucket_open(struct bucket *b, int64_t now) { return bucket_open_at(b, now) <= now; }
void bucket_take(struct bucket *b, uint64_t tokens, int64_t now);

#endif
