/*
 * A tap interface of the host: the kernel takes and gives frames with struct virtio_net_hdr, so that checksums and segmentation
 * are left undone from the guest's stack to the host's. Each queue pair is a file descriptor (IFF_MULTI_QUEUE).
 *
 * vhost-net is not used: the soft engine has to learn of every write to guest RAM, which the kernel's threads would not tell.
 */
#include "backend/net/net_int.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/if_tun.h>

#include "base/log.h"

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

#define FRAMES_PER_TURN 64

struct tap_queue {
	int fd;
	unsigned accepts; /* as the kernel was told last */
	bool attached;
};

struct tap {
	struct tap_queue queues[NET_QUEUES_MAX];
	char name[IFNAMSIZ];
	bool multi, uso;
	_Atomic bool gone;
};

static bool no_rights(const char *name, const char *what, struct error *err)
{
	error_set(err, "--net tap:%s: %s: no permission", name, what);
	return error_hint(err, "as root: ip tuntap add dev %s mode tap user YOU; ip link set %s up", name, name);
}

static bool open_device(struct tap *t, unsigned q, const char *name, struct error *err)
{
	int e;

	t->queues[q].fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (t->queues[q].fd >= 0)
		return true;
	e = errno;
	if (e == EACCES || e == EPERM)
		return no_rights(name, "/dev/net/tun", err);
	error_set(err, "--net tap:%s: /dev/net/tun: %s", name, strerror(e));
	return error_hint(err, "load the host's module: modprobe tun; or take --net user");
}

static bool take_interface(struct tap *t, unsigned q, const char *name, struct error *err)
{
	struct ifreq ifr = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (t->multi ? IFF_MULTI_QUEUE : 0))};
	int e;

	memcpy(ifr.ifr_name, name, strlen(name));
	if (ioctl(t->queues[q].fd, TUNSETIFF, &ifr) == 0) {
		t->queues[q].attached = true;
		return true;
	}
	e = errno;
	if (e == EPERM || e == EACCES)
		return no_rights(name, "interface", err);
	error_set(err, "--net tap:%s: %s", name, strerror(e));
	if (e == EBUSY)
		return error_hint(err, "another program, perhaps another VM, has this interface");
	if (e == E2BIG)
		return error_hint(err, "the interface gives fewer queues: lower queues=");
	return error_hint(err, "it must be a tap interface, with multi_queue when queues= is above 1 and without it else");
}

/* An interface that had to be made for us is not up yet; one that the user made is as the user wants it. */
static void bring_up(const char *name)
{
	struct ifreq ifr = {0};
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	memcpy(ifr.ifr_name, name, strlen(name));
	if (s < 0)
		return;
	if (ioctl(s, SIOCGIFFLAGS, &ifr) == 0 && !(ifr.ifr_flags & IFF_UP)) {
		ifr.ifr_flags |= IFF_UP;
		if (ioctl(s, SIOCSIFFLAGS, &ifr) < 0)
			log_warn("tap %s is down: ip link set %s up", name, name);
	}
	close(s);
}

static unsigned tun_flags(unsigned accepts)
{
	/* Segmentation without checksums does not exist. */
	if (!(accepts & NET_CSUM))
		return 0;
	return TUN_F_CSUM | (accepts & NET_TSO4 ? TUN_F_TSO4 : 0) | (accepts & NET_TSO6 ? TUN_F_TSO6 : 0) |
	       (accepts & NET_TSO_ECN && accepts & (NET_TSO4 | NET_TSO6) ? TUN_F_TSO_ECN : 0) |
	       (accepts & NET_USO ? TUN_F_USO4 | TUN_F_USO6 : 0);
}

static bool tap_open(struct net *n, const struct net_options *o, struct error *err)
{
	struct tap *t = calloc(1, sizeof(*t));
	int hdr_len = sizeof(struct net_hdr);

	n->state = t;
	if (!t)
		return error_set(err, "out of memory");
	for (unsigned q = 0; q < NET_QUEUES_MAX; q++)
		t->queues[q].fd = -1;
	if (!o->name[0] || strlen(o->name) >= IFNAMSIZ) {
		error_set(err, "--net tap:%s: no name of an interface", o->name);
		return error_hint(err, "names have 1 to 15 characters, as in --net tap:doppel0");
	}
	strcpy(t->name, o->name);
	t->multi = n->nqueues > 1;
	for (unsigned q = 0; q < n->nqueues; q++) {
		if (!open_device(t, q, o->name, err) || !take_interface(t, q, o->name, err))
			return false;
		if (ioctl(t->queues[q].fd, TUNSETVNETHDRSZ, &hdr_len) < 0)
			return error_set(err, "--net tap:%s: the kernel gives no offload headers: %s", o->name, strerror(errno));
		t->uso = ioctl(t->queues[q].fd, TUNSETOFFLOAD, tun_flags(NET_CSUM | NET_USO)) == 0;
		ioctl(t->queues[q].fd, TUNSETOFFLOAD, 0);
	}
	bring_up(o->name);
	n->offloads = NET_CSUM | NET_TSO4 | NET_TSO6 | NET_TSO_ECN | (t->uso ? NET_USO : 0);
	n->link_up = true;
	snprintf(n->description, sizeof(n->description), "tap %s, %u queue%s, without vhost", o->name, n->nqueues,
		 n->nqueues > 1 ? "s" : "");
	return true;
}

static void tap_close(struct net *n)
{
	struct tap *t = n->state;

	for (unsigned q = 0; t && q < NET_QUEUES_MAX; q++)
		if (t->queues[q].fd >= 0)
			close(t->queues[q].fd);
	free(t);
}

/* The interface was deleted under us. */
static void lost(struct net_worker *w)
{
	struct tap *t = w->net->state;

	if (atomic_exchange(&t->gone, true))
		return;
	log_warn("tap %s is gone: the guest's link is down", t->name);
	net_set_link(w->net, false);
}

static bool tap_send(struct net_worker *w, struct net_frame *f)
{
	struct tap *t = w->net->state;
	ssize_t sent;

	if (atomic_load(&t->gone) || !t->queues[w->index].attached) {
		net_count(&w->tx_dropped, 1);
		return true;
	}
	sent = write(t->queues[w->index].fd, net_frame_wire(f), sizeof(f->hdr) + f->len);
	if (sent < 0 && errno == EAGAIN)
		return false;
	if (sent < 0 && errno == EBADFD)
		lost(w);
	/* EIO: the interface is down; EINVAL: the kernel does not like the frame. Both: lost, as on a wire. */
	net_count(sent < 0 ? &w->tx_dropped : &w->tx_frames, 1);
	net_count(&w->tx_bytes, sent < 0 ? 0 : f->len);
	return true;
}

/* What the guest wants may have changed since the last turn. */
static void follow(struct net_worker *w)
{
	struct tap *t = w->net->state;
	struct tap_queue *q = &t->queues[w->index];
	unsigned accepts = atomic_load(&w->net->accepts) & ~(t->uso ? 0u : NET_USO);
	bool attached = w->index < atomic_load(&w->net->active);

	if (q->accepts != accepts && ioctl(q->fd, TUNSETOFFLOAD, tun_flags(accepts)) == 0)
		q->accepts = accepts;
	if (t->multi && q->attached != attached) {
		struct ifreq ifr = {.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

		ioctl(q->fd, TUNSETQUEUE, &ifr);
		q->attached = attached;
	}
}

static bool tap_receive(struct net_worker *w, bool blocked)
{
	struct tap *t = w->net->state;
	struct net_frame *f;
	unsigned n = 0;

	follow(w);
	if (blocked || atomic_load(&t->gone) || !t->queues[w->index].attached)
		return false;
	for (; n < FRAMES_PER_TURN && (f = net_fifo_reserve(&w->rx, NET_FRAME_MAX)) != NULL; n++) {
		ssize_t len = read(t->queues[w->index].fd, net_frame_wire(f), sizeof(f->hdr) + NET_FRAME_MAX);

		if (len < 0 && errno == EBADFD)
			lost(w);
		if (len < (ssize_t)(sizeof(f->hdr) + NET_FRAME_MIN))
			break;
		f->len = (uint32_t)len - (uint32_t)sizeof(f->hdr);
		f->hdr.flags &= NET_HDR_NEEDS_CSUM | NET_HDR_DATA_VALID;
		net_fifo_commit(&w->rx, f);
	}
	return n > 0;
}

static void tap_prepare(struct net_worker *w, bool blocked, int64_t *timeout_ns)
{
	struct tap *t = w->net->state;
	short events = (short)((blocked ? 0 : POLLIN) | (w->tx_blocked ? POLLOUT : 0));

	if (events && !atomic_load(&t->gone) && t->queues[w->index].attached)
		net_worker_poll(w, t->queues[w->index].fd, events);
}

const struct net_kind_ops net_kind_tap = {
	.open = tap_open,
	.close = tap_close,
	.send = tap_send,
	.receive = tap_receive,
	.prepare = tap_prepare,
};
