/*
 * Inside backend/net: the worker (net.c) and what a kind of back end implements.
 *
 * A kind's functions run in the worker of their queue pair and never block. `open` and `close` run without workers.
 */
#ifndef BACKEND_NET_NET_INT_H
#define BACKEND_NET_NET_INT_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "backend/net/net.h"
#include "base/bucket.h"

#define NET_POLL_MAX 1024 /* file descriptors of one worker */

struct net_worker {
	struct net *net;
	unsigned index;
	pthread_t thread;
	int wake_fd;
	_Atomic bool asleep;
	struct net_fifo tx, rx; /* guest to peer, peer to guest */
	bool tx_blocked;        /* the peer does not take the first frame of tx */
	bool rx_starved;        /* the guest has no room for the first frame of rx */
	struct bucket tx_limit, rx_limit; /* bytes */
	int64_t spin_ns, last_work;
	_Atomic uint64_t tx_frames, tx_bytes, rx_frames, rx_bytes, tx_dropped, rx_dropped;
	struct pollfd fds[NET_POLL_MAX]; /* [0] is wake_fd */
	unsigned nfds;
};

struct net_kind_ops {
	bool (*open)(struct net *n, const struct net_options *o, struct error *err);
	void (*close)(struct net *n); /* also after a failed open */
	/* Take the first frame of tx (count it or drop it, by the stats); false: not now. */
	bool (*send)(struct net_worker *w, struct net_frame *f);
	/* Put what came into rx. `blocked`: the guest takes nothing at the moment. True: something was done. */
	bool (*receive)(struct net_worker *w, bool blocked);
	/* Add to w->fds what to sleep on; may lower *timeout_ns. */
	void (*prepare)(struct net_worker *w, bool blocked, int64_t *timeout_ns);
	/* The worker woke up. */
	void (*woken)(struct net_worker *w);
};

struct net {
	const struct net_kind_ops *ops;
	void *state; /* the kind's */
	unsigned nqueues, offloads;
	char description[160];
	struct net_client client;
	struct net_worker *workers;
	unsigned started;
	_Atomic bool stop, link_up;
	_Atomic unsigned accepts, active; /* active: queue pairs in use */
};

extern const struct net_kind_ops net_kind_user, net_kind_tap, net_kind_link, net_kind_null;

/* For kinds, in prepare: watch fd; -1: the table is full. Returns its index in w->fds. */
int net_worker_poll(struct net_worker *w, int fd, short events);
/* For kinds: a frame from a peer who is not to be trusted lies at `f`: check it, make it acceptable to the client, and put it into rx. */
void net_worker_receive(struct net_worker *w, const struct net_frame *f);
void net_set_link(struct net *n, bool up);

static inline void net_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

#endif
