/*
 * Named values that tell what the VMM has done, as their owner gives them to whoever asks. Names, units and words are
 * string literals, or live as long as the owner.
 */
#ifndef BASE_COUNTER_H
#define BASE_COUNTER_H

#include "base/bits.h"

struct counter {
	const char *name; /* lower case, parts joined by dots: "exits.slow" */
	const char *unit; /* "", "bytes" or "ns" */
	const char *help; /* a few words */
	bool gauge;       /* a level of now; else it only grows */
	uint64_t value;
};

struct counter_sink {
	void (*put)(void *ctx, const struct counter *c); /* copies what it keeps */
	void *ctx;
};

static inline void counter_put(const struct counter_sink *out, const char *name, const char *unit, bool gauge, uint64_t value,
			       const char *help)
{
	struct counter c = {.name = name, .unit = unit, .help = help, .gauge = gauge, .value = value};

	out->put(out->ctx, &c);
}

/* A counter of another thread that it alone writes, as a plain aligned word: a whole value, maybe a little old. */
static inline uint64_t counter_peek(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

#endif
