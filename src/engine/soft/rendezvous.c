#include "engine/soft/rendezvous.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wait_while(atomic_uint *word, unsigned value)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(atomic_uint *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

bool rendezvous_init(struct rendezvous *w, unsigned n, void (*nudge)(void *ctx, unsigned member), void *ctx)
{
	*w = (struct rendezvous){.n = n, .nudge = nudge, .ctx = ctx, .owner = RENDEZVOUS_NOBODY};
	w->inside = calloc(n, sizeof(*w->inside));
	pthread_mutex_init(&w->lock, NULL);
	return w->inside != NULL;
}

void rendezvous_fini(struct rendezvous *w)
{
	free(w->inside);
	pthread_mutex_destroy(&w->lock);
}

/* The store of `inside` and the load of `stopping`, and the stopper's two the other way round, are sequentially consistent: one of both sees the other. */
void rendezvous_enter(struct rendezvous *w, unsigned i)
{
	for (;;) {
		atomic_store(&w->inside[i], 1);
		if (!atomic_load(&w->stopping))
			return;
		rendezvous_leave(w, i);
		wait_while(&w->stopping, 1);
	}
}

void rendezvous_leave(struct rendezvous *w, unsigned i)
{
	atomic_store(&w->inside[i], 0);
	if (atomic_load(&w->stopping))
		wake_all(&w->inside[i]);
}

void rendezvous_stop(struct rendezvous *w, int i)
{
	bool inside = false;

	if (i != RENDEZVOUS_NOBODY) {
		if (atomic_load(&w->owner) == i) {
			w->depth++;
			return;
		}
		inside = atomic_load(&w->inside[i]);
		rendezvous_leave(w, (unsigned)i);
	}
	pthread_mutex_lock(&w->lock);
	atomic_store(&w->owner, i);
	w->owner_inside = inside;
	w->depth = 1;
	atomic_store(&w->stopping, 1);
	for (unsigned k = 0; k < w->n; k++)
		if (atomic_load(&w->inside[k]))
			w->nudge(w->ctx, k);
	for (unsigned k = 0; k < w->n; k++)
		while (atomic_load(&w->inside[k]))
			wait_while(&w->inside[k], 1);
	if (inside)
		atomic_store(&w->inside[i], 1);
}

void rendezvous_start(struct rendezvous *w, int i)
{
	if (--w->depth)
		return;
	atomic_store(&w->owner, RENDEZVOUS_NOBODY);
	atomic_store(&w->stopping, 0);
	wake_all(&w->stopping);
	pthread_mutex_unlock(&w->lock);
}
