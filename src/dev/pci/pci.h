/*
 * PCI: one host bridge with bus 0, reached through ECAM (PCIe base 6.0, 7.2.2) and configuration mechanism #1 (PCI 3.0,
 * 3.2.2.3.2), and the type-0 functions on it with BARs, capabilities, INTx and MSI-X.
 *
 * The bridge forwards two windows of guest-physical addresses. A BAR is on the bus while memory decoding is enabled
 * and it lies inside a window and on nothing else; a BAR that the guest puts elsewhere is not mapped, which is no
 * error.
 * Life: the board makes the host, the devices make their functions, and pci_host_reset then gives every BAR an
 * address as firmware would have, and resets the devices. Functions are freed before the host.
 * Threads: every call with the machine lock held.
 */
#ifndef DEV_PCI_PCI_H
#define DEV_PCI_PCI_H

#include "bus/bus.h"
#include "dev/reset.h"
#include "irq/irq.h"

#define PCI_CONFIG_LEN 256
#define PCI_BARS 6
#define PCI_DEVFN(dev, fn) ((unsigned)(dev) << 3 | (unsigned)(fn))
#define PCI_MSIX_MAX 64

struct pci_host;
struct pci_function;

struct pci_window {
	gpa_t base;
	uint64_t len; /* 0: none */
};

struct pci_host_config {
	struct bus *bus;
	gpa_t ecam_base;
	unsigned ecam_buses;       /* 1 MiB each; only bus 0 has anything on it */
	struct pci_window low;     /* below 4 GiB; pci_host_reset assigns from here */
	struct pci_window high;    /* above */
	struct irq_line intx[4];   /* where INTA# to INTD# of device 0 go; device d's INTA# goes to intx[d % 4] */
	const struct irq_sink *msi;
	struct reset *reset;       /* port 0xcf9; may be NULL */
	uint16_t vendor, device;   /* of the bridge itself, 00:00.0 */
};

struct pci_host *pci_host_new(const struct pci_host_config *cfg, struct error *err);
void pci_host_free(struct pci_host *h);
/* Power-on state: every function is reset, then BARs are assigned in order of devfn and memory decoding enabled. */
void pci_host_reset(struct pci_host *h);

struct pci_function_ops {
	/* size 1, 2 or 4; off + size lies in the BAR. MSI-X tables are handled before. */
	uint64_t (*bar_read)(void *dev, unsigned bar, uint64_t off, unsigned size);
	void (*bar_write)(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value);
	/* Before bytes of configuration space are read, and after they were written; may be NULL. */
	void (*config_read)(void *dev, unsigned off, unsigned size);
	void (*config_written)(void *dev, unsigned off, unsigned size);
	void (*reset)(void *dev);
};

struct pci_function_config {
	unsigned devfn;
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint32_t class_code; /* 24 bits */
	uint8_t revision;
	bool intx; /* has INTA# */
	const struct pci_function_ops *ops; /* may be NULL for a function without BARs */
	void *dev;
	const char *name;
};

struct pci_function *pci_function_new(struct pci_host *h, const struct pci_function_config *cfg, struct error *err);
void pci_function_free(struct pci_function *f);

/* Set-up, before the first reset. */
/* size: power of two, 4 KiB or more. A 64-bit BAR takes index and index + 1. */
void pci_add_bar(struct pci_function *f, unsigned index, uint64_t size, bool is_64bit);
/* Returns the offset of len bytes, 0 but for the first two; read-only unless pci_config_writable says so. */
unsigned pci_add_cap(struct pci_function *f, uint8_t id, unsigned len);
void pci_config_writable(struct pci_function *f, unsigned off, unsigned len);
/* vectors up to PCI_MSIX_MAX; table (16 bytes each) and pending bits lie in BAR bar at the given offsets. */
void pci_add_msix(struct pci_function *f, unsigned bar, uint64_t table, uint64_t pba, unsigned vectors);

uint8_t *pci_config(struct pci_function *f);
bool pci_bus_master(const struct pci_function *f); /* false: the function must not touch memory */
/* An access as the bus would make it, for indirect access capabilities; false when it is not inside a BAR. */
bool pci_bar_access(struct pci_function *f, unsigned bar, uint64_t off, unsigned size, bool write, uint64_t *value);

void pci_set_intx(struct pci_function *f, bool level);
bool pci_msix_enabled(const struct pci_function *f);
/* Send the vector's message, or leave it pending while it is masked. An impossible vector does nothing. */
void pci_msix_notify(struct pci_function *f, unsigned vector);

#endif
