#include "fixture.h"

static int64_t now, tsc_behind;

static int64_t fake_clock(void) { return now; }

static void kick(void *ctx, unsigned cpu) { ((struct fx *)ctx)->kicks[cpu]++; }
static void nmi(void *ctx, unsigned cpu) { ((struct fx *)ctx)->nmis[cpu]++; }
static void init(void *ctx, unsigned cpu) { ((struct fx *)ctx)->inits[cpu]++; }

static void sipi(void *ctx, unsigned cpu, uint8_t vector)
{
	struct fx *f = ctx;

	f->sipis[cpu]++;
	f->sipi_vector[cpu] = vector;
}

static uint64_t guest_tsc(void *ctx, unsigned cpu) { return (uint64_t)(now - tsc_behind) * 2; }

static const struct irqchip_cpu_ops ops = {
	.kick = kick, .nmi = nmi, .init = init, .sipi = sipi, .guest_tsc = guest_tsc};

int fx_setup(void **state)
{
	struct fx *f = calloc(1, sizeof(*f));
	struct irqchip_config cfg = {.ncpus = FX_CPUS, .tsc_khz = FX_TSC_KHZ, .ops = &ops, .ops_ctx = f};

	if (!f)
		return -1;
	now = 1000000000;
	tsc_behind = 0;
	timer_queue_init(&f->q);
	cfg.timers = &f->q;
	f->bus = bus_new();
	f->c = irqchip_new(&cfg, f->bus, NULL);
	if (!f->c)
		return -1;
	f->c->clock = fake_clock;
	irqchip_reset(f->c);
	*state = f;
	return 0;
}

int fx_teardown(void **state)
{
	struct fx *f = *state;

	irqchip_free(f->c);
	bus_free(f->bus);
	free(f);
	return 0;
}

int64_t fx_now(void) { return now; }

void fx_advance(struct fx *f, int64_t ns)
{
	int64_t end = now + ns;

	while (timer_queue_deadline(&f->q) <= end) {
		if (timer_queue_deadline(&f->q) > now)
			now = timer_queue_deadline(&f->q);
		timer_queue_run(&f->q, now);
	}
	now = end;
}

void fx_jump(struct fx *f, int64_t ns)
{
	now += ns;
	timer_queue_run(&f->q, now);
}

void fx_sleep(int64_t ns) { now += ns; }

void fx_delay_tsc(int64_t ns) { tsc_behind += ns; }
