/*
 * Timers on CLOCK_MONOTONIC for device models, one queue per VM.
 *
 * Threads: every call is made with the machine lock held. The queue drives nothing by itself: whoever registered
 * `notify` is told when the earliest deadline changes, waits for it by its own means and calls timer_queue_run.
 * (soft: the vCPU thread, so that no cross-core wake-up is needed; kvm: the event loop.)
 * Ownership: a struct timer lies in its device; the queue only links it.
 */
#ifndef BASE_TIMER_H
#define BASE_TIMER_H

#include "base/bits.h"

#define TIMER_NEVER INT64_MAX

struct timer_queue;

struct timer {
	struct timer_queue *queue;
	struct timer *prev, *next; /* sorted by deadline */
	int64_t deadline;          /* ns on CLOCK_MONOTONIC, TIMER_NEVER when not armed */
	void (*fn)(void *ctx);
	void *ctx;
};

struct timer_queue {
	struct timer *first;
	void (*notify)(void *ctx, int64_t deadline); /* may be NULL; deadline may be TIMER_NEVER */
	void *notify_ctx;
};

/* ns since an arbitrary start, never goes back; VM-wide host clock. */
int64_t clock_now(void);

void timer_queue_init(struct timer_queue *q);
void timer_queue_set_notify(struct timer_queue *q, void (*notify)(void *ctx, int64_t deadline), void *ctx);
int64_t timer_queue_deadline(const struct timer_queue *q);
/* Run the callbacks that are due at `now`; a callback may re-arm its timer. */
void timer_queue_run(struct timer_queue *q, int64_t now);

void timer_init(struct timer *t, struct timer_queue *q, void (*fn)(void *ctx), void *ctx);
void timer_arm(struct timer *t, int64_t deadline); /* re-arms when already armed; TIMER_NEVER cancels */
void timer_cancel(struct timer *t);

#endif
