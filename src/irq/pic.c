/*
 * The 8259A pair. Manual: Intel 8259A data sheet; the edge/level registers 0x4d0 and 0x4d1 are the PIIX's (they
 * replace ICW1.LTIM, which is ignored). MCS-80 mode and the buffered modes do not exist on a PC: their bits are
 * ignored.
 *
 * Request latches follow the line for level pins and are set by a rising edge for edge pins; as in every PC chipset
 * model, an edge is not lost when the line falls before INTA.
 */
#include "irq/irqchip_int.h"

#include <string.h>

#define CASCADE 2

/* Rank of the highest-priority pin in mask: 0 is the highest, 8 when there is none. */
static unsigned best_rank(const struct pic_state *s, uint8_t mask)
{
	unsigned rank = 0;

	while (rank < 8 && !(mask & (1u << ((rank + s->priority_add) & 7))))
		rank++;
	return rank;
}

/* The pin that would be served next, or -1. */
static int request(const struct pic_state *s, bool master)
{
	unsigned req = best_rank(s, s->irr & ~s->imr);
	/* Special mask mode: a masked level in service holds nothing back. */
	unsigned cur = best_rank(s, s->special_mask ? s->isr & ~s->imr : s->isr);
	unsigned pin = (req + s->priority_add) & 7;

	if (req == 8)
		return -1;
	if (req < cur)
		return (int)pin;
	/* Special fully nested mode: the slave in service may ask again. */
	if (master && s->special_fully_nested_mode && req == cur && pin == CASCADE)
		return (int)pin;
	return -1;
}

/* INTR of the master; the slave's is the master's cascade pin, which follows it. */
static bool output(struct pic *p)
{
	struct pic_state *m = &p->st[0];

	if (request(&p->st[1], false) >= 0)
		m->irr |= 1u << CASCADE;
	else
		m->irr &= ~(1u << CASCADE);
	return request(m, true) >= 0;
}

static void update(struct pic *p)
{
	bool out = output(p);

	if (out == p->out)
		return;
	p->out = out;
	for (unsigned i = 0; i < p->chip->cfg.ncpus; i++)
		lapic_lint0(&p->chip->lapic[i], out);
}

/* One INTA or poll for pin. */
static void acknowledge(struct pic_state *s, unsigned pin)
{
	uint8_t bit = 1u << pin;

	if (!s->auto_eoi)
		s->isr |= bit;
	else if (s->rotate_on_auto_eoi)
		s->priority_add = (pin + 1) & 7;
	if (!(s->elcr & bit))
		s->irr &= ~bit;
}

uint8_t pic_inta(struct pic *p)
{
	int pin = request(&p->st[0], true);
	uint8_t vector;

	if (pin >= 0)
		acknowledge(&p->st[0], (unsigned)pin);
	if (pin == CASCADE) {
		pin = request(&p->st[1], false);
		if (pin >= 0)
			acknowledge(&p->st[1], (unsigned)pin);
		vector = p->st[1].irq_base + (pin < 0 ? 7 : pin);
	} else {
		vector = p->st[0].irq_base + (pin < 0 ? 7 : pin);
	}
	update(p);
	return vector;
}

void pic_set_pin(struct pic *p, unsigned pin, bool level)
{
	struct pic_state *s = &p->st[pin >> 3];
	uint8_t bit = 1u << (pin & 7);

	if (s->elcr & bit)
		s->irr = level ? s->irr | bit : s->irr & ~bit;
	else if (level && !(s->last_irr & bit))
		s->irr |= bit;
	s->last_irr = level ? s->last_irr | bit : s->last_irr & ~bit;
	update(p);
}

/* ICW1: what it resets is listed in the data sheet, "Initialization Command Words". Lines keep their level. */
static void icw1(struct pic_state *s, uint8_t v)
{
	s->irr &= s->elcr;
	s->imr = s->isr = 0;
	s->priority_add = 0;
	s->special_mask = s->read_reg_select = s->poll = 0;
	s->auto_eoi = s->rotate_on_auto_eoi = s->special_fully_nested_mode = 0;
	s->init4 = v & 1;
	s->init_state = 1 | (v & 2 ? PIC_SINGLE : 0);
}

static void ocw2(struct pic_state *s, uint8_t v)
{
	bool rotate = v & 0x80, specific = v & 0x40, eoi = v & 0x20;
	unsigned pin = v & 7;

	if (!eoi) {
		if (!specific)
			s->rotate_on_auto_eoi = rotate;
		else if (rotate)
			s->priority_add = (pin + 1) & 7; /* set priority */
		return;
	}
	if (!specific) {
		/* In special mask mode a masked level is not cleared by a non-specific EOI. */
		unsigned rank = best_rank(s, s->special_mask ? s->isr & ~s->imr : s->isr);

		if (rank == 8)
			return;
		pin = (rank + s->priority_add) & 7;
	}
	s->isr &= ~(1u << pin);
	if (rotate)
		s->priority_add = (pin + 1) & 7;
}

static void ocw3(struct pic_state *s, uint8_t v)
{
	if (v & 0x04)
		s->poll = 1;
	if (v & 0x02)
		s->read_reg_select = v & 1;
	if (v & 0x40)
		s->special_mask = (v >> 5) & 1;
}

static void write_data(struct pic_state *s, uint8_t v)
{
	switch (s->init_state & 3) {
	case 0:
		s->imr = v; /* OCW1 */
		return;
	case 1: /* ICW2 */
		s->irq_base = v & 0xf8;
		s->init_state = s->init_state & PIC_SINGLE ? (s->init4 ? 3 : 0) : 2;
		return;
	case 2: /* ICW3: the cascade is wired */
		s->init_state = s->init4 ? 3 : 0;
		return;
	case 3: /* ICW4 */
		s->special_fully_nested_mode = (v >> 4) & 1;
		s->auto_eoi = (v >> 1) & 1;
		s->init_state = 0;
		return;
	}
}

static void chip_write(struct pic *p, unsigned n, uint64_t off, uint8_t v)
{
	struct pic_state *s = &p->st[n];

	if (off == 1)
		write_data(s, v);
	else if (v & 0x10)
		icw1(s, v);
	else if (v & 0x08)
		ocw3(s, v);
	else
		ocw2(s, v);
	update(p);
}

static uint8_t chip_read(struct pic *p, unsigned n, uint64_t off)
{
	struct pic_state *s = &p->st[n];
	int pin;

	if (!s->poll) {
		if (off == 1)
			return s->imr;
		return s->read_reg_select ? s->isr : s->irr;
	}
	/* Poll command: this read is the INTA. */
	s->poll = 0;
	pin = request(s, n == 0);
	if (pin < 0)
		return 0;
	acknowledge(s, (unsigned)pin);
	update(p);
	return 0x80 | (uint8_t)pin;
}

static uint64_t master_read(void *dev, uint64_t off, unsigned size) { return chip_read(dev, 0, off); }
static uint64_t slave_read(void *dev, uint64_t off, unsigned size) { return chip_read(dev, 1, off); }
static void master_write(void *dev, uint64_t off, unsigned size, uint64_t v) { chip_write(dev, 0, off, (uint8_t)v); }
static void slave_write(void *dev, uint64_t off, unsigned size, uint64_t v) { chip_write(dev, 1, off, (uint8_t)v); }

static uint64_t elcr_read(void *dev, uint64_t off, unsigned size)
{
	struct pic *p = dev;

	return p->st[off & 1].elcr;
}

static void elcr_write(void *dev, uint64_t off, unsigned size, uint64_t v)
{
	struct pic *p = dev;
	struct pic_state *s = &p->st[off & 1];
	uint8_t elcr = v & s->elcr_mask;

	/* New level pins show their line, new edge pins wait for an edge. */
	s->irr &= ~(s->elcr & ~elcr);
	s->irr = (s->irr & ~elcr) | (s->last_irr & elcr);
	s->elcr = elcr;
	update(p);
}

static const struct bus_ops master_ops = {.read = master_read, .write = master_write, .max_size = 1};
static const struct bus_ops slave_ops = {.read = slave_read, .write = slave_write, .max_size = 1};
static const struct bus_ops elcr_ops = {.read = elcr_read, .write = elcr_write, .max_size = 1};

bool pic_setup(struct pic *p, struct error *err)
{
	struct bus *bus = p->chip->bus;

	return bus_map(bus, BUS_PIO, 0x20, 2, &master_ops, p, "pic", err) &&
	       bus_map(bus, BUS_PIO, 0xa0, 2, &slave_ops, p, "pic", err) &&
	       bus_map(bus, BUS_PIO, 0x4d0, 2, &elcr_ops, p, "elcr", err);
}

void pic_reset(struct pic *p)
{
	memset(p->st, 0, sizeof(p->st));
	p->st[0].elcr_mask = 0xf8; /* 0 timer, 1 keyboard and 2 cascade are edge */
	p->st[1].elcr_mask = 0xde; /* 8 RTC and 13 FPU are edge */
	update(p);
}

static bool valid(const struct pic_state *s, const struct pic_state *mine)
{
	return s->priority_add < 8 && !(s->irq_base & 7) && s->read_reg_select < 2 && s->poll < 2 &&
	       s->special_mask < 2 && !(s->init_state & ~(3 | PIC_SINGLE)) && s->auto_eoi < 2 &&
	       s->rotate_on_auto_eoi < 2 && s->special_fully_nested_mode < 2 && s->init4 < 2 &&
	       s->elcr_mask == mine->elcr_mask && !(s->elcr & ~s->elcr_mask);
}

bool pic_set_state(struct pic *p, const struct pic_state st[2])
{
	if (!valid(&st[0], &p->st[0]) || !valid(&st[1], &p->st[1]))
		return false;
	memcpy(p->st, st, sizeof(p->st));
	/* No edge on LINT0: what it caused, if anything, is in the local APICs' state. */
	p->out = output(p);
	for (unsigned i = 0; i < p->chip->cfg.ncpus; i++)
		lapic_update(&p->chip->lapic[i]);
	return true;
}
