/* MSI-X: PCI 3.0, 6.8.2. The table and the pending bits are read and written as aligned doublewords. */
#include <assert.h>

#include "dev/pci/pci_int.h"

#define ENTRY_LEN 16
#define ENTRY_MASKED 1u

static uint16_t control(const struct pci_function *f)
{
	return f->msix_cap ? get_le16(f->s.config + f->msix_cap + MSIX_CONTROL) : 0;
}

bool pci_msix_enabled(const struct pci_function *f) { return control(f) & MSIX_ENABLE; }

static void send(struct pci_function *f, unsigned v)
{
	const struct msix_entry *e = &f->s.table[v];

	f->s.pending &= ~BIT(v);
	/* A message is a memory write: not without bus mastering. */
	if (pci_bus_master(f))
		irq_msi(f->host->cfg.msi, (uint64_t)e->addr_hi << 32 | e->addr_lo, e->data);
}

static bool masked(const struct pci_function *f, unsigned v)
{
	return control(f) & MSIX_MASK_ALL || f->s.table[v].control & ENTRY_MASKED;
}

void pci_msix_notify(struct pci_function *f, unsigned vector)
{
	if (!pci_msix_enabled(f) || vector >= f->msix_vectors)
		return;
	if (masked(f, vector))
		f->s.pending |= BIT(vector);
	else
		send(f, vector);
}

static void send_unmasked(struct pci_function *f)
{
	if (!pci_msix_enabled(f))
		return;
	for (unsigned v = 0; v < f->msix_vectors; v++)
		if (f->s.pending & BIT(v) && !masked(f, v))
			send(f, v);
}

void pci_msix_config_written(struct pci_function *f) { send_unmasked(f); }

static void table_access(struct pci_function *f, uint64_t off, bool write, uint64_t *value)
{
	struct msix_entry *e = &f->s.table[off / ENTRY_LEN];
	uint32_t *const fields[] = {&e->addr_lo, &e->addr_hi, &e->data, &e->control};
	static const uint32_t writable[] = {~3u, ~0u, ~0u, ENTRY_MASKED};
	unsigned i = off % ENTRY_LEN / 4;

	if (!write) {
		*value = *fields[i];
		return;
	}
	*fields[i] = (uint32_t)*value & writable[i];
	send_unmasked(f);
}

bool pci_msix_access(struct pci_function *f, unsigned bar, uint64_t off, unsigned size, bool write, uint64_t *value)
{
	bool in_table, in_pba;

	if (!f->msix_cap || bar != f->msix_bar)
		return false;
	in_table = off >= f->msix_table && off - f->msix_table < (uint64_t)f->msix_vectors * ENTRY_LEN;
	in_pba = off >= f->msix_pba && off - f->msix_pba < 8;
	if (!in_table && !in_pba)
		return false;
	if (size != 4 || off % 4) {
		if (!write)
			*value = mask_bytes(size);
	} else if (in_table) {
		table_access(f, off - f->msix_table, write, value);
	} else if (!write) {
		*value = (uint32_t)(f->s.pending >> (8 * (off - f->msix_pba)));
	}
	return true;
}

void pci_msix_reset(struct pci_function *f)
{
	f->s.pending = 0;
	for (unsigned v = 0; v < f->msix_vectors; v++)
		f->s.table[v] = (struct msix_entry){.control = ENTRY_MASKED};
}

void pci_add_msix(struct pci_function *f, unsigned bar, uint64_t table, uint64_t pba, unsigned vectors)
{
	unsigned cap = pci_add_cap(f, CAP_MSIX, 12);

	assert(vectors >= 1 && vectors <= PCI_MSIX_MAX && table % 8 == 0 && pba % 8 == 0);
	f->msix_cap = cap;
	f->msix_bar = bar;
	f->msix_table = table;
	f->msix_pba = pba;
	f->msix_vectors = vectors;
	put_le16(f->s.config + cap + MSIX_CONTROL, (uint16_t)(vectors - 1));
	put_le32(f->s.config + cap + 4, (uint32_t)table | bar);
	put_le32(f->s.config + cap + 8, (uint32_t)pba | bar);
	put_le16(f->writable + cap + MSIX_CONTROL, MSIX_ENABLE | MSIX_MASK_ALL);
	pci_msix_reset(f);
}
