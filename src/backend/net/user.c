/*
 * The user network: libslirp terminates the guest's TCP and UDP in this process, and makes ordinary sockets of them. The guest
 * finds a network with a DHCP server, a name server and a router that is the host; nobody finds the guest but through forwarded ports.
 *
 * The one worker runs libslirp. Frames with segmentation left to do go in whole: libslirp looks at TCP's byte stream only. What
 * it gives is joined again (coalesce.h).
 */
#include "backend/net/net_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/net/coalesce.h"
#include "backend/net/offload.h"
#include "base/log.h"
#include "base/timer.h"

#define MS INT64_C(1000000)
#define TIMERS_MAX 8
/* Beyond this many bytes that wait for the guest, libslirp gets nothing to do that would make more. */
#define RX_HIGH (RX_ROOM / 2)
#define RX_ROOM (1024 * 1024u)

struct user_timer {
	bool used;
	SlirpTimerId id;
	void *cb_opaque;
	int64_t at_ms; /* INT64_MAX: not set */
};

struct user {
	struct net_worker *worker;
	Slirp *slirp;
	struct user_timer timers[TIMERS_MAX];
	struct net_frame *segment; /* scratch */
};

/* libslirp keeps the host's name server in variables of its own, and all guests of a process share those. */
static pthread_mutex_t slirp_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- what libslirp calls ---- */

static ssize_t send_packet(const void *buf, size_t len, void *opaque)
{
	struct user *u = opaque;
	struct net_worker *w = u->worker;

	/* What has no room is lost, as on a wire: TCP sends it again. */
	if (len > NET_FRAME_MAX || len < NET_FRAME_MIN ||
	    !net_coalesce(&w->rx, buf, (uint32_t)len, atomic_load(&w->net->accepts)))
		net_count(&w->rx_dropped, 1);
	return (ssize_t)len;
}

static void guest_error(const char *msg, void *opaque) { log_debug("user network: %s", msg); }
static int64_t clock_get_ns(void *opaque) { return clock_now(); }

static void *timer_new_opaque(SlirpTimerId id, void *cb_opaque, void *opaque)
{
	struct user *u = opaque;

	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		if (!u->timers[i].used) {
			u->timers[i] = (struct user_timer){true, id, cb_opaque, INT64_MAX};
			return &u->timers[i];
		}
	}
	return NULL;
}

static void user_timer_free(void *timer, void *opaque)
{
	if (timer)
		((struct user_timer *)timer)->used = false;
}

static void timer_mod(void *timer, int64_t expire_time, void *opaque)
{
	if (timer)
		((struct user_timer *)timer)->at_ms = expire_time;
}

static void poll_fd_unused(int fd, void *opaque) {}
static void notify(void *opaque) {}

static const SlirpCb callbacks = {
	.send_packet = send_packet,
	.guest_error = guest_error,
	.clock_get_ns = clock_get_ns,
	.timer_new_opaque = timer_new_opaque,
	.timer_free = user_timer_free,
	.timer_mod = timer_mod,
	.register_poll_fd = poll_fd_unused,
	.unregister_poll_fd = poll_fd_unused,
	.notify = notify,
};

static const struct {
	int slirp;
	short poll;
} events_of[] = {
	{SLIRP_POLL_IN, POLLIN}, {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI}, {SLIRP_POLL_ERR, POLLERR}, {SLIRP_POLL_HUP, POLLHUP},
};

static int add_poll(int fd, int events, void *opaque)
{
	short e = 0;

	for (size_t i = 0; i < ARRAY_LEN(events_of); i++)
		if (events & events_of[i].slirp)
			e |= events_of[i].poll;
	return net_worker_poll(((struct user *)opaque)->worker, fd, e);
}

static int get_revents(int index, void *opaque)
{
	const struct net_worker *w = ((struct user *)opaque)->worker;
	int e = 0;

	if (index < 0 || (unsigned)index >= w->nfds)
		return 0;
	for (size_t i = 0; i < ARRAY_LEN(events_of); i++)
		if (w->fds[index].revents & events_of[i].poll)
			e |= events_of[i].slirp;
	return e;
}

/* ---- set-up ---- */

static void add_default_addresses(const struct net_options *o, SlirpConfig *c)
{
	struct in_addr net = o->network, mask = o->mask;

	if (!net.s_addr) {
		net.s_addr = htonl(0x0a000200);
		mask.s_addr = htonl(0xffffff00);
	}
	c->vnetwork = net;
	c->vnetmask = mask;
	c->vhost.s_addr = o->host.s_addr ? o->host.s_addr : net.s_addr | htonl(2);
	c->vnameserver.s_addr = o->dns.s_addr ? o->dns.s_addr : net.s_addr | htonl(3);
	c->vdhcp_start.s_addr = net.s_addr | htonl(ntohl(~mask.s_addr) >= 31 ? 15 : 4);
}

static bool addresses_fit(const SlirpConfig *c, struct error *err)
{
	struct in_addr each[] = {c->vhost, c->vnameserver};
	char text[INET_ADDRSTRLEN];

	for (size_t i = 0; i < ARRAY_LEN(each); i++) {
		uint32_t host = ntohl(each[i].s_addr & ~c->vnetmask.s_addr);

		if ((each[i].s_addr ^ c->vnetwork.s_addr) & c->vnetmask.s_addr || !host || host == ntohl(~c->vnetmask.s_addr)) {
			inet_ntop(AF_INET, &each[i], text, sizeof(text));
			error_set(err, "--net user: %s=%s is no address of a host on the virtual network", i ? "dns" : "host", text);
			return error_hint(err, "choose one inside net=");
		}
	}
	if (c->vhost.s_addr == c->vnameserver.s_addr || c->vhost.s_addr == c->vdhcp_start.s_addr ||
	    c->vnameserver.s_addr == c->vdhcp_start.s_addr) {
		inet_ntop(AF_INET, &c->vdhcp_start, text, sizeof(text));
		error_set(err, "--net user: host=, dns= and the guest's own address %s must differ", text);
		return error_hint(err, "choose others with host= and dns=");
	}
	return true;
}

static bool add_forward(struct user *u, const struct net_forward *f, struct in_addr guest, struct error *err)
{
	char text[INET_ADDRSTRLEN];
	int e;

	if (slirp_add_hostfwd(u->slirp, f->udp, f->host, f->host_port, guest, f->guest_port) == 0)
		return true;
	e = errno;
	inet_ntop(AF_INET, &f->host, text, sizeof(text));
	error_set(err, "--net user: cannot forward %s port %u of %s: %s", f->udp ? "UDP" : "TCP", f->host_port, text, strerror(e));
	if (e == EADDRINUSE)
		return error_hint(err, "another program has this port: choose another in hostfwd=");
	if (e == EACCES)
		return error_hint(err, "ports below 1024 need privileges: choose a higher one in hostfwd=");
	if (e == EADDRNOTAVAIL)
		return error_hint(err, "give an address of this host, or none, in hostfwd=");
	return error_hint(err, "choose another address or port in hostfwd=");
}

static void describe(struct net *n, const SlirpConfig *c)
{
	char net[INET_ADDRSTRLEN], host[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &c->vnetwork, net, sizeof(net));
	inet_ntop(AF_INET, &c->vhost, host, sizeof(host));
	snprintf(n->description, sizeof(n->description), "user network %s/%d, the host is %s%s", net,
		 __builtin_popcount(c->vnetmask.s_addr), host, c->restricted ? ", restricted" : "");
}

static bool user_open(struct net *n, const struct net_options *o, struct error *err)
{
	struct user *u = calloc(1, sizeof(*u));
	SlirpConfig c = {
		.version = 4,
		.restricted = o->restricted,
		.in_enabled = true,
		.in6_enabled = o->ipv6,
		.vprefix_len = 64,
		.vhostname = "doppel",
		.if_mtu = o->mtu ? o->mtu : 1500,
		.if_mru = o->mtu ? o->mtu : 1500,
		.disable_host_loopback = o->no_loopback,
	};

	n->state = u;
	if (!u)
		return error_set(err, "out of memory");
	u->worker = &n->workers[0];
	u->segment = malloc(sizeof(*u->segment) + NET_FRAME_MAX);
	inet_pton(AF_INET6, "fec0::", &c.vprefix_addr6);
	inet_pton(AF_INET6, "fec0::2", &c.vhost6);
	inet_pton(AF_INET6, "fec0::3", &c.vnameserver6);
	add_default_addresses(o, &c);
	if (!addresses_fit(&c, err))
		return false;
	u->slirp = u->segment ? slirp_new(&c, &callbacks, u) : NULL;
	if (!u->slirp)
		return error_set(err, "--net user: libslirp does not start");
	for (unsigned i = 0; i < o->nforwards; i++)
		if (!add_forward(u, &o->forwards[i], c.vdhcp_start, err))
			return false;
	n->offloads = NET_ALL;
	n->link_up = true;
	describe(n, &c);
	return true;
}

static void user_close(struct net *n)
{
	struct user *u = n->state;

	if (!u)
		return;
	if (u->slirp)
		slirp_cleanup(u->slirp);
	free(u->segment);
	free(u);
}

/* ---- the worker's side ---- */

static uint8_t *emit_segment(void *ctx, uint32_t len)
{
	struct user *u = ctx;

	if (u->segment->len)
		slirp_input(u->slirp, u->segment->data, (int)u->segment->len);
	u->segment->len = len;
	return u->segment->data;
}

/*
 * A destination that no wire carries (RFC 1122 3.2.1.3, RFC 4291 2.5): the host's kernel would take it for the host itself, past
 * no_loopback and the router's address.
 */
static bool means_the_host(const uint8_t *d, uint32_t len)
{
	static const uint8_t zeroes[10];

	if (len >= 34 && d[12] == 0x08 && d[13] == 0x00)
		return d[30] == 0 || d[30] == 127;
	if (len >= 54 && d[12] == 0x86 && d[13] == 0xdd) /* ::, ::1, IPv4 in IPv6 */
		return !memcmp(d + 38, zeroes, sizeof(zeroes));
	return false;
}

static bool user_send(struct net_worker *w, struct net_frame *f)
{
	struct user *u = w->net->state;
	bool ok = true;

	if (net_fifo_used(&w->rx) > RX_HIGH)
		return false;
	if (means_the_host(f->data, f->len)) {
		net_count(&w->tx_dropped, 1);
		return true;
	}
	pthread_mutex_lock(&slirp_lock);
	if (f->hdr.gso_type == NET_GSO_UDP_L4) {
		u->segment->len = 0;
		ok = net_segment(f, emit_segment, u);
		if (ok)
			slirp_input(u->slirp, u->segment->data, (int)u->segment->len);
	} else {
		if (f->hdr.gso_type != NET_GSO_NONE)
			ok = net_csum_fill(f->data, f->len);
		else
			net_csum_finish(f);
		if (ok)
			slirp_input(u->slirp, f->data, (int)f->len);
	}
	pthread_mutex_unlock(&slirp_lock);
	net_count(ok ? &w->tx_frames : &w->tx_dropped, 1);
	net_count(&w->tx_bytes, ok ? f->len : 0);
	return true;
}

static int64_t next_timer(const struct user *u)
{
	int64_t at = INT64_MAX;

	for (unsigned i = 0; i < TIMERS_MAX; i++)
		if (u->timers[i].used && u->timers[i].at_ms < at)
			at = u->timers[i].at_ms;
	return at;
}

static void run_timers(struct user *u)
{
	int64_t now_ms = clock_now() / MS;

	for (unsigned i = 0; i < TIMERS_MAX; i++) {
		if (u->timers[i].used && u->timers[i].at_ms <= now_ms) {
			u->timers[i].at_ms = INT64_MAX;
			slirp_handle_timer(u->slirp, u->timers[i].id, u->timers[i].cb_opaque);
		}
	}
}

/* What the last poll found. libslirp wants a call of pollfds_fill before each of pollfds_poll. */
static bool handle(struct net_worker *w, bool failed)
{
	struct user *u = w->net->state;
	uint32_t before = net_fifo_used(&w->rx);
	bool ready = false;

	for (unsigned i = 1; i < w->nfds; i++)
		ready |= w->fds[i].revents;
	slirp_pollfds_poll(u->slirp, failed, get_revents, u);
	run_timers(u);
	return ready || net_fifo_used(&w->rx) != before;
}

static void user_prepare(struct net_worker *w, bool blocked, int64_t *timeout_ns)
{
	struct user *u = w->net->state;
	uint32_t ms = UINT32_MAX;
	int64_t timer = next_timer(u);

	if (blocked && net_fifo_used(&w->rx) > RX_HIGH)
		return;
	pthread_mutex_lock(&slirp_lock);
	slirp_pollfds_fill(u->slirp, &ms, add_poll, u);
	pthread_mutex_unlock(&slirp_lock);
	if (ms != UINT32_MAX && ms * MS < *timeout_ns)
		*timeout_ns = ms * MS;
	if (timer != INT64_MAX) {
		int64_t left = (timer + 1) * MS - clock_now();

		left = left > 0 ? left : 0;
		*timeout_ns = left < *timeout_ns ? left : *timeout_ns;
	}
}

static void user_woken(struct net_worker *w)
{
	if (w->nfds == 1 && net_fifo_used(&w->rx) > RX_HIGH)
		return;
	pthread_mutex_lock(&slirp_lock);
	handle(w, false);
	pthread_mutex_unlock(&slirp_lock);
}

static bool user_receive(struct net_worker *w, bool blocked)
{
	struct user *u = w->net->state;
	uint32_t ms = UINT32_MAX;
	bool worked;
	int n;

	if (net_fifo_used(&w->rx) > RX_HIGH)
		return false;
	w->nfds = 1;
	pthread_mutex_lock(&slirp_lock);
	slirp_pollfds_fill(u->slirp, &ms, add_poll, u);
	pthread_mutex_unlock(&slirp_lock);
	n = poll(w->fds + 1, w->nfds - 1, 0);
	pthread_mutex_lock(&slirp_lock);
	worked = handle(w, n < 0);
	pthread_mutex_unlock(&slirp_lock);
	return worked;
}

const struct net_kind_ops net_kind_user = {
	.open = user_open,
	.close = user_close,
	.send = user_send,
	.receive = user_receive,
	.prepare = user_prepare,
	.woken = user_woken,
};
