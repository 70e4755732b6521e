#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "dev/pci/pci_int.h"

/* True when [off, off + size) touches [reg, reg + len). */
static bool touches(unsigned off, unsigned size, unsigned reg, unsigned len)
{
	return off < reg + len && reg < off + size;
}

uint32_t pci_config_read(struct pci_function *f, unsigned off, unsigned size)
{
	uint32_t v = 0;

	if (!range_ok(off, size, PCI_CONFIG_LEN))
		return 0; /* extended configuration space: no capability there */
	if (f->ops && f->ops->config_read)
		f->ops->config_read(f->dev, off, size);
	memcpy(&v, f->s.config + off, size);
	return v;
}

void pci_config_write(struct pci_function *f, unsigned off, unsigned size, uint32_t value)
{
	if (!range_ok(off, size, PCI_CONFIG_LEN))
		return;
	for (unsigned i = 0; i < size; i++) {
		uint8_t m = f->writable[off + i], *b = &f->s.config[off + i];

		*b = (uint8_t)((*b & ~m) | (value >> (8 * i) & m));
	}
	if (touches(off, size, PCI_COMMAND, 2) || touches(off, size, PCI_BAR0, 4 * PCI_BARS))
		pci_host_remap(f->host);
	if (touches(off, size, PCI_COMMAND, 2))
		pci_host_update_intx(f->host, (f->devfn >> 3) % 4);
	if (f->msix_cap && touches(off, size, f->msix_cap + MSIX_CONTROL, 2))
		pci_msix_config_written(f);
	if (f->ops && f->ops->config_written)
		f->ops->config_written(f->dev, off, size);
}

bool pci_bar_access(struct pci_function *f, unsigned bar, uint64_t off, unsigned size, bool write, uint64_t *value)
{
	if (bar >= PCI_BARS || !range_ok(off, size, f->bars[bar].size))
		return false;
	if (pci_msix_access(f, bar, off, size, write, value))
		return true;
	if (write)
		f->ops->bar_write(f->dev, bar, off, size, *value);
	else
		*value = f->ops->bar_read(f->dev, bar, off, size);
	return true;
}

static uint64_t bar_read(void *dev, uint64_t off, unsigned size)
{
	struct pci_bar *b = dev;
	uint64_t v = mask_bytes(size);

	pci_bar_access(b->f, b->index, off, size, false, &v);
	return v;
}

static void bar_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct pci_bar *b = dev;

	pci_bar_access(b->f, b->index, off, size, true, &value);
}

const struct bus_ops pci_bar_ops = {bar_read, bar_write, 1, 4};

uint8_t *pci_config(struct pci_function *f) { return f->s.config; }

bool pci_bus_master(const struct pci_function *f) { return f->s.config[PCI_COMMAND] & COMMAND_MASTER; }

void pci_set_intx(struct pci_function *f, bool level)
{
	f->s.intx = level;
	if (level)
		f->s.config[PCI_STATUS] |= STATUS_INTX;
	else
		f->s.config[PCI_STATUS] &= (uint8_t)~STATUS_INTX;
	pci_host_update_intx(f->host, (f->devfn >> 3) % 4);
}

void pci_config_writable(struct pci_function *f, unsigned off, unsigned len)
{
	assert(range_ok(off, len, PCI_CONFIG_LEN));
	memset(f->writable + off, 0xff, len);
}

void pci_add_bar(struct pci_function *f, unsigned index, uint64_t size, bool is_64bit)
{
	uint8_t *mask = f->writable + PCI_BAR0 + 4 * index;

	assert(size >= PAGE_SIZE && (size & (size - 1)) == 0 && index + is_64bit < PCI_BARS);
	f->bars[index].size = size;
	f->bars[index].is_64bit = is_64bit;
	put_le32(mask, (uint32_t)~(size - 1));
	if (is_64bit) {
		put_le32(mask + 4, (uint32_t)(~(size - 1) >> 32));
		f->s.config[PCI_BAR0 + 4 * index] = BAR_64BIT;
	}
}

void pci_bar_assign(struct pci_bar *b, gpa_t at)
{
	uint8_t *reg = b->f->s.config + PCI_BAR0 + 4 * b->index;

	put_le32(reg, (uint32_t)at | (get_le32(reg) & 0xf));
	if (b->is_64bit)
		put_le32(reg + 4, (uint32_t)(at >> 32));
}

unsigned pci_add_cap(struct pci_function *f, uint8_t id, unsigned len)
{
	unsigned off = f->next_cap;

	assert(range_ok(off, len, PCI_CONFIG_LEN));
	f->s.config[off] = id;
	f->s.config[f->last_cap ? f->last_cap + 1 : PCI_CAPABILITIES] = (uint8_t)off;
	f->s.config[PCI_STATUS] |= STATUS_CAP_LIST;
	f->last_cap = off;
	f->next_cap = (unsigned)align_up(off + len, 4);
	return off;
}

/* Every writable bit is 0 after reset; the interrupt line is what firmware would have written. */
void pci_function_reset(struct pci_function *f)
{
	for (unsigned i = 0; i < PCI_CONFIG_LEN; i++)
		f->s.config[i] &= (uint8_t)~f->writable[i];
	if (f->s.config[PCI_INT_PIN])
		f->s.config[PCI_INT_LINE] = (uint8_t)f->host->cfg.intx[(f->devfn >> 3) % 4].gsi;
	pci_msix_reset(f);
	pci_set_intx(f, false);
	if (f->ops && f->ops->reset)
		f->ops->reset(f->dev);
}

static void fill_header(struct pci_function *f, const struct pci_function_config *cfg)
{
	uint8_t *c = f->s.config;

	put_le16(c + PCI_VENDOR, cfg->vendor);
	put_le16(c + PCI_DEVICE, cfg->device);
	c[PCI_REVISION] = cfg->revision;
	c[PCI_CLASS] = (uint8_t)cfg->class_code;
	put_le16(c + PCI_CLASS + 1, (uint16_t)(cfg->class_code >> 8));
	put_le16(c + PCI_SUBSYSTEM_VENDOR, cfg->subsystem_vendor);
	put_le16(c + PCI_SUBSYSTEM, cfg->subsystem);
	c[PCI_INT_PIN] = cfg->intx ? 1 : 0;
	put_le16(f->writable + PCI_COMMAND,
		 COMMAND_MEMORY | COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_OFF);
	f->writable[PCI_INT_LINE] = 0xff;
}

struct pci_function *pci_function_new(struct pci_host *h, const struct pci_function_config *cfg, struct error *err)
{
	struct pci_function *f;

	if (cfg->devfn >= PCI_SLOTS || h->slots[cfg->devfn]) {
		error_set(err, "pci: slot %02x.%x of '%s' is taken", cfg->devfn >> 3, cfg->devfn & 7, cfg->name);
		return NULL;
	}
	f = calloc(1, sizeof(*f));
	if (!f) {
		error_set(err, "pci: out of memory");
		return NULL;
	}
	f->host = h;
	f->devfn = cfg->devfn;
	f->ops = cfg->ops;
	f->dev = cfg->dev;
	f->name = cfg->name;
	f->next_cap = PCI_FIRST_CAP;
	for (unsigned i = 0; i < PCI_BARS; i++) {
		f->bars[i].f = f;
		f->bars[i].index = i;
	}
	fill_header(f, cfg);
	h->slots[cfg->devfn] = f;
	return f;
}

void pci_function_free(struct pci_function *f)
{
	if (!f)
		return;
	pci_set_intx(f, false);
	for (unsigned i = 0; i < PCI_BARS; i++)
		if (f->bars[i].mapped)
			bus_unmap(f->host->cfg.bus, BUS_MMIO, f->bars[i].at);
	f->host->slots[f->devfn] = NULL;
	free(f);
}
