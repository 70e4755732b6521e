/*
 * ACPI fixed hardware (ACPI 6.5, 4.8): PM1a event and control blocks, PM timer and one GPE block at a port base.
 * There is no SMI_CMD: the machine is always in ACPI mode and SCI_EN reads 1.
 *
 * Threads: machine lock held; so is it when the callback runs (it must only take note).
 */
#ifndef DEV_ACPI_PM_H
#define DEV_ACPI_PM_H

#include "base/timer.h"
#include "bus/bus.h"
#include "irq/irq.h"

/* Offsets and lengths from the base, for the FADT. */
#define ACPI_PM_EVT 0x00
#define ACPI_PM_EVT_LEN 4
#define ACPI_PM_CNT 0x04
#define ACPI_PM_CNT_LEN 2
#define ACPI_PM_TMR 0x08
#define ACPI_PM_TMR_LEN 4
#define ACPI_PM_GPE0 0x20
#define ACPI_PM_GPE0_LEN 8 /* 4 bytes of status, 4 of enable */
#define ACPI_PM_LEN 0x40

#define ACPI_PM_TIMER_HZ 3579545

struct acpi_pm;

struct acpi_pm_config {
	struct bus *bus;
	uint16_t base;
	struct irq_line sci; /* level, active high at the line */
	struct timer_queue *timers;
	bool timer_32bit; /* FADT flag TMR_VAL_EXT */
	uint8_t s5_type;  /* SLP_TYP of \_S5 */
	void (*on_power_off)(void *ctx);
	void *ctx;
};

struct acpi_pm *acpi_pm_new(const struct acpi_pm_config *cfg, struct error *err);
void acpi_pm_free(struct acpi_pm *p);
void acpi_pm_reset(struct acpi_pm *p);

/* The user pressed the power button. */
void acpi_pm_power_button(struct acpi_pm *p);
/* General-purpose event n (0-31) happened. */
void acpi_pm_gpe(struct acpi_pm *p, unsigned n);

#endif
