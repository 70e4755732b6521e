/*
 * The IOAPIC: 82093AA, version 0x11 (no EOI register), 24 pins.
 *
 * irq_line levels are "asserted", whatever the wire's polarity, so that bit 13 of an entry is stored and not used. SMI
 * and ExtINT entries deliver nothing. A level-triggered pin is offered again by EOI, by a write to its entry, and by
 * ioapic_resample.
 */
#include "irq/irqchip_int.h"

#include <string.h>

#define VERSION (((IOAPIC_PINS - 1) << 16) | 0x11)

/* Redirection entry */
#define RE_VECTOR 0xffu
#define RE_LOGICAL BIT(11)
#define RE_STATUS BIT(12)
#define RE_REMOTE_IRR BIT(14)
#define RE_LEVEL BIT(15)
#define RE_MASK BIT(16)
#define RE_WRITABLE (UINT64_C(0xff00000000000000) | 0x1afff)

static unsigned entry_mode(uint64_t e) { return (e >> 8) & 7; }

static bool is_vectored(uint64_t e) { return entry_mode(e) == DM_FIXED || entry_mode(e) == DM_LOWEST; }

static bool send(struct ioapic *io, uint64_t e)
{
	struct irq_msg m = {
		.dest = e >> 56,
		.vector = e & RE_VECTOR,
		.mode = (uint8_t)entry_mode(e),
		.logical = e & RE_LOGICAL,
		.level = e & RE_LEVEL,
	};

	if (m.mode == DM_SIPI) /* reserved here */
		return false;
	m.broadcast = m.dest == 0xff && !m.logical;
	return lapic_deliver(io->chip, &m);
}

/* Offer the request of a level-triggered pin that is not in service. */
static void service_level(struct ioapic *io, unsigned pin)
{
	uint64_t *e = &io->st.redir[pin];

	if (!(io->st.irr & BIT(pin)) || (*e & (RE_MASK | RE_REMOTE_IRR)) || !(*e & RE_LEVEL) || !is_vectored(*e))
		return;
	if (send(io, *e))
		*e |= RE_REMOTE_IRR;
}

void ioapic_set_pin(struct ioapic *io, unsigned pin, bool level)
{
	uint64_t e = io->st.redir[pin];
	bool rising = level && !(io->st.irr & BIT(pin));

	if (level)
		io->st.irr |= BIT(pin);
	else
		io->st.irr &= ~BIT(pin);
	if (!rising || (e & RE_MASK))
		return;
	if ((e & RE_LEVEL) && is_vectored(e))
		service_level(io, pin);
	else
		send(io, e);
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t *e = &io->st.redir[pin];

		if ((*e & RE_VECTOR) != vector || !(*e & RE_REMOTE_IRR))
			continue;
		*e &= ~RE_REMOTE_IRR;
		service_level(io, pin);
	}
}

void ioapic_resample(struct ioapic *io)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		service_level(io, pin);
}

static uint32_t read_reg(const struct ioapic_state *s)
{
	unsigned n = s->ioregsel - 0x10;

	switch (s->ioregsel) {
	case 0: /* ID */
	case 2: /* arbitration ID: loaded with it */
		return s->id << 24;
	case 1:
		return VERSION;
	}
	if (s->ioregsel < 0x10 || n / 2 >= IOAPIC_PINS)
		return ~0u;
	return (uint32_t)(s->redir[n / 2] >> (n & 1 ? 32 : 0));
}

static void write_reg(struct ioapic *io, uint32_t v)
{
	struct ioapic_state *s = &io->st;
	unsigned n = s->ioregsel - 0x10;
	unsigned shift = n & 1 ? 32 : 0;
	uint64_t *e, mask;

	if (s->ioregsel == 0)
		s->id = (v >> 24) & 0xf;
	if (s->ioregsel < 0x10 || n / 2 >= IOAPIC_PINS)
		return;
	e = &s->redir[n / 2];
	mask = RE_WRITABLE & (UINT64_C(0xffffffff) << shift);
	*e = (*e & ~mask) | (((uint64_t)v << shift) & mask);
	/* There is no EOI register: operating systems clear a stuck remote IRR by switching to edge and back. */
	if (!(*e & RE_LEVEL))
		*e &= ~RE_REMOTE_IRR;
	service_level(io, n / 2);
}

static uint64_t mmio_read(void *dev, uint64_t off, unsigned size)
{
	struct ioapic *io = dev;

	switch (off) {
	case 0x00:
		return io->st.ioregsel;
	case 0x10:
		return read_reg(&io->st);
	}
	return 0;
}

static void mmio_write(void *dev, uint64_t off, unsigned size, uint64_t v)
{
	struct ioapic *io = dev;

	if (off == 0x00)
		io->st.ioregsel = v & 0xff;
	else if (off == 0x10)
		write_reg(io, (uint32_t)v);
}

static const struct bus_ops mmio_ops = {.read = mmio_read, .write = mmio_write, .max_size = 4};

bool ioapic_setup(struct ioapic *io, struct error *err)
{
	return bus_map(io->chip->bus, BUS_MMIO, IOAPIC_BASE, 0x100, &mmio_ops, io, "ioapic", err);
}

void ioapic_reset(struct ioapic *io)
{
	memset(&io->st, 0, sizeof(io->st));
	io->st.base_address = IOAPIC_BASE;
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		io->st.redir[pin] = RE_MASK;
}

bool ioapic_set_state(struct ioapic *io, const struct ioapic_state *st)
{
	if (st->base_address != IOAPIC_BASE || st->ioregsel > 0xff || st->id > 0xf || st->irr >> IOAPIC_PINS || st->pad)
		return false;
	io->st = *st;
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t *e = &io->st.redir[pin];

		*e &= RE_WRITABLE | (*e & RE_LEVEL ? RE_REMOTE_IRR : 0);
	}
	return true;
}
