#include "base/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define END_SIGNAL SIGRTMAX /* to the thread alone: it is over */

struct signals {
	sigset_t set;
	int pipe[2];
	pthread_t thread;
	atomic_bool end;
};

static void *wait_for_signals(void *arg)
{
	struct signals *s = arg;

	for (;;) {
		int number;
		uint8_t byte;

		if (sigwait(&s->set, &number))
			continue;
		if (atomic_load(&s->end))
			return NULL;
		byte = (uint8_t)number;
		/* A full pipe holds thousands that nobody has looked at: one more says nothing new. */
		if (write(s->pipe[1], &byte, 1) < 0 && errno != EAGAIN)
			return NULL;
	}
}

struct signals *signals_new(const sigset_t *set, struct error *err)
{
	struct signals *s = calloc(1, sizeof(*s));
	sigset_t all, old;
	int rc;

	if (!s) {
		error_set(err, "out of memory");
		return NULL;
	}
	s->set = *set;
	sigaddset(&s->set, END_SIGNAL);
	if (pipe2(s->pipe, O_NONBLOCK | O_CLOEXEC)) {
		error_set(err, "pipe: %s", strerror(errno));
		free(s);
		return NULL;
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&s->thread, NULL, wait_for_signals, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!rc)
		return s;
	error_set(err, "thread: %s", strerror(rc));
	close(s->pipe[0]);
	close(s->pipe[1]);
	free(s);
	return NULL;
}

void signals_free(struct signals *s)
{
	if (!s)
		return;
	/* not pthread_cancel: the sanitizers take the stack of a thread that is cut off for damaged */
	atomic_store(&s->end, true);
	pthread_kill(s->thread, END_SIGNAL);
	pthread_join(s->thread, NULL);
	close(s->pipe[0]);
	close(s->pipe[1]);
	free(s);
}

int signals_fd(const struct signals *s) { return s->pipe[0]; }

int signals_take(struct signals *s)
{
	uint8_t byte;

	return read(s->pipe[0], &byte, 1) == 1 ? byte : 0;
}
