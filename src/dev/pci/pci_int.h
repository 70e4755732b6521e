/* Between host.c, function.c and msix.c. */
#ifndef DEV_PCI_PCI_INT_H
#define DEV_PCI_PCI_INT_H

#include "dev/pci/pci.h"

#define PCI_SLOTS 256 /* devfn */

enum {
	PCI_VENDOR = 0x00,
	PCI_DEVICE = 0x02,
	PCI_COMMAND = 0x04,
	PCI_STATUS = 0x06,
	PCI_REVISION = 0x08,
	PCI_CLASS = 0x09,
	PCI_BAR0 = 0x10,
	PCI_SUBSYSTEM_VENDOR = 0x2c,
	PCI_SUBSYSTEM = 0x2e,
	PCI_CAPABILITIES = 0x34,
	PCI_INT_LINE = 0x3c,
	PCI_INT_PIN = 0x3d,
	PCI_FIRST_CAP = 0x40,
	COMMAND_MEMORY = 0x0002,
	COMMAND_MASTER = 0x0004,
	COMMAND_PARITY = 0x0040,
	COMMAND_SERR = 0x0100,
	COMMAND_INTX_OFF = 0x0400,
	STATUS_INTX = 0x08,
	STATUS_CAP_LIST = 0x10,
	BAR_64BIT = 0x4,
	CAP_MSIX = 0x11,
	MSIX_CONTROL = 2,
	MSIX_ENABLE = 0x8000,
	MSIX_MASK_ALL = 0x4000,
};

struct msix_entry {
	uint32_t addr_lo, addr_hi, data, control;
};

/* All that a guest can see of a function. */
struct pci_function_state {
	uint8_t config[PCI_CONFIG_LEN];
	bool intx;
	struct msix_entry table[PCI_MSIX_MAX];
	uint64_t pending; /* one bit a vector */
};

struct pci_bar {
	struct pci_function *f;
	unsigned index;
	uint64_t size; /* 0: no such BAR */
	bool is_64bit;
	bool mapped;
	gpa_t at;
};

struct pci_function {
	struct pci_function_state s;
	uint8_t writable[PCI_CONFIG_LEN]; /* bits that the guest can change */
	struct pci_host *host;
	unsigned devfn;
	const struct pci_function_ops *ops;
	void *dev;
	const char *name;
	struct pci_bar bars[PCI_BARS];
	unsigned last_cap, next_cap;
	unsigned msix_cap; /* 0: none */
	unsigned msix_bar, msix_vectors;
	uint64_t msix_table, msix_pba;
};

/* All that a guest can see of the bridge, apart from its function. */
struct pci_host_state {
	uint32_t config_address; /* port 0xcf8 */
};

struct pci_host {
	struct pci_host_state s;
	struct pci_host_config cfg;
	struct pci_function *slots[PCI_SLOTS];
	struct pci_function *bridge;
};

uint32_t pci_config_read(struct pci_function *f, unsigned off, unsigned size);
void pci_config_write(struct pci_function *f, unsigned off, unsigned size, uint32_t value);
/* Give the BAR an address; takes effect with pci_host_remap. */
void pci_bar_assign(struct pci_bar *b, gpa_t at);
void pci_function_reset(struct pci_function *f);
/* Bring what is on the bus in line with all BARs and command registers. */
void pci_host_remap(struct pci_host *h);
void pci_host_update_intx(struct pci_host *h, unsigned line);
extern const struct bus_ops pci_bar_ops;

/* True: off lies in the MSI-X table or pending bits, and the access was done. */
bool pci_msix_access(struct pci_function *f, unsigned bar, uint64_t off, unsigned size, bool write, uint64_t *value);
void pci_msix_config_written(struct pci_function *f);
void pci_msix_reset(struct pci_function *f);

#endif
