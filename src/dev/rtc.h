/*
 * MC146818A real-time clock with 128 bytes of CMOS RAM at ports 0x70 (index, bit 7 masks NMIs) and 0x71 (data).
 *
 * Time is the host's CLOCK_REALTIME (UTC) plus an offset that the guest changes by setting the clock. The memory-size
 * bytes follow PC convention: 0x15-0x18, 0x30/0x31, 0x34/0x35 (above 16 MiB, 64 KiB units), 0x5b-0x5d (above 4 GiB,
 * 64 KiB units); 0x32 is the century, 0x0f the shutdown byte, 0x10-0x2d are checksummed at 0x2e/0x2f.
 * Threads: machine lock held.
 */
#ifndef DEV_RTC_H
#define DEV_RTC_H

#include "base/timer.h"
#include "bus/bus.h"
#include "irq/irq.h"

#define RTC_PORT 0x70
#define RTC_CENTURY 0x32 /* for the FADT */

struct rtc;

struct rtc_config {
	struct bus *bus;
	struct irq_line irq; /* gsi 8 */
	struct timer_queue *timers;
	uint64_t ram_below_4g, ram_above_4g; /* bytes */
};

struct rtc *rtc_new(const struct rtc_config *cfg, struct error *err);
void rtc_free(struct rtc *r);
/* The RESET pin: interrupts off; time and RAM stay. */
void rtc_reset(struct rtc *r);
bool rtc_nmi_masked(const struct rtc *r);

#endif
