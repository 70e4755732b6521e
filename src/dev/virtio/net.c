#include "dev/virtio/net_int.h"

#include <sched.h>
#include <stdlib.h>

enum {
	CONFIG_MAC = 0, CONFIG_STATUS = 6, CONFIG_PAIRS = 8, CONFIG_MTU = 10, CONFIG_LEN = 12,
	STATUS_LINK_UP = 1,
};

/* The control queue is the last: of all pairs when the driver knows of them (5.1.2). */
static unsigned control_queue(const struct virtio_net *n)
{
	return n->s.features & BIT(NET_F_MQ) ? 2 * n->npairs : 2;
}

static bool net_queue_kick(void *dev, unsigned q)
{
	struct virtio_net *n = dev;

	if (q == control_queue(n))
		return virtio_net_control(n, q);
	if (q < 2 * n->npairs)
		net_kick(n->cfg.net, q / 2);
	return false;
}

static void net_config_read(void *dev, uint8_t *config)
{
	const struct virtio_net *n = dev;

	memcpy(config + CONFIG_MAC, n->s.filter.mac, 6);
	put_le16(config + CONFIG_STATUS, n->s.link_up ? STATUS_LINK_UP : 0);
	put_le16(config + CONFIG_PAIRS, (uint16_t)n->npairs);
	put_le16(config + CONFIG_MTU, n->cfg.mtu);
}

/* A worker copies for some microseconds and waits for nobody meanwhile. */
static void wait_for_copies(struct virtio_net *n)
{
	for (unsigned i = 0; i < n->npairs; i++)
		while (atomic_load(&n->pairs[i].tx.busy) || atomic_load(&n->pairs[i].rx.busy))
			sched_yield();
}

static void net_reset(void *dev)
{
	struct virtio_net *n = dev;

	n->generation++;
	n->version++;
	wait_for_copies(n);
	n->s = (struct virtio_net_state){.link_up = n->s.link_up, .pairs = 1};
	memcpy(n->s.filter.mac, n->cfg.mac, 6);
	net_set_accepts(n->cfg.net, 0);
	net_set_queues(n->cfg.net, 1);
}

static void net_started(void *dev, uint64_t features)
{
	struct virtio_net *n = dev;

	n->s.features = features;
	n->s.started = true;
	n->s.accepts = virtio_net_accepts(features);
	/* A driver that cannot ask for addresses gets everything. */
	n->s.filter.promisc = !(features & BIT(NET_F_CTRL_RX));
	n->s.filter.vlan = features & BIT(NET_F_CTRL_VLAN);
	n->version++;
	net_set_accepts(n->cfg.net, n->s.accepts);
	for (unsigned i = 0; i < n->npairs; i++)
		net_kick(n->cfg.net, i);
}

static void net_link(void *ctx, bool up)
{
	struct virtio_net *n = ctx;

	pthread_mutex_lock(n->cfg.lock);
	n->s.link_up = up;
	if (n->s.features & BIT(NET_F_STATUS))
		virtio_config_changed(n->virtio);
	pthread_mutex_unlock(n->cfg.lock);
}

static uint64_t features_of(const struct virtio_net *n)
{
	unsigned o = net_offloads(n->cfg.net);
	uint64_t f = BIT(NET_F_MAC) | BIT(NET_F_MRG_RXBUF) | BIT(NET_F_STATUS) | BIT(NET_F_CTRL_VQ) | BIT(NET_F_CTRL_RX) |
		     BIT(NET_F_CTRL_RX_EXTRA) | BIT(NET_F_CTRL_VLAN) | BIT(NET_F_GUEST_CSUM) | BIT(NET_F_GUEST_TSO4) |
		     BIT(NET_F_GUEST_TSO6) | BIT(NET_F_GUEST_ECN) | BIT(NET_F_GUEST_USO4) | BIT(NET_F_GUEST_USO6) |
		     BIT(NET_F_CTRL_GUEST_OFFLOADS);

	f |= (o & NET_CSUM ? BIT(NET_F_CSUM) : 0) | (o & NET_TSO4 ? BIT(NET_F_HOST_TSO4) : 0) |
	     (o & NET_TSO6 ? BIT(NET_F_HOST_TSO6) : 0) | (o & NET_TSO_ECN ? BIT(NET_F_HOST_ECN) : 0) |
	     (o & NET_USO ? BIT(NET_F_HOST_USO) : 0);
	return f | (n->npairs > 1 ? BIT(NET_F_MQ) : 0) | (n->cfg.mtu ? BIT(NET_F_MTU) : 0) |
	       (n->cfg.mac_filter ? 0 : BIT(NET_F_CTRL_MAC_ADDR));
}

static void set_class(struct virtio_net *n)
{
	n->class = (struct virtio_class){
		.id = 1,
		.pci_class = 0x020000,
		.name = "virtio-net",
		.nqueues = 2 * n->npairs + 1,
		.queue_size = VIRTQUEUE_MAX,
		.features = features_of(n),
		.config_len = CONFIG_LEN,
		.kick = net_queue_kick,
		.config_read = net_config_read,
		.reset = net_reset,
		.started = net_started,
	};
}

struct virtio_net *virtio_net_new(const struct virtio_config *cfg, const struct virtio_net_config *net, struct error *err)
{
	struct virtio_net *n = calloc(1, sizeof(*n));
	struct net_client client = {virtio_net_fetch, virtio_net_deliver, virtio_net_arm, net_link, n};

	if (!n) {
		error_set(err, "virtio-net: out of memory");
		return NULL;
	}
	n->cfg = *net;
	n->ram = cfg->ram;
	n->npairs = net_queues(net->net);
	n->pairs = calloc(n->npairs, sizeof(*n->pairs));
	if (!n->pairs) {
		error_set(err, "virtio-net: out of memory");
		free(n);
		return NULL;
	}
	for (unsigned i = 0; i < n->npairs; i++) {
		n->pairs[i].rx.q = 2 * i;
		n->pairs[i].tx.q = 2 * i + 1;
	}
	n->version = 1;
	n->s.link_up = net_link_up(net->net);
	set_class(n);
	n->virtio = virtio_new(cfg, &n->class, n, err);
	if (n->virtio && net_start(net->net, &client, err))
		return n;
	virtio_free(n->virtio);
	free(n->pairs);
	free(n);
	return NULL;
}

void virtio_net_free(struct virtio_net *n)
{
	if (!n)
		return;
	net_stop(n->cfg.net);
	virtio_free(n->virtio);
	free(n->pairs);
	free(n);
}
