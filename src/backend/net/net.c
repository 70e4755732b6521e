#include "backend/net/net_int.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "backend/net/offload.h"
#include "base/timer.h"

#define TX_FIFO (768 * KIB)
#define RX_FIFO MIB

/*
 * How long a worker that has nothing to do looks on before it sleeps: it grows when work came soon after the worker fell asleep,
 * and goes back to nothing when it did not.
 */
#define SPIN_MIN_NS 10000
#define SPIN_MAX_NS 250000
#define SOON_NS 500000

static const struct net_kind_ops *const kinds[] = {
	[NET_USER] = &net_kind_user,
	[NET_TAP] = &net_kind_tap,
	[NET_LINK] = &net_kind_link,
	[NET_NULL] = &net_kind_null,
};

/* ---- for kinds ---- */

int net_worker_poll(struct net_worker *w, int fd, short events)
{
	if (w->nfds == NET_POLL_MAX)
		return -1;
	w->fds[w->nfds] = (struct pollfd){.fd = fd, .events = events};
	return (int)w->nfds++;
}

static uint8_t *emit_to_fifo(void *ctx, uint32_t len)
{
	struct net_worker *w = ctx;
	struct net_frame *f = net_fifo_reserve(&w->rx, len);

	if (!f)
		return NULL;
	f->len = len;
	f->hdr.flags = NET_HDR_DATA_VALID;
	net_fifo_commit(&w->rx, f); /* filled in by the caller before anybody looks: there is one thread */
	return f->data;
}

void net_worker_receive(struct net_worker *w, const struct net_frame *f)
{
	unsigned accepts = atomic_load(&w->net->accepts);
	struct net_frame *copy;

	if (!net_offload_valid(f, NET_ALL))
		goto drop;
	if (f->hdr.gso_type != NET_GSO_NONE && !net_offload_acceptable(&f->hdr, accepts)) {
		if (!net_segment(f, emit_to_fifo, w))
			goto drop;
		return;
	}
	copy = net_fifo_reserve(&w->rx, f->len);
	if (!copy)
		goto drop;
	copy->len = f->len;
	copy->hdr = f->hdr;
	memcpy(copy->data, f->data, f->len);
	if (!net_offload_acceptable(&copy->hdr, accepts))
		net_csum_finish(copy);
	net_fifo_commit(&w->rx, copy);
	return;
drop:
	net_count(&w->rx_dropped, 1);
}

void net_set_link(struct net *n, bool up)
{
	if (atomic_exchange(&n->link_up, up) != up && n->client.link)
		n->client.link(n->client.ctx, up);
}

/* ---- the worker ---- */

static bool send_frames(struct net_worker *w, int64_t now)
{
	const struct net_client *c = &w->net->client;
	struct net_frame *f;
	bool worked = false;

	if (net_fifo_empty(&w->tx) && bucket_open(&w->tx_limit, now))
		worked = c->fetch(c->ctx, w->index, &w->tx) > 0;
	w->tx_blocked = false;
	while ((f = net_fifo_first(&w->tx)) != NULL) {
		uint32_t len = f->len;

		if (!w->net->ops->send(w, f)) {
			w->tx_blocked = true;
			break;
		}
		bucket_take(&w->tx_limit, len, now);
		net_fifo_drop(&w->tx);
		worked = true;
	}
	return worked;
}

static bool deliver_frames(struct net_worker *w, int64_t now)
{
	const struct net_client *c = &w->net->client;
	uint32_t frames = w->rx.count, bytes = net_fifo_used(&w->rx);

	if (net_fifo_empty(&w->rx))
		return false;
	w->rx_starved = !c->deliver(c->ctx, w->index, &w->rx);
	frames -= w->rx.count;
	bytes -= w->rx.count ? net_fifo_used(&w->rx) : 0;
	net_count(&w->rx_frames, frames);
	net_count(&w->rx_bytes, bytes - frames * (uint32_t)sizeof(struct net_frame));
	bucket_take(&w->rx_limit, bytes - frames * (uint32_t)sizeof(struct net_frame), now);
	return !w->rx_starved;
}

/* One round of everything; true: something was done. */
static bool turn(struct net_worker *w)
{
	int64_t now = clock_now();
	bool worked = send_frames(w, now), open = bucket_open(&w->rx_limit, now);

	w->rx_starved = false;
	if (open)
		worked |= deliver_frames(w, now);
	worked |= w->net->ops->receive(w, !open || w->rx_starved);
	if (open && !w->rx_starved)
		worked |= deliver_frames(w, now);
	return worked;
}

static void adapt_spin(struct net_worker *w, int64_t slept)
{
	if (slept > SOON_NS)
		w->spin_ns = 0;
	else
		w->spin_ns = w->spin_ns ? (int64_t)min_u64((uint64_t)w->spin_ns * 2, SPIN_MAX_NS) : SPIN_MIN_NS;
}

static int64_t limits_timeout(struct net_worker *w, int64_t now)
{
	int64_t tx = bucket_open_at(&w->tx_limit, now), rx = bucket_open_at(&w->rx_limit, now), at = INT64_MAX;

	if (tx > now)
		at = tx;
	if (rx > now && rx < at)
		at = rx;
	return at == INT64_MAX ? at : at - now;
}

static void sleep_on_fds(struct net_worker *w)
{
	const struct net_client *c = &w->net->client;
	int64_t before = clock_now(), timeout = limits_timeout(w, before);
	bool shut = !bucket_open(&w->rx_limit, before), armed;
	struct timespec ts;
	uint64_t count;

	w->fds[0] = (struct pollfd){.fd = w->wake_fd, .events = POLLIN};
	w->nfds = 1;
	w->net->ops->prepare(w, shut || w->rx_starved, &timeout);
	atomic_store(&w->asleep, true);
	/* Behind a shut bucket or a peer that does not take frames, those of the guest can wait. */
	armed = !w->tx_blocked && bucket_open(&w->tx_limit, before);
	if ((armed || w->rx_starved) && c->arm(c->ctx, w->index, w->rx_starved))
		timeout = 0;
	if (atomic_load(&w->net->stop))
		timeout = 0;
	ts = (struct timespec){.tv_sec = timeout / 1000000000, .tv_nsec = timeout % 1000000000};
	ppoll(w->fds, w->nfds, timeout == INT64_MAX ? NULL : &ts, NULL);
	atomic_store(&w->asleep, false);
	if (w->fds[0].revents && read(w->wake_fd, &count, sizeof(count)) < 0)
		count = 0;
	if (w->net->ops->woken)
		w->net->ops->woken(w);
	w->last_work = clock_now();
	adapt_spin(w, w->last_work - before);
}

static void *worker_main(void *arg)
{
	struct net_worker *w = arg;

	w->last_work = clock_now();
	while (!atomic_load(&w->net->stop)) {
		if (turn(w))
			w->last_work = clock_now();
		else if (clock_now() - w->last_work < w->spin_ns)
			__builtin_ia32_pause();
		else
			sleep_on_fds(w);
	}
	return NULL;
}

/* ---- life ---- */

static bool worker_init(struct net_worker *w, struct net *n, unsigned index, uint64_t bps)
{
	int64_t now = clock_now();

	w->net = n;
	w->index = index;
	w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	bucket_init(&w->tx_limit, bps / 8 / n->nqueues, 0, now);
	bucket_init(&w->rx_limit, bps / 8 / n->nqueues, 0, now);
	return net_fifo_init(&w->tx, TX_FIFO) && net_fifo_init(&w->rx, RX_FIFO) && w->wake_fd >= 0;
}

struct net *net_open(const struct net_options *o, struct error *err)
{
	struct net *n = calloc(1, sizeof(*n));

	if (!n) {
		error_set(err, "out of memory");
		return NULL;
	}
	n->ops = kinds[o->kind];
	n->nqueues = o->queues ? o->queues : 1;
	n->active = 1;
	n->workers = calloc(n->nqueues, sizeof(*n->workers));
	for (unsigned i = 0; n->workers && i < n->nqueues; i++)
		n->workers[i].wake_fd = -1;
	if (!n->workers || n->nqueues > NET_QUEUES_MAX) {
		error_set(err, "out of memory");
		net_close(n);
		return NULL;
	}
	for (unsigned i = 0; i < n->nqueues; i++) {
		if (!worker_init(&n->workers[i], n, i, o->bps)) {
			error_set(err, "net: cannot set up a worker: %s", strerror(errno));
			error_hint(err, "raise the limit of open files (ulimit -n)");
			net_close(n);
			return NULL;
		}
	}
	if (!n->ops->open(n, o, err)) {
		net_close(n);
		return NULL;
	}
	return n;
}

bool net_start(struct net *n, const struct net_client *c, struct error *err)
{
	sigset_t all, before;
	int rc = 0;

	n->client = *c;
	atomic_store(&n->stop, false);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (n->started = 0; n->started < n->nqueues && !rc; n->started += !rc)
		rc = pthread_create(&n->workers[n->started].thread, NULL, worker_main, &n->workers[n->started]);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!rc)
		return true;
	error_set(err, "net: cannot start a thread: %s", strerror(rc));
	error_hint(err, "raise the limit of threads (ulimit -u)");
	net_stop(n);
	return false;
}

static void wake(struct net_worker *w)
{
	uint64_t one = 1;

	if (write(w->wake_fd, &one, sizeof(one)) < 0)
		return; /* it is full: the worker has been woken */
}

void net_stop(struct net *n)
{
	atomic_store(&n->stop, true);
	for (unsigned i = 0; i < n->started; i++)
		wake(&n->workers[i]);
	for (unsigned i = 0; i < n->started; i++)
		pthread_join(n->workers[i].thread, NULL);
	n->started = 0;
}

void net_close(struct net *n)
{
	if (!n)
		return;
	net_stop(n);
	if (n->ops)
		n->ops->close(n);
	for (unsigned i = 0; n->workers && i < n->nqueues; i++) {
		net_fifo_fini(&n->workers[i].tx);
		net_fifo_fini(&n->workers[i].rx);
		if (n->workers[i].wake_fd >= 0)
			close(n->workers[i].wake_fd);
	}
	free(n->workers);
	free(n);
}

void net_kick(struct net *n, unsigned q)
{
	if (atomic_load(&n->workers[q].asleep) && atomic_exchange(&n->workers[q].asleep, false))
		wake(&n->workers[q]);
}

void net_set_accepts(struct net *n, unsigned accepts)
{
	if (atomic_exchange(&n->accepts, accepts) == accepts)
		return;
	for (unsigned i = 0; i < n->nqueues; i++)
		net_kick(n, i);
}

void net_set_queues(struct net *n, unsigned pairs)
{
	atomic_store(&n->active, pairs);
	for (unsigned i = 0; i < n->nqueues; i++)
		net_kick(n, i);
}

unsigned net_offloads(const struct net *n) { return n->offloads; }
unsigned net_queues(const struct net *n) { return n->nqueues; }
bool net_link_up(const struct net *n) { return atomic_load(&n->link_up); }
const char *net_description(const struct net *n) { return n->description; }

struct net_stats net_stats(const struct net *n)
{
	struct net_stats sum = {0};

	for (unsigned i = 0; i < n->nqueues; i++) {
		const struct net_worker *w = &n->workers[i];

		sum.tx_frames += atomic_load(&w->tx_frames);
		sum.tx_bytes += atomic_load(&w->tx_bytes);
		sum.rx_frames += atomic_load(&w->rx_frames);
		sum.rx_bytes += atomic_load(&w->rx_bytes);
		sum.tx_dropped += atomic_load(&w->tx_dropped);
		sum.rx_dropped += atomic_load(&w->rx_dropped);
	}
	return sum;
}
