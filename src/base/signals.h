/*
 * Signals of the process as something that the event loop can watch.
 *
 * Not a signalfd: the kernel wakes whoever polls one for every signal of the process, SIGSEGV included, and the soft
 * engine takes a SIGSEGV for each page that the guest touches. A thread waits by sigwait instead, and passes the numbers
 * on.
 *
 * Threads: the caller has the signals of the set blocked in all threads; each function may be called by any thread.
 */
#ifndef BASE_SIGNALS_H
#define BASE_SIGNALS_H

#include <signal.h>

#include "base/bits.h"
#include "base/error.h"

struct signals;

struct signals *signals_new(const sigset_t *set, struct error *err);
void signals_free(struct signals *s);
/* Readable when a signal has come. It stays this object's. */
int signals_fd(const struct signals *s);
/* The number of the next signal, 0 when none is left. Never blocks. */
int signals_take(struct signals *s);

#endif
