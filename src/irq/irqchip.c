#include "irq/irqchip.h"

#include <stdlib.h>
#include <string.h>

#include "irq/irqchip_int.h"

/* gsi 0 and 2: see irqchip_int.h. */
static void set_gsi(void *ctx, unsigned gsi, bool level)
{
	struct irqchip *c = ctx;

	if (gsi >= IOAPIC_PINS || gsi == 2)
		return;
	if (gsi < 16)
		pic_set_pin(&c->pic, gsi, level);
	ioapic_set_pin(&c->ioapic, gsi ? gsi : 2, level);
}

/* SDM vol. 3, 10.11: address 0xfeexxxxx holds the destination, data the vector and modes. */
static bool msi(void *ctx, uint64_t addr, uint32_t data)
{
	struct irq_msg m = {
		.dest = (addr >> 12) & 0xff,
		.logical = addr & BIT(2),
		.redirect = addr & BIT(3),
		.vector = data & 0xff,
		.mode = (data >> 8) & 7,
		.level = data & BIT(15),
	};

	if (addr >> 20 != 0xfee)
		return false;
	if (m.mode == DM_SIPI || (m.level && !(data & BIT(14))))
		return false; /* reserved; a deassert message */
	m.broadcast = m.dest == 0xff && !m.logical;
	return lapic_deliver(ctx, &m);
}

struct irqchip *irqchip_new(const struct irqchip_config *cfg, struct bus *bus, struct error *err)
{
	struct irqchip *c;

	if (cfg->ncpus < 1 || cfg->ncpus > IRQCHIP_MAX_CPUS) {
		error_set(err, "%u CPUs are more than the interrupt controllers can address (1 to %d)", cfg->ncpus,
			  IRQCHIP_MAX_CPUS);
		return NULL;
	}
	if (!cfg->tsc_khz) {
		error_set(err, "the frequency of the guest's TSC is not known");
		return NULL;
	}
	c = calloc(1, sizeof(*c) + cfg->ncpus * sizeof(c->lapic[0]));
	if (!c) {
		error_set(err, "out of memory for the interrupt controllers");
		return NULL;
	}
	c->cfg = *cfg;
	c->bus = bus;
	c->clock = clock_now;
	c->sink = (struct irq_sink){.set_gsi = set_gsi, .msi = msi, .ctx = c};
	c->ioapic.chip = c->pic.chip = c->pit.chip = c;
	for (unsigned i = 0; i < cfg->ncpus; i++)
		lapic_setup(c, i);
	/* What was mapped before a failure goes with the bus, which the caller drops too. */
	if (!pit_setup(&c->pit, err) || !pic_setup(&c->pic, err) || !ioapic_setup(&c->ioapic, err)) {
		irqchip_free(c);
		return NULL;
	}
	irqchip_reset(c);
	return c;
}

void irqchip_free(struct irqchip *c)
{
	if (!c)
		return;
	timer_cancel(&c->pit.timer);
	for (unsigned i = 0; i < c->cfg.ncpus; i++)
		timer_cancel(&c->lapic[i].timer);
	free(c);
}

void irqchip_reset(struct irqchip *c)
{
	pit_reset(&c->pit);
	ioapic_reset(&c->ioapic);
	pic_reset(&c->pic);
	for (unsigned i = 0; i < c->cfg.ncpus; i++)
		lapic_reset(c, i);
}

const struct irq_sink *irqchip_sink(struct irqchip *c) { return &c->sink; }

void irqchip_get_state(struct irqchip *c, struct irqchip_state *out)
{
	struct pit_state pit;

	pit_get_state(&c->pit, &pit); /* first: it may raise an interrupt that is due */
	memcpy(out->pit, &pit, sizeof(pit));
	memcpy(out->ioapic, &c->ioapic.st, sizeof(out->ioapic));
	memcpy(out->pic, c->pic.st, sizeof(out->pic));
}

bool irqchip_set_state(struct irqchip *c, const struct irqchip_state *in)
{
	struct ioapic_state ioapic;
	struct pic_state pic[2];
	struct pit_state pit;

	memcpy(&ioapic, in->ioapic, sizeof(ioapic));
	memcpy(pic, in->pic, sizeof(pic));
	memcpy(&pit, in->pit, sizeof(pit));
	return ioapic_set_state(&c->ioapic, &ioapic) && pic_set_state(&c->pic, pic) && pit_set_state(&c->pit, &pit);
}
