#include "dev/virtio/net_int.h"

/* 5.1.6.5 */
enum {
	CLASS_RX = 0, RX_PROMISC = 0, RX_ALLMULTI = 1, RX_ALLUNI = 2, RX_NOMULTI = 3, RX_NOUNI = 4, RX_NOBCAST = 5,
	CLASS_MAC = 1, MAC_TABLE_SET = 0, MAC_ADDR_SET = 1,
	CLASS_VLAN = 2, VLAN_ADD = 0, VLAN_DEL = 1,
	CLASS_MQ = 4, MQ_VQ_PAIRS_SET = 0,
	CLASS_GUEST_OFFLOADS = 5, GUEST_OFFLOADS_SET = 0,
	ACK_OK = 0, ACK_ERR = 1,
	COMMANDS_PER_KICK = 32,
	ETH_VLAN = 0x8100,
};

struct command {
	uint8_t class, cmd;
	const struct virtqueue_chain *chain;
	uint64_t len; /* of what follows the two bytes */
};

static bool argument(const struct command *c, uint64_t off, void *buf, uint32_t len)
{
	return net_gather(c->chain->segs, c->chain->nread, 2 + off, buf, len);
}

static bool has(const struct virtio_net *n, unsigned feature) { return n->s.features & BIT(feature); }

static bool set_rx(struct virtio_net *n, const struct command *c)
{
	struct net_filter *f = &n->s.filter;
	bool *const flags[] = {&f->promisc, &f->allmulti, &f->alluni, &f->nomulti, &f->nouni, &f->nobcast};
	uint8_t on;

	if (c->cmd >= ARRAY_LEN(flags) || !has(n, c->cmd >= RX_ALLUNI ? NET_F_CTRL_RX_EXTRA : NET_F_CTRL_RX) ||
	    !argument(c, 0, &on, 1))
		return false;
	*flags[c->cmd] = on;
	return true;
}

/* One of the two tables; more than we hold means all. *off moves behind it. */
static bool read_table(const struct command *c, uint64_t *off, uint8_t table[][6], unsigned *count, bool *all)
{
	uint32_t entries;

	if (!argument(c, *off, &entries, sizeof(entries)) || !range_ok(*off + 4, (uint64_t)entries * 6, c->len))
		return false;
	*off += 4;
	*all = entries > NET_MAC_TABLE;
	*count = *all ? 0 : entries;
	if (*count && !argument(c, *off, table, *count * 6))
		return false;
	*off += (uint64_t)entries * 6;
	return true;
}

static bool set_mac(struct virtio_net *n, const struct command *c)
{
	struct net_filter new = n->s.filter;
	uint64_t off = 0;
	bool alluni, allmulti;

	if (c->cmd == MAC_ADDR_SET && has(n, NET_F_CTRL_MAC_ADDR))
		return argument(c, 0, n->s.filter.mac, 6);
	if (c->cmd != MAC_TABLE_SET || !has(n, NET_F_CTRL_RX) || !read_table(c, &off, new.uni, &new.nuni, &alluni) ||
	    !read_table(c, &off, new.multi, &new.nmulti, &allmulti))
		return false;
	new.uni_overflow = alluni;
	new.multi_overflow = allmulti;
	n->s.filter = new;
	return true;
}

static bool set_vlan(struct virtio_net *n, const struct command *c)
{
	uint64_t *word;
	uint16_t id;

	if (!has(n, NET_F_CTRL_VLAN) || c->cmd > VLAN_DEL || !argument(c, 0, &id, 2) || id > 4095)
		return false;
	word = &n->s.filter.vlans[id / 64];
	*word = c->cmd == VLAN_ADD ? *word | BIT(id % 64) : *word & ~BIT(id % 64);
	return true;
}

static bool set_pairs(struct virtio_net *n, const struct command *c)
{
	uint16_t pairs;

	if (!has(n, NET_F_MQ) || c->cmd != MQ_VQ_PAIRS_SET || !argument(c, 0, &pairs, 2) || !pairs || pairs > n->npairs)
		return false;
	n->s.pairs = pairs;
	net_set_queues(n->cfg.net, pairs);
	return true;
}

unsigned virtio_net_accepts(uint64_t f)
{
	if (!(f & BIT(NET_F_GUEST_CSUM)))
		return 0;
	return NET_CSUM | (f & BIT(NET_F_GUEST_TSO4) ? NET_TSO4 : 0) | (f & BIT(NET_F_GUEST_TSO6) ? NET_TSO6 : 0) |
	       (f & BIT(NET_F_GUEST_ECN) ? NET_TSO_ECN : 0) |
	       (f & BIT(NET_F_GUEST_USO4) && f & BIT(NET_F_GUEST_USO6) ? NET_USO : 0);
}

static bool set_offloads(struct virtio_net *n, const struct command *c)
{
	uint64_t on;

	if (!has(n, NET_F_CTRL_GUEST_OFFLOADS) || c->cmd != GUEST_OFFLOADS_SET || !argument(c, 0, &on, 8) || on & ~n->s.features)
		return false;
	n->s.accepts = virtio_net_accepts(on);
	net_set_accepts(n->cfg.net, n->s.accepts);
	return true;
}

static bool obey(struct virtio_net *n, const struct virtqueue_chain *chain)
{
	struct command c = {.chain = chain, .len = chain->read_len >= 2 ? chain->read_len - 2 : 0};
	uint8_t head[2];

	if (!net_gather(chain->segs, chain->nread, 0, head, 2))
		return false;
	c.class = head[0];
	c.cmd = head[1];
	switch (c.class) {
	case CLASS_RX: return set_rx(n, &c);
	case CLASS_MAC: return set_mac(n, &c);
	case CLASS_VLAN: return set_vlan(n, &c);
	case CLASS_MQ: return set_pairs(n, &c);
	case CLASS_GUEST_OFFLOADS: return set_offloads(n, &c);
	default: return false;
	}
}

bool virtio_net_control(struct virtio_net *n, unsigned q)
{
	static const uint8_t acks[] = {ACK_ERR, ACK_OK};
	struct virtqueue_chain chain;
	unsigned i;

	for (i = 0; i < COMMANDS_PER_KICK && virtio_pop(n->virtio, q, &chain); i++) {
		bool ok = obey(n, &chain);

		n->version++;
		virtio_push(n->virtio, q, &chain, virtio_write(n->virtio, q, &chain, 0, &acks[ok], 1));
	}
	virtio_interrupt(n->virtio, q);
	return i == COMMANDS_PER_KICK;
}

static bool in_table(const uint8_t table[][6], unsigned count, const uint8_t *mac)
{
	for (unsigned i = 0; i < count; i++)
		if (!memcmp(table[i], mac, 6))
			return true;
	return false;
}

bool virtio_net_wants(const struct net_filter *f, const uint8_t *data)
{
	static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	unsigned type = (unsigned)(data[12] << 8 | data[13]);

	if (f->promisc)
		return true;
	/* A frame of 14 bytes has no tag's two bytes, but the fifo has: 16 is its alignment. */
	if (f->vlan && type == ETH_VLAN) {
		unsigned id = (unsigned)(data[14] << 8 | data[15]) & 4095;

		if (!(f->vlans[id / 64] & BIT(id % 64)))
			return false;
	}
	if (!memcmp(data, broadcast, 6))
		return !f->nobcast;
	if (data[0] & 1)
		return !f->nomulti && (f->allmulti || f->multi_overflow || in_table(f->multi, f->nmulti, data));
	return !f->nouni && (f->alluni || f->uni_overflow || !memcmp(data, f->mac, 6) || in_table(f->uni, f->nuni, data));
}
