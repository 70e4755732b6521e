#include "base/bucket.h"

#define SECOND INT64_C(1000000000)
#define TOKENS_MAX (INT64_C(1) << 61)

void bucket_init(struct bucket *b, uint64_t rate, uint64_t burst, int64_t now)
{
	if (!burst)
		burst = max_u64(rate / 10, 1);
	burst = min_u64(burst, (uint64_t)TOKENS_MAX);
	*b = (struct bucket){.rate = rate, .burst = (int64_t)burst, .level = (int64_t)burst, .at = now};
}

static void refill(struct bucket *b, int64_t now)
{
	uint64_t gained;

	if (now <= b->at)
		return;
	/* A token's fraction is not lost: `at` moves only by the time that whole tokens took. */
	gained = mul_div_u64((uint64_t)(now - b->at), b->rate, (uint64_t)SECOND);
	if (!gained)
		return;
	if (gained >= (uint64_t)(b->burst - b->level)) {
		b->level = b->burst;
		b->at = now;
		return;
	}
	b->level += (int64_t)gained;
	b->at += (int64_t)mul_div_u64(gained, (uint64_t)SECOND, b->rate);
}

int64_t bucket_open_at(struct bucket *b, int64_t now)
{
	if (!b->rate)
		return now;
	refill(b, now);
	if (b->level > 0)
		return now;
	/* Until there is one whole token. */
	return b->at + (int64_t)min_u64(mul_div_u64((uint64_t)(1 - b->level), (uint64_t)SECOND, b->rate) + 1, INT64_MAX / 4);
}

void bucket_take(struct bucket *b, uint64_t tokens, int64_t now)
{
	if (!b->rate)
		return;
	refill(b, now);
	b->level -= (int64_t)min_u64(tokens, (uint64_t)TOKENS_MAX);
	if (b->level < -TOKENS_MAX)
		b->level = -TOKENS_MAX;
}
