/*
 * A cable between two VMs: a unix socket (SOCK_SEQPACKET) at a path that both name. Who comes first listens, the other
 * connects; when one goes, the link is down until it, or another, is back, and who is left takes the path over if need be.
 *
 * Protocol: both sides send HELLO, then each message is a struct net_hdr and a frame. The peer is not trusted.
 */
#include "backend/net/net_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "backend/net/offload.h"
#include "base/log.h"
#include "base/timer.h"

#define HELLO "doppel-link 1"
#define FRAMES_PER_TURN 64
#define RETRY_NS INT64_C(500000000)
#define LOCK_TRIES 50
#define SEND_BUFFER (1024 * 1024)

struct link {
	struct sockaddr_un addr;
	int listener, peer;
	bool greeted;       /* the peer's HELLO came */
	bool told_refused;
	int64_t retry_at;
	ino_t inode;        /* of the listener's path */
	struct net_frame *scratch;
};

/* ---- connecting ---- */

/* The path's folder is locked while its sockets change, so that two VMs that start at once agree who listens. */
static int lock_folder(const char *path)
{
	char folder[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char *slash;
	int fd;

	snprintf(folder, sizeof(folder), "%s", path);
	slash = strrchr(folder, '/');
	if (slash)
		slash[slash == folder] = '\0';
	fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* Who holds it for long is not one of us: go on without. */
	for (unsigned tries = 0; fd >= 0 && tries < LOCK_TRIES && flock(fd, LOCK_EX | LOCK_NB) < 0; tries++)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	return fd;
}

static int new_socket(void) { return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

static void have_peer(struct link *l, int fd)
{
	int size = SEND_BUFFER;

	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	l->peer = fd;
	l->greeted = false;
	if (send(fd, HELLO, sizeof(HELLO), MSG_NOSIGNAL) < 0)
		return; /* the peer has gone: found when reading */
}

static bool listen_at(struct link *l)
{
	struct stat st;
	mode_t mask;
	int fd = new_socket(), rc;

	if (fd < 0)
		return false;
	mask = umask(0177);
	rc = bind(fd, (struct sockaddr *)&l->addr, sizeof(l->addr));
	umask(mask);
	if (rc < 0 || listen(fd, 4) < 0) {
		rc = errno;
		close(fd);
		errno = rc;
		return false;
	}
	l->inode = stat(l->addr.sun_path, &st) == 0 ? st.st_ino : 0;
	l->listener = fd;
	return true;
}

/* Connect, or listen where nobody does. False with errno: neither. */
static bool attach(struct link *l)
{
	int folder = lock_folder(l->addr.sun_path), fd = new_socket(), e = 0;
	struct stat st;

	if (folder < 0 || fd < 0) {
		e = errno;
	} else if (connect(fd, (struct sockaddr *)&l->addr, sizeof(l->addr)) == 0) {
		have_peer(l, fd);
		fd = -1;
	} else if (errno == ENOENT || errno == ECONNREFUSED) {
		/* Refused: its listener is dead. Only a socket is ever removed. */
		if (errno == ECONNREFUSED && lstat(l->addr.sun_path, &st) == 0) {
			if (!S_ISSOCK(st.st_mode))
				e = EEXIST;
			else
				unlink(l->addr.sun_path);
		}
		if (!e && !listen_at(l))
			e = errno;
	} else {
		e = errno;
	}
	if (fd >= 0)
		close(fd);
	if (folder >= 0)
		close(folder);
	errno = e;
	return !e;
}

static bool link_open(struct net *n, const struct net_options *o, struct error *err)
{
	struct link *l = calloc(1, sizeof(*l));
	int e;

	n->state = l;
	if (!l)
		return error_set(err, "out of memory");
	l->listener = l->peer = -1;
	l->scratch = malloc(sizeof(*l->scratch) + NET_FRAME_MAX);
	l->addr.sun_family = AF_UNIX;
	if (!l->scratch)
		return error_set(err, "out of memory");
	if (!o->name[0] || strlen(o->name) >= sizeof(l->addr.sun_path)) {
		error_set(err, "--net link:%.64s: the path must have 1 to %zu characters", o->name, sizeof(l->addr.sun_path) - 1);
		return error_hint(err, "choose a shorter path");
	}
	snprintf(l->addr.sun_path, sizeof(l->addr.sun_path), "%s", o->name);
	if (!attach(l)) {
		e = errno;
		error_set(err, "--net link:%s: %s", o->name, strerror(e));
		if (e == EEXIST || e == ENOTSOCK)
			return error_hint(err, "something else than a socket is in this place: choose another path");
		if (e == EPROTOTYPE)
			return error_hint(err, "a socket of another program is in this place: choose another path");
		return error_hint(err, "choose a path in a folder where you may write, the same for both VMs");
	}
	n->offloads = NET_ALL;
	snprintf(n->description, sizeof(n->description), "link %s", o->name);
	return true;
}

static void link_close(struct net *n)
{
	struct link *l = n->state;
	struct stat st;
	int folder;

	if (!l)
		return;
	if (l->peer >= 0)
		close(l->peer);
	if (l->listener >= 0) {
		folder = lock_folder(l->addr.sun_path);
		if (stat(l->addr.sun_path, &st) == 0 && st.st_ino == l->inode)
			unlink(l->addr.sun_path);
		close(l->listener);
		if (folder >= 0)
			close(folder);
	}
	free(l->scratch);
	free(l);
}

/* ---- the worker's side ---- */

static void lose_peer(struct net_worker *w)
{
	struct link *l = w->net->state;

	close(l->peer);
	l->peer = -1;
	l->retry_at = clock_now() + RETRY_NS;
	if (!l->greeted && l->listener < 0 && !l->told_refused) {
		log_warn("%s: two VMs are there already: the link stays down until one of them goes", w->net->description);
		l->told_refused = true;
	}
	net_set_link(w->net, false);
}

static void accept_peer(struct link *l)
{
	int fd = accept4(l->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (l->peer >= 0)
		close(fd); /* a cable has two ends */
	else
		have_peer(l, fd);
}

static void connect_again(struct link *l)
{
	int64_t now = clock_now();

	if (now < l->retry_at)
		return;
	l->retry_at = now + RETRY_NS;
	attach(l);
}

static bool link_send(struct net_worker *w, struct net_frame *f)
{
	struct link *l = w->net->state;
	ssize_t sent = -1;

	if (l->peer >= 0 && l->greeted) {
		sent = send(l->peer, net_frame_wire(f), sizeof(f->hdr) + f->len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno == EAGAIN)
			return false;
	}
	/* A dead peer is found by reading. */
	net_count(sent < 0 ? &w->tx_dropped : &w->tx_frames, 1);
	net_count(&w->tx_bytes, sent < 0 ? 0 : f->len);
	return true;
}

/* The first message of a peer. */
static bool greet(struct net_worker *w)
{
	struct link *l = w->net->state;
	char hello[sizeof(HELLO) + 1];
	ssize_t len = recv(l->peer, hello, sizeof(hello), 0);

	if (len < 0 && errno == EAGAIN)
		return false;
	if (len != sizeof(HELLO) || memcmp(hello, HELLO, sizeof(HELLO))) {
		lose_peer(w);
		return true;
	}
	l->greeted = true;
	l->told_refused = false;
	net_set_link(w->net, true);
	return true;
}

/* False: nothing there. */
static bool receive_one(struct net_worker *w)
{
	struct link *l = w->net->state;
	struct net_frame *f = net_fifo_reserve(&w->rx, NET_FRAME_MAX);
	ssize_t len;

	if (!f)
		return false;
	len = recv(l->peer, net_frame_wire(f), sizeof(f->hdr) + NET_FRAME_MAX, MSG_TRUNC);
	if (len < 0 && errno == EAGAIN)
		return false;
	if (len <= 0) {
		lose_peer(w);
		return false;
	}
	if (len < (ssize_t)(sizeof(f->hdr) + NET_FRAME_MIN) || len > (ssize_t)(sizeof(f->hdr) + NET_FRAME_MAX)) {
		net_count(&w->rx_dropped, 1);
		return true;
	}
	f->len = (uint32_t)len - (uint32_t)sizeof(f->hdr);
	f->hdr.flags &= NET_HDR_NEEDS_CSUM | NET_HDR_DATA_VALID;
	if (net_offload_valid(f, atomic_load(&w->net->accepts))) {
		net_fifo_commit(&w->rx, f);
		return true;
	}
	memcpy(l->scratch, f, sizeof(*f) + f->len);
	net_worker_receive(w, l->scratch);
	return true;
}

static bool link_receive(struct net_worker *w, bool blocked)
{
	struct link *l = w->net->state;
	bool worked = false;

	if (l->listener >= 0 && l->peer < 0)
		accept_peer(l);
	else if (l->listener < 0 && l->peer < 0)
		connect_again(l);
	if (l->peer >= 0 && !l->greeted)
		worked = greet(w);
	for (unsigned n = 0; n < FRAMES_PER_TURN && !blocked && l->peer >= 0 && l->greeted && receive_one(w); n++)
		worked = true;
	return worked;
}

static void link_prepare(struct net_worker *w, bool blocked, int64_t *timeout_ns)
{
	struct link *l = w->net->state;
	int64_t left = l->retry_at - clock_now();
	short events = (short)((blocked && l->greeted ? 0 : POLLIN) | (w->tx_blocked ? POLLOUT : 0));

	if (l->listener >= 0)
		net_worker_poll(w, l->listener, POLLIN);
	if (l->peer >= 0 && events) /* without events a hang-up would wake us again and again */
		net_worker_poll(w, l->peer, events);
	else if (l->peer < 0 && l->listener < 0 && *timeout_ns > left)
		*timeout_ns = left > 0 ? left : 0;
}

/* Others who want to be the peer are turned away also while there is one. */
static void link_woken(struct net_worker *w)
{
	struct link *l = w->net->state;

	if (l->listener >= 0 && l->peer >= 0)
		accept_peer(l);
}

const struct net_kind_ops net_kind_link = {
	.open = link_open,
	.close = link_close,
	.send = link_send,
	.receive = link_receive,
	.prepare = link_prepare,
	.woken = link_woken,
};
