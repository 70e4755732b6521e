#include "base/timer.h"

#include <time.h>

int64_t clock_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

void timer_queue_init(struct timer_queue *q)
{
	*q = (struct timer_queue){0};
}

void timer_queue_set_notify(struct timer_queue *q, void (*notify)(void *ctx, int64_t deadline), void *ctx)
{
	q->notify = notify;
	q->notify_ctx = ctx;
}

int64_t timer_queue_deadline(const struct timer_queue *q)
{
	return q->first ? q->first->deadline : TIMER_NEVER;
}

void timer_init(struct timer *t, struct timer_queue *q, void (*fn)(void *ctx), void *ctx)
{
	*t = (struct timer){.queue = q, .deadline = TIMER_NEVER, .fn = fn, .ctx = ctx};
}

static void unlink_timer(struct timer *t)
{
	if (t->deadline == TIMER_NEVER)
		return;
	if (t->prev)
		t->prev->next = t->next;
	else
		t->queue->first = t->next;
	if (t->next)
		t->next->prev = t->prev;
	t->prev = t->next = NULL;
	t->deadline = TIMER_NEVER;
}

static void link_timer(struct timer *t, int64_t deadline)
{
	struct timer *prev = NULL, *next = t->queue->first;

	while (next && next->deadline <= deadline) {
		prev = next;
		next = next->next;
	}
	t->deadline = deadline;
	t->prev = prev;
	t->next = next;
	if (prev)
		prev->next = t;
	else
		t->queue->first = t;
	if (next)
		next->prev = t;
}

void timer_arm(struct timer *t, int64_t deadline)
{
	struct timer_queue *q = t->queue;
	int64_t before = timer_queue_deadline(q);

	unlink_timer(t);
	if (deadline != TIMER_NEVER)
		link_timer(t, deadline);
	if (q->notify && timer_queue_deadline(q) != before)
		q->notify(q->notify_ctx, timer_queue_deadline(q));
}

void timer_cancel(struct timer *t)
{
	timer_arm(t, TIMER_NEVER);
}

void timer_queue_run(struct timer_queue *q, int64_t now)
{
	int64_t before = timer_queue_deadline(q);

	while (q->first && q->first->deadline <= now) {
		struct timer *t = q->first;

		unlink_timer(t);
		t->fn(t->ctx);
	}
	if (q->notify && timer_queue_deadline(q) != before)
		q->notify(q->notify_ctx, timer_queue_deadline(q));
}
