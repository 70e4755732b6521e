/*
 * Network back ends: where a NIC's frames go and come from. `user` (libslirp), `tap`, `link` (another VM), `null`.
 *
 * A struct net has one worker thread for each queue pair. A worker carries frames both ways between its client (the NIC, one for
 * each struct net) and the peer; nothing but net_kick is called from a vCPU's thread, and that never blocks. While frames flow,
 * the worker looks for more by itself for some microseconds, so that neither side has to be woken; else it sleeps.
 *
 * Frames are Ethernet without FCS, at most NET_FRAME_MAX bytes, with a struct net_hdr that says what of checksum and segmentation
 * is left to do. Each side says which of that it takes undone (NET_CSUM ...): the client to net_set_accepts, the back end by
 * net_offloads. What is in `flags` and `gso_type` of a frame that reaches the client has been checked (net_offload_valid).
 * Queues are bounded (fifo.h): what a peer sends beyond is left with the peer where it can wait (tap, link), else dropped. What the
 * guest sends beyond stays in the guest's ring.
 *
 * The client's functions are all there is between the two sides: a back end in another process will call them over shared memory.
 *
 * Threads: net_open, net_start, net_stop and net_close belong to one thread, without the machine lock. net_kick and the setters:
 * any thread, also with the machine lock. The client's functions: the worker of that queue pair, without the machine lock.
 */
#ifndef BACKEND_NET_NET_H
#define BACKEND_NET_NET_H

#include <netinet/in.h>

#include "backend/net/fifo.h"
#include "base/error.h"

#define NET_QUEUES_MAX 8
#define NET_FORWARDS_MAX 64
#define NET_MTU_MIN 576
#define NET_MTU_MAX 65520

/* What a side takes undone. */
enum {
	NET_CSUM = 1, /* TCP and UDP checksums: NET_HDR_NEEDS_CSUM */
	NET_TSO4 = 2,
	NET_TSO6 = 4,
	NET_TSO_ECN = 8,
	NET_USO = 16, /* UDP, IPv4 and IPv6 */
	NET_ALL = 31,
};

enum net_kind { NET_USER, NET_TAP, NET_LINK, NET_NULL };

/* A port of the host that leads into the guest. */
struct net_forward {
	bool udp;
	struct in_addr host; /* network order, as all addresses here */
	uint16_t host_port, guest_port;
};

struct net_options {
	enum net_kind kind;
	char name[108]; /* tap: the interface; link: the socket's path */
	unsigned queues; /* 0 is 1; more only for tap */
	unsigned mtu;    /* 0: 1500, and the guest is not told */
	uint64_t bps;    /* bits a second, each way; 0: no limit */
	/* user */
	struct in_addr network, mask, host, dns; /* of the virtual network, of ourselves on it; all 0: 10.0.2.0/24, .2, .3 */
	bool restricted;    /* the guest reaches nothing but what is forwarded */
	bool no_loopback;   /* `host` does not lead to the host's 127.0.0.1 */
	bool ipv6;
	struct net_forward forwards[NET_FORWARDS_MAX];
	unsigned nforwards;
};

struct net_client {
	/* Put frames of the guest into the empty `out`, as many as there are up to some bound. Returns how many chains it took. */
	unsigned (*fetch)(void *ctx, unsigned q, struct net_fifo *out);
	/* Take frames from the start of `in` (never empty) as far as the guest has room; true: at least one was taken or dropped. */
	bool (*deliver)(void *ctx, unsigned q, struct net_fifo *in);
	/*
	 * The worker wants to sleep: from now on the client calls net_kick when the guest sends, and, with `starved`, when it gives
	 * room. True: there is something already.
	 */
	bool (*arm)(void *ctx, unsigned q, bool starved);
	/* The link went up or down. Any worker. */
	void (*link)(void *ctx, bool up);
	void *ctx;
};

struct net;

/* Everything that can fail for a reason that a user can mend fails here. */
struct net *net_open(const struct net_options *o, struct error *err);
bool net_start(struct net *n, const struct net_client *c, struct error *err);
/* On return no client function runs, nor will. Twice is allowed. */
void net_stop(struct net *n);
void net_close(struct net *n); /* NULL: nothing. Stops it, if need be */

void net_kick(struct net *n, unsigned q);
void net_set_accepts(struct net *n, unsigned accepts);
/* How many queue pairs the driver uses, from the first on. */
void net_set_queues(struct net *n, unsigned pairs);

unsigned net_offloads(const struct net *n);
unsigned net_queues(const struct net *n);
bool net_link_up(const struct net *n);
/* What was taken, in a few words: "tap doppel0, 2 queues". */
const char *net_description(const struct net *n);

struct net_stats {
	uint64_t tx_frames, tx_bytes; /* guest to peer */
	uint64_t rx_frames, rx_bytes;
	uint64_t tx_dropped, rx_dropped;
};
/* Sums over the workers; what they count at the moment may be missing. */
struct net_stats net_stats(const struct net *n);

#endif
