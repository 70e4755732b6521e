/*
 * The board `micro`: direct kernel boot, PCIe with ECAM, virtio-pci, one UART, minimal ACPI; the fastest boot.
 * One per machine; threads as in machine/machine.h.
 */
#ifndef MACHINE_MICRO_H
#define MACHINE_MICRO_H

#include "machine/machine.h"

extern const struct board board_micro;

#endif
