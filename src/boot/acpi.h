/*
 * The ACPI tables of a board (ACPI 6.5): RSDP, XSDT, FADT, FACS, MADT, MCFG and a DSDT that names the devices.
 *
 * Power button and sleep control are fixed hardware, the SCI is level-triggered and active high, there is no SMI_CMD
 * (always ACPI mode), and IRQ 0 comes in at GSI 2.
 */
#ifndef BOOT_ACPI_H
#define BOOT_ACPI_H

#include "mem/ram.h"

struct acpi_window {
	uint64_t base, size; /* size 0: none */
};

struct acpi_uart {
	uint16_t port; /* 0: none; 8 ports */
	uint8_t irq;
};

#define ACPI_UARTS 4

struct acpi_config {
	unsigned ncpus; /* APIC ids 0 to ncpus - 1 */
	uint32_t lapic_base, ioapic_base;
	uint8_t ioapic_id;
	bool pic; /* an 8259 pair is there too */

	/* Fixed hardware: port and bytes of each block. */
	uint8_t sci; /* GSI */
	uint16_t pm1_evt, pm1_cnt, pm_tmr, gpe0;
	uint8_t gpe0_len; /* 0: no GPE block */
	bool pm_tmr_32bit;
	uint8_t s5_type; /* SLP_TYP of the soft-off state */
	uint16_t reset_port;
	uint8_t reset_value;

	/* PCI Express: ECAM from the bus pci_bus_first on (1 MiB a bus), windows that the bridge passes on. */
	gpa_t ecam_base;
	uint8_t pci_bus_first, pci_bus_last;
	struct acpi_window mmio32, mmio64;
	uint8_t intx_gsi[4]; /* of device d's pin p (0: INTA): intx_gsi[(d + p) % 4] */

	bool rtc;
	uint8_t rtc_century; /* CMOS index of the century, 0: none */
	struct acpi_uart uart[ACPI_UARTS];
};

/*
 * Write the tables to [base, base + size) and say where the RSDP is. base: a multiple of 16 from 0xe0000 to 1 MiB, for
 * systems that look for the RSDP by themselves.
 */
bool acpi_build(struct ram *ram, const struct acpi_config *cfg, gpa_t base, uint64_t size, gpa_t *rsdp,
		struct error *err);

#endif
