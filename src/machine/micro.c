#include "machine/micro.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/char/chardev.h"
#include "base/log.h"
#include "boot/acpi.h"
#include "boot/boot.h"
#include "boot/disk/disk.h"
#include "dev/acpi_pm.h"
#include "dev/debug_exit.h"
#include "dev/pci/pci.h"
#include "dev/reset.h"
#include "dev/rtc.h"
#include "dev/uart.h"
#include "dev/virtio/blk.h"
#include "dev/virtio/console.h"
#include "dev/virtio/net.h"
#include "dev/virtio/p9.h"
#include "dev/virtio/rng.h"
#include "dev/virtio/vsock.h"
#include "machine/disk.h"

/* Ports. The interrupt chips, which are the engine's, have 0x20, 0x40, 0x61, 0xa0 and 0x4d0. */
#define COM1_PORT 0x3f8
#define ACPI_PM_PORT 0x600

/* Guest-physical addresses between RAM's low part (up to 3 GiB) and 4 GiB. */
#define PCI_LOW_BASE 0xc0000000u
#define PCI_LOW_LEN 0x20000000u
#define ECAM_BASE 0xe0000000u
#define ECAM_BUSES 1
#define ECAM_LEN (ECAM_BUSES * MIB)
#define IOAPIC_BASE 0xfec00000u
#define LAPIC_BASE 0xfee00000u
#define CHIPS_LEN 0x00400000u /* IOAPIC and LAPIC, as the memory map reserves them */

/* Above 4 GiB: where RAM ends, at the next multiple, when the guest's physical addresses reach so far. */
#define PCI_HIGH_ALIGN (64 * GIB)
#define PCI_HIGH_LEN (64 * GIB)

/* GSIs. INTA# to INTD# have the IOAPIC's upper pins to themselves. */
#define COM1_IRQ 4
#define RTC_IRQ 8
#define SCI_IRQ 9
#define INTX_GSI 16

/* PCI 00:00.0 */
#define HOST_BRIDGE_VENDOR 0x1b36 /* a PCIe host bridge without a chip's quirks */
#define HOST_BRIDGE_DEVICE 0x0008
#define RNG_DEVICE 1
#define CONSOLE_DEVICE 2
#define VSOCK_DEVICE 3
#define SHARE_DEVICE 4 /* the first of MACHINE_MAX_SHARES */
#define NIC_DEVICE 8 /* the first of MACHINE_MAX_NICS */
#define DISK_DEVICE 16 /* and upwards */
#define DISKS_MAX 16

#define S5_TYPE 5

struct micro {
	struct machine *machine;
	struct chardev *serial_chr, *console_chr;
	struct uart *com1;
	struct rtc *rtc;
	struct acpi_pm *pm;
	struct reset *reset;
	struct debug_exit *debug_exit;
	struct pci_host *pci;
	struct virtio_rng *rng;
	struct virtio_console *console;
	struct net *nets[MACHINE_MAX_NICS];
	struct virtio_net *nics[MACHINE_MAX_NICS];
	struct block *blocks[DISKS_MAX];
	struct virtio_blk *disks[DISKS_MAX];
	struct virtio_vsock *vsock;
	struct fs *fs[MACHINE_MAX_SHARES];
	struct virtio_p9 *shares[MACHINE_MAX_SHARES];
	struct pci_window pci_high;
};

static void on_power_off(void *ctx)
{
	machine_stop(ctx, STOP_POWEROFF, 0);
}

static void on_reset(void *ctx)
{
	machine_reset_request(ctx);
}

static void on_debug_exit(void *ctx, uint32_t value)
{
	machine_stop(ctx, STOP_DEBUG_EXIT, value);
}

static void on_escape(void *ctx)
{
	struct machine *m = ctx;

	pthread_mutex_lock(&m->lock);
	machine_stop(m, STOP_ESCAPE, 0);
	pthread_mutex_unlock(&m->lock);
}

static uint64_t ram_above_4g(const struct machine *m)
{
	return ram_size(m->ram) > RAM_LOW_MAX ? ram_size(m->ram) - RAM_LOW_MAX : 0;
}

static struct pci_window high_window(const struct machine *m)
{
	gpa_t base = align_up(RAM_HIGH_BASE + ram_above_4g(m), PCI_HIGH_ALIGN);

	if (!range_ok(base, PCI_HIGH_LEN, BIT(m->cpuid.phys_bits)))
		return (struct pci_window){0};
	return (struct pci_window){.base = base, .len = PCI_HIGH_LEN};
}

static bool open_chardevs(struct micro *b, struct error *err)
{
	struct machine *m = b->machine;

	b->serial_chr = chardev_open(m->cfg.serial, m->loop, &m->lock, on_escape, m, err);
	if (!b->serial_chr)
		return false;
	if (!m->cfg.virtio_console)
		return true;
	b->console_chr = chardev_open(m->cfg.virtio_console, m->loop, &m->lock, on_escape, m, err);
	return b->console_chr;
}

static bool add_disks(struct micro *b, struct error *err)
{
	struct machine *m = b->machine;

	if (m->cfg.ndisks > DISKS_MAX) {
		error_set(err, "%u disks are more than the %u that there is room for", m->cfg.ndisks, DISKS_MAX);
		return error_hint(err, "leave some away");
	}
	for (unsigned i = 0; i < m->cfg.ndisks; i++) {
		const struct machine_disk *d = &m->cfg.disks[i];

		b->blocks[i] = block_open(&d->image, err);
		if (!b->blocks[i])
			return false;
		b->disks[i] = virtio_blk_new(&(struct virtio_blk_config){
			.virtio = {.host = b->pci, .devfn = PCI_DEVFN(DISK_DEVICE + i, 0), .ram = m->ram, .timers = &m->timers},
			.queue = {.block = b->blocks[i], .iops = d->iops, .bps = d->bps, .on_error = d->on_error},
			.lock = &m->lock, .nqueues = (unsigned)min_u64(m->cfg.ncpus, VIRTIO_BLK_QUEUES_MAX),
			.serial = d->serial}, err);
		if (!b->disks[i])
			return false;
	}
	return true;
}

/* The only device whose place the user chooses. */
static bool add_debug_exit(struct micro *b, struct error *err)
{
	static const struct {
		uint16_t port, len;
	} chips[] = {{0x20, 2}, {0x40, 4}, {0x61, 1}, {0xa0, 2}, {0x4d0, 2}};
	struct machine *m = b->machine;
	uint16_t port = m->cfg.debug_exit_port;
	bool taken = false;

	for (size_t i = 0; i < ARRAY_LEN(chips); i++)
		taken |= port < chips[i].port + chips[i].len && port + DEBUG_EXIT_LEN > chips[i].port;
	if (taken)
		error_set(err, "debug-exit at %#x overlaps an interrupt chip or timer", port);
	else
		b->debug_exit = debug_exit_new(m->bus, port, on_debug_exit, m, err);
	return b->debug_exit || error_hint(err, "choose another port, as in --debug-exit=0x501");
}

static bool add_nics(struct micro *b, struct error *err)
{
	struct machine *m = b->machine;

	for (unsigned i = 0; i < m->cfg.nnics; i++) {
		const struct machine_nic *nic = &m->cfg.nics[i];
		struct virtio_net_config c = {.lock = &m->lock, .mac_filter = nic->mac_filter, .mtu = (uint16_t)nic->net.mtu};

		b->nets[i] = c.net = net_open(&nic->net, err);
		if (!b->nets[i])
			return false;
		memcpy(c.mac, nic->mac, sizeof(c.mac));
		b->nics[i] = virtio_net_new(&(struct virtio_config){.host = b->pci, .devfn = PCI_DEVFN(NIC_DEVICE + i, 0),
								    .ram = m->ram, .timers = &m->timers}, &c, err);
		if (!b->nics[i])
			return false;
	}
	return true;
}

static bool add_shares(struct micro *b, struct error *err)
{
	struct machine *m = b->machine;

	for (unsigned i = 0; i < m->cfg.nshares; i++) {
		const struct machine_share *s = &m->cfg.shares[i];

		b->fs[i] = fs_open(&(struct fs_options){.path = s->path, .readonly = s->readonly}, err);
		if (!b->fs[i])
			return false;
		b->shares[i] = virtio_p9_new(&(struct virtio_config){.host = b->pci, .devfn = PCI_DEVFN(SHARE_DEVICE + i, 0), .ram = m->ram,
								     .timers = &m->timers},
					     &(struct virtio_p9_config){.fs = b->fs[i], .lock = &m->lock, .tag = s->tag}, err);
		if (!b->shares[i])
			return false;
	}
	return true;
}

static bool add_vsock(struct micro *b, struct error *err)
{
	struct machine *m = b->machine;

	if (!m->cfg.vsock.cid)
		return true;
	b->vsock = virtio_vsock_new(&(struct virtio_config){.host = b->pci, .devfn = PCI_DEVFN(VSOCK_DEVICE, 0), .ram = m->ram, .timers = &m->timers},
				    &(struct virtio_vsock_config){.host = {.path = m->cfg.vsock.path, .cid = m->cfg.vsock.cid},
								  .loop = m->loop, .lock = &m->lock}, err);
	return b->vsock;
}

/* The wiring list. */
static bool micro_build(struct machine *m, struct error *err)
{
	struct micro *b = calloc(1, sizeof(*b));
	const struct irq_sink *irqs = m->engine->ops->irq_sink(m->engine);

	if (!b)
		return error_set(err, "out of memory");
	b->machine = m;
	b->pci_high = high_window(m);
	m->devices = b;

	if (!open_chardevs(b, err))
		return false;

	b->com1 = uart_new(&(struct uart_config){.bus = m->bus, .space = BUS_PIO, .base = COM1_PORT, .irq = {irqs, COM1_IRQ},
						 .chr = b->serial_chr, .timers = &m->timers, .name = "COM1"}, err);
	if (!b->com1)
		return false;

	b->rtc = rtc_new(&(struct rtc_config){.bus = m->bus, .irq = {irqs, RTC_IRQ}, .timers = &m->timers,
					      .ram_below_4g = min_u64(ram_size(m->ram), RAM_LOW_MAX),
					      .ram_above_4g = ram_above_4g(m)}, err);
	if (!b->rtc)
		return false;

	b->pm = acpi_pm_new(&(struct acpi_pm_config){.bus = m->bus, .base = ACPI_PM_PORT, .sci = {irqs, SCI_IRQ},
						     .timers = &m->timers, .timer_32bit = true, .s5_type = S5_TYPE,
						     .on_power_off = on_power_off, .ctx = m}, err);
	if (!b->pm)
		return false;

	b->reset = reset_new(m->bus, on_reset, m, err);
	if (!b->reset)
		return false;

	b->pci = pci_host_new(&(struct pci_host_config){.bus = m->bus, .ecam_base = ECAM_BASE, .ecam_buses = ECAM_BUSES,
							.low = {PCI_LOW_BASE, PCI_LOW_LEN}, .high = b->pci_high,
							.intx = {{irqs, INTX_GSI}, {irqs, INTX_GSI + 1},
								 {irqs, INTX_GSI + 2}, {irqs, INTX_GSI + 3}},
							.msi = irqs, .reset = b->reset,
							.vendor = HOST_BRIDGE_VENDOR, .device = HOST_BRIDGE_DEVICE}, err);
	if (!b->pci)
		return false;

	b->rng = virtio_rng_new(&(struct virtio_config){.host = b->pci, .devfn = PCI_DEVFN(RNG_DEVICE, 0), .ram = m->ram,
							.timers = &m->timers}, err);
	if (!b->rng)
		return false;

	if (b->console_chr) {
		b->console = virtio_console_new(&(struct virtio_config){.host = b->pci,
									.devfn = PCI_DEVFN(CONSOLE_DEVICE, 0),
									.ram = m->ram, .timers = &m->timers},
						b->console_chr, err);
		if (!b->console)
			return false;
	}

	if (!add_vsock(b, err) || !add_shares(b, err) || !add_nics(b, err) || !add_disks(b, err))
		return false;

	if (m->cfg.debug_exit && !add_debug_exit(b, err))
		return false;
	pci_host_reset(b->pci);
	return true;
}

static bool build_acpi(struct micro *b, gpa_t *rsdp, struct error *err)
{
	struct machine *m = b->machine;
	struct acpi_config c = {
		.ncpus = m->cfg.ncpus,
		.lapic_base = LAPIC_BASE,
		.ioapic_base = IOAPIC_BASE,
		.pic = true,
		.sci = SCI_IRQ,
		.pm1_evt = ACPI_PM_PORT + ACPI_PM_EVT,
		.pm1_cnt = ACPI_PM_PORT + ACPI_PM_CNT,
		.pm_tmr = ACPI_PM_PORT + ACPI_PM_TMR,
		.gpe0 = ACPI_PM_PORT + ACPI_PM_GPE0,
		.gpe0_len = ACPI_PM_GPE0_LEN,
		.pm_tmr_32bit = true,
		.s5_type = S5_TYPE,
		.reset_port = RESET_PORT,
		.reset_value = RESET_VALUE,
		.ecam_base = ECAM_BASE,
		.pci_bus_last = ECAM_BUSES - 1,
		.mmio32 = {PCI_LOW_BASE, PCI_LOW_LEN},
		.mmio64 = {b->pci_high.base, b->pci_high.len},
		.intx_gsi = {INTX_GSI, INTX_GSI + 1, INTX_GSI + 2, INTX_GSI + 3},
		.rtc = true,
		.rtc_century = RTC_CENTURY,
		.uart = {{COM1_PORT, COM1_IRQ}},
	};

	return acpi_build(m->ram, &c, E820_ROM, E820_ROM_END - E820_ROM, rsdp, err);
}

/* What the first disk would boot; --append comes behind its command line. */
static bool load_from_disk(struct micro *b, struct boot_params *p, struct cpu_state *bsp, struct error *err)
{
	char cmdline[2 * BOOT_DISK_CMDLINE_MAX];
	struct boot_disk d;
	struct boot_blob kernel, initrd;
	bool ok;

	if (!boot_disk_read(b->blocks[0], ram_size(p->ram), &d, err))
		return false;
	if ((size_t)snprintf(cmdline, sizeof(cmdline), "%s%s%s", d.cmdline, p->cmdline ? " " : "", p->cmdline ? p->cmdline : "") <
	    sizeof(cmdline)) {
		p->cmdline = cmdline;
		kernel = (struct boot_blob){b->blocks[0]->path, d.kernel.data, d.kernel.size};
		initrd = (struct boot_blob){b->blocks[0]->path, d.initrd.data, d.initrd.size};
		ok = boot_load_blobs(p, &kernel, initrd.size ? &initrd : NULL, NULL, 0, bsp, err);
		if (ok)
			log_info("boots %s", d.title);
	} else {
		error_set(err, "--append: too long behind the command line of the disk's entry");
		ok = error_hint(err, "shorten it, or name the kernel with --kernel");
	}
	boot_disk_free(&d);
	return ok;
}

static bool micro_load(struct machine *m, struct error *err)
{
	static const struct e820_entry reserved[] = {
		{ECAM_BASE, ECAM_LEN, E820_RESERVED},
		{IOAPIC_BASE, CHIPS_LEN, E820_RESERVED},
	};
	struct boot_params p = {
		.ram = m->ram,
		.kernel = m->cfg.kernel,
		.initrd = m->cfg.initrd,
		.cmdline = m->cfg.append,
		.modules = m->cfg.modules,
		.nmodules = m->cfg.nmodules,
		.extra = reserved,
		.nextra = ARRAY_LEN(reserved),
	};
	struct cpu_state bsp;

	if (!build_acpi(m->devices, &p.rsdp, err))
		return false;
	for (unsigned i = 1; i < m->cfg.ncpus; i++) {
		struct cpu_state ap;

		m->engine->ops->get_state(m->engine, i, &ap);
		boot_firmware_state(&ap);
		if (!m->engine->ops->set_state(m->engine, i, &ap, err))
			return false;
	}
	m->engine->ops->get_state(m->engine, 0, &bsp);
	return (p.kernel ? boot_load(&p, &bsp, err) : load_from_disk(m->devices, &p, &bsp, err)) &&
	       m->engine->ops->set_state(m->engine, 0, &bsp, err);
}

static void micro_reset(struct machine *m)
{
	struct micro *b = m->devices;

	pci_host_reset(b->pci);
	uart_reset(b->com1);
	rtc_reset(b->rtc);
	acpi_pm_reset(b->pm);
	reset_reset(b->reset);
}

static void micro_power_button(struct machine *m)
{
	struct micro *b = m->devices;

	acpi_pm_power_button(b->pm);
}

static void micro_free(struct machine *m)
{
	struct micro *b = m->devices;

	if (!b)
		return;
	for (unsigned i = 0; i < MACHINE_MAX_NICS; i++) {
		virtio_net_free(b->nics[i]);
		net_close(b->nets[i]);
	}
	for (unsigned i = 0; i < DISKS_MAX; i++) {
		virtio_blk_free(b->disks[i]);
		block_close(b->blocks[i]);
	}
	virtio_vsock_free(b->vsock);
	for (unsigned i = 0; i < MACHINE_MAX_SHARES; i++)
		if (virtio_p9_free(b->shares[i]))
			fs_close(b->fs[i]);
	virtio_console_free(b->console);
	virtio_rng_free(b->rng);
	pci_host_free(b->pci);
	debug_exit_free(b->debug_exit);
	reset_free(b->reset);
	acpi_pm_free(b->pm);
	rtc_free(b->rtc);
	uart_free(b->com1);
	chardev_close(b->console_chr);
	chardev_close(b->serial_chr);
	free(b);
	m->devices = NULL;
}

static bool micro_resize_disk(struct machine *m, unsigned disk, uint64_t size, struct error *err)
{
	struct micro *b = m->devices;

	if (disk >= m->cfg.ndisks) {
		error_set(err, "there is no disk %u", disk);
		return error_hint(err, "the first one is 0");
	}
	if (size < b->blocks[disk]->size) {
		error_set(err, "disk %s: it has %llu bytes already", b->blocks[disk]->path, (unsigned long long)b->blocks[disk]->size);
		return error_hint(err, "a disk in use only grows");
	}
	return virtio_blk_resize(b->disks[disk], size, err);
}

static void micro_resume(struct machine *m)
{
	struct micro *b = m->devices;

	for (unsigned i = 0; i < m->cfg.ndisks; i++)
		block_queue_retry(virtio_blk_queue(b->disks[i]));
}

static const char *micro_run_error(struct machine *m)
{
	struct micro *b = m->devices;
	const char *e = NULL;

	for (unsigned i = 0; i < m->cfg.ndisks && !e; i++)
		e = block_queue_error(virtio_blk_queue(b->disks[i]));
	if (e)
		return e;
	chardev_flush(b->serial_chr);
	e = chardev_error(b->serial_chr);
	if (e || !b->console_chr)
		return e;
	chardev_flush(b->console_chr);
	return chardev_error(b->console_chr);
}

static void micro_describe(struct machine *m, FILE *out)
{
	const struct micro *b = m->devices;

	for (unsigned i = 0; i < m->cfg.nnics; i++) {
		const uint8_t *a = m->cfg.nics[i].mac;

		fprintf(out, "doppel: network %u: %s; MAC %02x:%02x:%02x:%02x:%02x:%02x\n", i, net_description(b->nets[i]), a[0], a[1], a[2],
			a[3], a[4], a[5]);
	}
}

static void micro_stats(struct machine *m, const struct counter_sink *out)
{
	const struct micro *b = m->devices;

	for (unsigned i = 0; i < m->cfg.nnics; i++) {
		struct net_stats s = net_stats(b->nets[i]);
		const struct { const char *name, *unit, *help; uint64_t value; } counters[] = {
			{"tx_frames", "", "frames that the guest sent", s.tx_frames},
			{"tx", "bytes", "in them", s.tx_bytes},
			{"tx_dropped", "", "of the guest's frames, lost at the back end", s.tx_dropped},
			{"rx_frames", "", "frames that came for the guest", s.rx_frames},
			{"rx", "bytes", "in them", s.rx_bytes},
			{"rx_dropped", "", "lost as the guest was too slow, or not valid", s.rx_dropped},
		};

		for (size_t k = 0; k < ARRAY_LEN(counters); k++) {
			char name[32];

			snprintf(name, sizeof(name), "net%u.%s", i, counters[k].name);
			counter_put(out, name, counters[k].unit, false, counters[k].value, counters[k].help);
		}
	}
}

const struct board board_micro = {
	.name = "micro",
	.build = micro_build,
	.load = micro_load,
	.reset = micro_reset,
	.power_button = micro_power_button,
	.free = micro_free,
	.resize_disk = micro_resize_disk,
	.resume = micro_resume,
	.run_error = micro_run_error,
	.describe = micro_describe,
	.stats = micro_stats,
};
