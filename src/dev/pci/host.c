#include "dev/pci/pci.h"

#include <stdlib.h>

#include "dev/pci/pci_int.h"

#define CONFIG_PORT 0xcf8
#define CONFIG_PORT_LEN 8
#define CONFIG_ENABLE 0x80000000u
#define ECAM_BUS_LEN (UINT64_C(1) << 20)

static uint32_t slot_read(struct pci_host *h, unsigned bus, unsigned devfn, unsigned off, unsigned size)
{
	struct pci_function *f = bus == 0 ? h->slots[devfn] : NULL;

	if (!f)
		return (uint32_t)mask_bytes(size);
	return pci_config_read(f, off, size);
}

static void slot_write(struct pci_host *h, unsigned bus, unsigned devfn, unsigned off, unsigned size, uint32_t value)
{
	struct pci_function *f = bus == 0 ? h->slots[devfn] : NULL;

	if (f)
		pci_config_write(f, off, size, value);
}

static uint64_t ecam_read(void *dev, uint64_t off, unsigned size)
{
	return slot_read(dev, (unsigned)(off >> 20), off >> 12 & 0xff, off & 0xfff, size);
}

static void ecam_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	slot_write(dev, (unsigned)(off >> 20), off >> 12 & 0xff, off & 0xfff, size, (uint32_t)value);
}

static const struct bus_ops ecam_ops = {ecam_read, ecam_write, 1, 4};

/* Ports 0xcf8 (address, as a doubleword only), 0xcf9 (reset control, as a byte) and 0xcfc-0xcff (data). */
static uint64_t ports_read(void *dev, uint64_t off, unsigned size)
{
	struct pci_host *h = dev;
	uint32_t a = h->s.config_address;

	if (off == 0 && size == 4)
		return a;
	if (off == RESET_PORT - CONFIG_PORT && size == 1 && h->cfg.reset)
		return reset_cf9_read(h->cfg.reset);
	if (off < 4 || (off & 3) + size > 4 || !(a & CONFIG_ENABLE))
		return mask_bytes(size);
	return slot_read(h, a >> 16 & 0xff, a >> 8 & 0xff, (a & 0xfc) | (off & 3), size);
}

static void ports_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct pci_host *h = dev;
	uint32_t a = h->s.config_address;

	if (off == 0 && size == 4)
		h->s.config_address = (uint32_t)value & 0x80fffffc;
	else if (off == RESET_PORT - CONFIG_PORT && size == 1 && h->cfg.reset)
		reset_cf9_write(h->cfg.reset, (uint8_t)value);
	else if (off >= 4 && (off & 3) + size <= 4 && a & CONFIG_ENABLE)
		slot_write(h, a >> 16 & 0xff, a >> 8 & 0xff, (a & 0xfc) | (off & 3), size, (uint32_t)value);
}

static const struct bus_ops ports_ops = {ports_read, ports_write, 1, 4};

static bool in_window(const struct pci_window *w, gpa_t at, uint64_t len)
{
	return at >= w->base && range_ok(at - w->base, len, w->len);
}

/* Where the BAR is to be on the bus; false: nowhere. */
static bool wanted(const struct pci_bar *b, gpa_t *at)
{
	const struct pci_function *f = b->f;
	const uint8_t *reg = f->s.config + PCI_BAR0 + 4 * b->index;

	if (!b->size || !(get_le16(f->s.config + PCI_COMMAND) & COMMAND_MEMORY))
		return false;
	*at = get_le32(reg) & ~0xfu;
	if (b->is_64bit)
		*at |= (uint64_t)get_le32(reg + 4) << 32;
	return in_window(&f->host->cfg.low, *at, b->size) || in_window(&f->host->cfg.high, *at, b->size);
}

static void unmap_stale(struct pci_bar *b)
{
	gpa_t at;

	if (b->mapped && (!wanted(b, &at) || at != b->at)) {
		bus_unmap(b->f->host->cfg.bus, BUS_MMIO, b->at);
		b->mapped = false;
	}
}

/* On top of something else it stays unmapped, until either moves. */
static void map_wanted(struct pci_bar *b)
{
	if (!b->mapped && wanted(b, &b->at))
		b->mapped = bus_map(b->f->host->cfg.bus, BUS_MMIO, b->at, b->size, &pci_bar_ops, b, b->f->name, NULL);
}

static void each_bar(struct pci_host *h, void (*fn)(struct pci_bar *b))
{
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		for (unsigned j = 0; h->slots[i] && j < PCI_BARS; j++)
			fn(&h->slots[i]->bars[j]);
}

void pci_host_remap(struct pci_host *h)
{
	each_bar(h, unmap_stale);
	each_bar(h, map_wanted);
}

/* A line is the OR of all functions on it. */
void pci_host_update_intx(struct pci_host *h, unsigned line)
{
	bool level = false;

	for (unsigned i = 0; i < PCI_SLOTS; i++) {
		const struct pci_function *f = h->slots[i];

		if (f && (i >> 3) % 4 == line)
			level |= f->s.intx && !(get_le16(f->s.config + PCI_COMMAND) & COMMAND_INTX_OFF);
	}
	irq_set(&h->cfg.intx[line], level);
}

/* Naturally aligned, in order of devfn: what does not fit stays without an address. */
static void assign_bars(struct pci_host *h)
{
	gpa_t next = h->cfg.low.base;

	for (unsigned i = 0; i < PCI_SLOTS; i++) {
		struct pci_function *f = h->slots[i];
		bool any = false;

		for (unsigned j = 0; f && j < PCI_BARS; j++) {
			struct pci_bar *b = &f->bars[j];
			gpa_t at = b->size ? align_up(next, b->size) : 0;

			if (!b->size || !in_window(&h->cfg.low, at, b->size))
				continue;
			pci_bar_assign(b, at);
			next = at + b->size;
			any = true;
		}
		if (any)
			f->s.config[PCI_COMMAND] |= COMMAND_MEMORY;
	}
}

void pci_host_reset(struct pci_host *h)
{
	h->s.config_address = 0;
	for (unsigned i = 0; i < PCI_SLOTS; i++)
		if (h->slots[i])
			pci_function_reset(h->slots[i]);
	assign_bars(h);
	pci_host_remap(h);
	for (unsigned line = 0; line < 4; line++)
		pci_host_update_intx(h, line);
}

struct pci_host *pci_host_new(const struct pci_host_config *cfg, struct error *err)
{
	struct pci_host *h = calloc(1, sizeof(*h));
	struct pci_function_config bridge = {
		.vendor = cfg->vendor, .device = cfg->device, .class_code = 0x060000, .name = "pci-host",
	};

	if (!h) {
		error_set(err, "pci: out of memory");
		return NULL;
	}
	h->cfg = *cfg;
	h->bridge = pci_function_new(h, &bridge, err);
	if (!h->bridge)
		goto no_bridge;
	if (!bus_map(cfg->bus, BUS_MMIO, cfg->ecam_base, cfg->ecam_buses * ECAM_BUS_LEN, &ecam_ops, h, "pci-ecam", err))
		goto no_ecam;
	if (!bus_map(cfg->bus, BUS_PIO, CONFIG_PORT, CONFIG_PORT_LEN, &ports_ops, h, "pci-config", err))
		goto no_ports;
	return h;
no_ports:
	bus_unmap(cfg->bus, BUS_MMIO, cfg->ecam_base);
no_ecam:
	pci_function_free(h->bridge);
no_bridge:
	free(h);
	return NULL;
}

void pci_host_free(struct pci_host *h)
{
	if (!h)
		return;
	bus_unmap(h->cfg.bus, BUS_PIO, CONFIG_PORT);
	bus_unmap(h->cfg.bus, BUS_MMIO, h->cfg.ecam_base);
	pci_function_free(h->bridge);
	free(h);
}
