/* A board as micro is, for the tests of the ACPI tables. */
#ifndef TESTS_ACPI_FIXTURE_H
#define TESTS_ACPI_FIXTURE_H

#include "boot/acpi.h"
#include "boot/e820.h"

static inline struct acpi_config acpi_fixture(unsigned ncpus)
{
	return (struct acpi_config){
		.ncpus = ncpus,
		.lapic_base = 0xfee00000,
		.ioapic_base = 0xfec00000,
		.pic = true,
		.sci = 9,
		.pm1_evt = 0x600,
		.pm1_cnt = 0x604,
		.pm_tmr = 0x608,
		.gpe0 = 0x620,
		.gpe0_len = 8,
		.pm_tmr_32bit = true,
		.s5_type = 5,
		.reset_port = 0xcf9,
		.reset_value = 6,
		.ecam_base = 0xe0000000,
		.pci_bus_last = 255,
		.mmio32 = {0xc0000000, 0x20000000},
		.mmio64 = {0x8000000000, 0x8000000000},
		.intx_gsi = {16, 17, 18, 19},
		.rtc = true,
		.rtc_century = 0x32,
		.uart = {{0x3f8, 4}},
	};
}

#endif
