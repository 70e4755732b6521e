/*
 * The event loop (epoll) for control and slow devices: one per VM, run by one thread.
 *
 * Threads: loop_add/mod/del may be called by any thread; callbacks run in the loop's thread WITHOUT the machine lock
 * (they take it themselves where they touch devices). loop_stop may be called from any thread and from a signal
 * handler.
 */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include "base/bits.h"
#include "base/error.h"

struct loop;

#define LOOP_READ 1u
#define LOOP_WRITE 2u

typedef void (*loop_fn)(void *ctx, unsigned events);

struct loop *loop_new(struct error *err);
void loop_free(struct loop *l);
/* Watch fd (level-triggered). The fd stays the caller's. Hang-ups and errors are reported as the events asked for. */
bool loop_add(struct loop *l, int fd, unsigned events, loop_fn fn, void *ctx, struct error *err);
bool loop_mod(struct loop *l, int fd, unsigned events); /* events 0: paused, hang-ups included */
/*
 * On return the callback does not run, nor will it: waits for one that runs in another thread, so the caller holds no
 * lock that the callback takes.
 */
void loop_del(struct loop *l, int fd);
/* Run until loop_stop. */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);

#endif
