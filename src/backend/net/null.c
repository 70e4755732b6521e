/* A back end that takes every frame and gives none. */
#include "backend/net/net_int.h"

#include <stdio.h>

static bool null_open(struct net *n, const struct net_options *o, struct error *err)
{
	n->offloads = NET_ALL;
	n->link_up = true;
	snprintf(n->description, sizeof(n->description), "null");
	return true;
}

static void null_close(struct net *n) {}

static bool null_send(struct net_worker *w, struct net_frame *f)
{
	net_count(&w->tx_frames, 1);
	net_count(&w->tx_bytes, f->len);
	return true;
}

static bool null_receive(struct net_worker *w, bool blocked) { return false; }
static void null_prepare(struct net_worker *w, bool blocked, int64_t *timeout_ns) {}

const struct net_kind_ops net_kind_null = {
	.open = null_open,
	.close = null_close,
	.send = null_send,
	.receive = null_receive,
	.prepare = null_prepare,
};
