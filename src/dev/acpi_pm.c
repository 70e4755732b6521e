#include "dev/acpi_pm.h"

#include <stdlib.h>

enum {
	STS_TMR = 0x0001, STS_BM = 0x0010, STS_GBL = 0x0020, STS_PWRBTN = 0x0100, STS_SLPBTN = 0x0200, STS_RTC = 0x0400,
	STS_WAK = 0x8000,
	STS_ALL = STS_TMR | STS_BM | STS_GBL | STS_PWRBTN | STS_SLPBTN | STS_RTC | STS_WAK,
	EN_ALL = STS_TMR | STS_GBL | STS_PWRBTN | STS_SLPBTN | STS_RTC,
	CNT_SCI_EN = 0x0001, CNT_BM_RLD = 0x0002, CNT_SLP_TYP = 0x1c00, CNT_SLP_EN = 0x2000,
	CNT_KEPT = CNT_BM_RLD | CNT_SLP_TYP,
	CNT_SLP_TYP_SHIFT = 10,
};

struct acpi_pm_state {
	uint16_t pm1_sts, pm1_en, pm1_cnt;
	uint32_t gpe_sts, gpe_en;
	uint64_t ticks; /* of the PM timer, as far as TMR_STS has been brought up to date */
};

struct acpi_pm {
	struct acpi_pm_state s;
	struct bus *bus;
	uint16_t base;
	struct irq_line sci;
	struct timer overflow;
	int64_t start; /* clock_now() at tick 0 */
	bool timer_32bit;
	uint8_t s5_type;
	void (*on_power_off)(void *ctx);
	void *ctx;
};

static uint64_t ticks_now(const struct acpi_pm *p)
{
	return mul_div_u64((uint64_t)(clock_now() - p->start), ACPI_PM_TIMER_HZ, 1000000000);
}

/* TMR_STS is set whenever the counter's top bit changes, which is every so many ticks (4.8.3.1). */
static unsigned top_bit(const struct acpi_pm *p) { return p->timer_32bit ? 31 : 23; }

static void sync_timer(struct acpi_pm *p)
{
	uint64_t now = ticks_now(p);

	if (now >> top_bit(p) != p->s.ticks >> top_bit(p))
		p->s.pm1_sts |= STS_TMR;
	p->s.ticks = now;
}

static void update_sci(struct acpi_pm *p)
{
	const struct acpi_pm_state *s = &p->s;

	irq_set(&p->sci, (s->pm1_sts & s->pm1_en) || (s->gpe_sts & s->gpe_en));
}

/* Wake for the next change of the top bit, only where the guest asked for the interrupt. */
static void arm_overflow(struct acpi_pm *p)
{
	uint64_t next;

	if (!(p->s.pm1_en & STS_TMR) || p->s.pm1_sts & STS_TMR) {
		timer_cancel(&p->overflow);
		return;
	}
	next = ((p->s.ticks >> top_bit(p)) + 1) << top_bit(p);
	timer_arm(&p->overflow, p->start + (int64_t)mul_div_u64(next, 1000000000, ACPI_PM_TIMER_HZ) + 1);
}

static void on_overflow(void *ctx)
{
	struct acpi_pm *p = ctx;

	sync_timer(p);
	update_sci(p);
	arm_overflow(p);
}

/* The 32-bit word of the block that contains offset off & ~3. */
static uint32_t read_word(struct acpi_pm *p, uint64_t off)
{
	const struct acpi_pm_state *s = &p->s;

	switch (off & ~UINT64_C(3)) {
	case ACPI_PM_EVT:
		sync_timer(p);
		return s->pm1_sts | (uint32_t)s->pm1_en << 16;
	case ACPI_PM_CNT:
		return s->pm1_cnt | CNT_SCI_EN;
	case ACPI_PM_TMR:
		sync_timer(p);
		return (uint32_t)s->ticks & (p->timer_32bit ? UINT32_MAX : 0xffffff);
	case ACPI_PM_GPE0:
		return s->gpe_sts;
	case ACPI_PM_GPE0 + 4:
		return s->gpe_en;
	default:
		return 0;
	}
}

static uint64_t acpi_pm_read(void *dev, uint64_t off, unsigned size)
{
	uint64_t word;

	if ((off & 3) + size > 4) /* no register lies across words */
		return mask_bytes(size);
	word = read_word(dev, off);
	return word >> (8 * (off & 3)) & mask_bytes(size);
}

static void write_cnt(struct acpi_pm *p, uint16_t v)
{
	p->s.pm1_cnt = v & CNT_KEPT;
	if (v & CNT_SLP_EN && (v & CNT_SLP_TYP) >> CNT_SLP_TYP_SHIFT == p->s5_type)
		p->on_power_off(p->ctx);
}

/* v holds the written bytes in their place, m the mask of those bytes. */
static void write_word(struct acpi_pm *p, uint64_t off, uint32_t v, uint32_t m)
{
	struct acpi_pm_state *s = &p->s;

	switch (off & ~UINT64_C(3)) {
	case ACPI_PM_EVT:
		sync_timer(p);
		s->pm1_sts &= (uint16_t)~(v & m & STS_ALL); /* write one to clear */
		s->pm1_en = ((s->pm1_en & ~(m >> 16)) | (v & m) >> 16) & EN_ALL;
		arm_overflow(p);
		break;
	case ACPI_PM_CNT:
		write_cnt(p, (uint16_t)((s->pm1_cnt & ~m) | (v & m)));
		break;
	case ACPI_PM_GPE0:
		s->gpe_sts &= ~(v & m);
		break;
	case ACPI_PM_GPE0 + 4:
		s->gpe_en = (s->gpe_en & ~m) | (v & m);
		break;
	default: /* the timer is for reading */
		return;
	}
	update_sci(p);
}

static void acpi_pm_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	unsigned shift = 8 * (off & 3);

	if ((off & 3) + size > 4)
		return;
	write_word(dev, off, (uint32_t)(value << shift), (uint32_t)(mask_bytes(size) << shift));
}

static const struct bus_ops acpi_pm_ops = {acpi_pm_read, acpi_pm_write, 1, 4};

void acpi_pm_power_button(struct acpi_pm *p)
{
	p->s.pm1_sts |= STS_PWRBTN;
	update_sci(p);
}

void acpi_pm_gpe(struct acpi_pm *p, unsigned n)
{
	if (n < 32)
		p->s.gpe_sts |= (uint32_t)BIT(n);
	update_sci(p);
}

void acpi_pm_reset(struct acpi_pm *p)
{
	p->s = (struct acpi_pm_state){0};
	p->start = clock_now();
	timer_cancel(&p->overflow);
	update_sci(p);
}

struct acpi_pm *acpi_pm_new(const struct acpi_pm_config *cfg, struct error *err)
{
	struct acpi_pm *p = calloc(1, sizeof(*p));

	if (!p) {
		error_set(err, "acpi-pm: out of memory");
		return NULL;
	}
	p->bus = cfg->bus;
	p->base = cfg->base;
	p->sci = cfg->sci;
	p->timer_32bit = cfg->timer_32bit;
	p->s5_type = cfg->s5_type;
	p->on_power_off = cfg->on_power_off;
	p->ctx = cfg->ctx;
	timer_init(&p->overflow, cfg->timers, on_overflow, p);
	if (!bus_map(cfg->bus, BUS_PIO, cfg->base, ACPI_PM_LEN, &acpi_pm_ops, p, "acpi-pm", err)) {
		free(p);
		return NULL;
	}
	acpi_pm_reset(p);
	return p;
}

void acpi_pm_free(struct acpi_pm *p)
{
	if (!p)
		return;
	timer_cancel(&p->overflow);
	bus_unmap(p->bus, BUS_PIO, p->base);
	free(p);
}
