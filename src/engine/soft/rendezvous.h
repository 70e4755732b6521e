/*
 * Stopping the world: one thread makes every vCPU leave translated code and stand still, does what no vCPU may see half
 * done (frees all code, a locked access that crosses a page), and lets them go on.
 *
 * A vCPU is inside from rendezvous_enter to rendezvous_leave: it may run translated code, and hold pointers into the code cache.
 * Inside it calls rendezvous_pause now and then, when it holds none (the dispatcher does, on request).
 * Threads: member i calls for i only. Nobody may stop the world with a lock held that a member may wait for.
 */
#ifndef ENGINE_SOFT_RENDEZVOUS_H
#define ENGINE_SOFT_RENDEZVOUS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define RENDEZVOUS_NOBODY (-1)

struct rendezvous {
	unsigned n;
	atomic_uint *inside;  /* of each member; a futex word */
	atomic_uint stopping; /* a futex word */
	pthread_mutex_t lock; /* held by who has stopped the world */
	atomic_int owner;
	bool owner_inside;
	unsigned depth;
	void (*nudge)(void *ctx, unsigned member); /* make it call rendezvous_pause soon; any thread */
	void *ctx;
};

bool rendezvous_init(struct rendezvous *w, unsigned n, void (*nudge)(void *ctx, unsigned member), void *ctx);
void rendezvous_fini(struct rendezvous *w);
void rendezvous_enter(struct rendezvous *w, unsigned i);
void rendezvous_leave(struct rendezvous *w, unsigned i);
static inline void rendezvous_pause(struct rendezvous *w, unsigned i)
{
	rendezvous_leave(w, i);
	rendezvous_enter(w, i);
}
/*
 * i: the caller, inside or not; RENDEZVOUS_NOBODY for other threads. While a member waits for its turn another one may have the
 * world to itself: what it knew of the code cache is void. Nests. Returns with all other members outside.
 */
void rendezvous_stop(struct rendezvous *w, int i);
void rendezvous_start(struct rendezvous *w, int i);

#endif
