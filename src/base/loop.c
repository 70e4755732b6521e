#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BATCH 16
#define WAKE_KEY UINT64_MAX

struct watch {
	struct watch *next;
	int fd;
	unsigned events;
	uint32_t id; /* tells a reused fd number from the one an event was made for */
	loop_fn fn;
	void *ctx;
};

struct loop {
	int epfd, wakefd;
	atomic_bool stop;
	pthread_mutex_t lock; /* guards what follows */
	struct watch *watches;
	uint32_t next_id;
	uint64_t active;  /* key of the watch whose callback runs, or WAKE_KEY */
	pthread_t runner; /* while active */
	pthread_cond_t idle;
};

static uint32_t to_epoll(unsigned events)
{
	return (events & LOOP_READ ? EPOLLIN : 0) | (events & LOOP_WRITE ? EPOLLOUT : 0);
}

static uint64_t watch_key(const struct watch *w)
{
	return (uint64_t)w->id << 32 | (uint32_t)w->fd;
}

struct loop *loop_new(struct error *err)
{
	struct loop *l = calloc(1, sizeof(*l));
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = WAKE_KEY};

	if (!l) {
		error_set(err, "event loop: out of memory");
		return NULL;
	}
	pthread_mutex_init(&l->lock, NULL);
	pthread_cond_init(&l->idle, NULL);
	l->active = WAKE_KEY;
	l->epfd = epoll_create1(EPOLL_CLOEXEC);
	l->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->epfd < 0 || l->wakefd < 0 || epoll_ctl(l->epfd, EPOLL_CTL_ADD, l->wakefd, &ev) < 0) {
		error_set(err, "event loop: %s", strerror(errno));
		loop_free(l);
		return NULL;
	}
	return l;
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	while (l->watches) {
		struct watch *w = l->watches;

		l->watches = w->next;
		free(w);
	}
	if (l->epfd >= 0)
		close(l->epfd);
	if (l->wakefd >= 0)
		close(l->wakefd);
	pthread_cond_destroy(&l->idle);
	pthread_mutex_destroy(&l->lock);
	free(l);
}

static struct watch **find_locked(struct loop *l, int fd)
{
	struct watch **p = &l->watches;

	while (*p && (*p)->fd != fd)
		p = &(*p)->next;
	return p;
}

/* Bring epoll from w->events to events. A watch without events is not in epoll at all: it would report hang-ups. */
static bool apply_locked(struct loop *l, struct watch *w, unsigned events)
{
	struct epoll_event ev = {.events = to_epoll(events), .data.u64 = watch_key(w)};
	int op = EPOLL_CTL_MOD;

	if (events == w->events)
		return true;
	if (!events)
		op = EPOLL_CTL_DEL;
	else if (!w->events)
		op = EPOLL_CTL_ADD;
	if (epoll_ctl(l->epfd, op, w->fd, &ev) < 0)
		return false;
	w->events = events;
	return true;
}

bool loop_add(struct loop *l, int fd, unsigned events, loop_fn fn, void *ctx, struct error *err)
{
	struct watch *w = calloc(1, sizeof(*w));
	bool ok = false;

	if (!w)
		return error_set(err, "event loop: out of memory");
	pthread_mutex_lock(&l->lock);
	*w = (struct watch){.fd = fd, .id = l->next_id++ & INT32_MAX, .fn = fn, .ctx = ctx};
	if (*find_locked(l, fd)) {
		error_set(err, "event loop: fd %d is watched already", fd);
	} else if (!apply_locked(l, w, events)) {
		error_set(err, "event loop: cannot watch fd %d: %s", fd, strerror(errno));
	} else {
		w->next = l->watches;
		l->watches = w;
		ok = true;
	}
	pthread_mutex_unlock(&l->lock);
	if (!ok)
		free(w);
	return ok;
}

bool loop_mod(struct loop *l, int fd, unsigned events)
{
	struct watch *w;
	bool ok;

	pthread_mutex_lock(&l->lock);
	w = *find_locked(l, fd);
	ok = w && apply_locked(l, w, events);
	pthread_mutex_unlock(&l->lock);
	return ok;
}

void loop_del(struct loop *l, int fd)
{
	struct watch **p, *w;
	uint64_t key;

	pthread_mutex_lock(&l->lock);
	p = find_locked(l, fd);
	w = *p;
	if (w) {
		key = watch_key(w);
		apply_locked(l, w, 0);
		*p = w->next;
		free(w);
		while (l->active == key && !pthread_equal(l->runner, pthread_self()))
			pthread_cond_wait(&l->idle, &l->lock);
	}
	pthread_mutex_unlock(&l->lock);
}

static void dispatch(struct loop *l, const struct epoll_event *ev)
{
	struct watch *w, copy;
	unsigned events = 0;
	bool live;

	pthread_mutex_lock(&l->lock);
	w = *find_locked(l, (int)(uint32_t)ev->data.u64);
	live = w && watch_key(w) == ev->data.u64;
	if (live) {
		copy = *w;
		l->active = watch_key(w);
		l->runner = pthread_self();
	}
	pthread_mutex_unlock(&l->lock);
	if (!live)
		return;
	if (ev->events & EPOLLIN)
		events |= LOOP_READ;
	if (ev->events & EPOLLOUT)
		events |= LOOP_WRITE;
	if (ev->events & (EPOLLHUP | EPOLLERR))
		events |= LOOP_READ | LOOP_WRITE;
	events &= copy.events;
	if (events)
		copy.fn(copy.ctx, events);
	pthread_mutex_lock(&l->lock);
	l->active = WAKE_KEY;
	pthread_cond_broadcast(&l->idle);
	pthread_mutex_unlock(&l->lock);
}

void loop_run(struct loop *l)
{
	struct epoll_event evs[BATCH];

	while (!atomic_load(&l->stop)) {
		int n = epoll_wait(l->epfd, evs, BATCH, -1);

		for (int i = 0; i < n && !atomic_load(&l->stop); i++)
			if (evs[i].data.u64 != WAKE_KEY)
				dispatch(l, &evs[i]);
	}
}

void loop_stop(struct loop *l)
{
	int saved = errno;

	atomic_store(&l->stop, true);
	if (eventfd_write(l->wakefd, 1) < 0 && errno != EAGAIN)
		abort(); /* EAGAIN: the counter is full, the loop is awake already */
	errno = saved;
}
