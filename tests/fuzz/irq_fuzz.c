/*
 * Random accesses to the interrupt chips: ports, IOAPIC, LAPIC registers and MSRs, lines, messages, acknowledgements,
 * time, and states saved, damaged and loaded. After each step what must hold is checked; the sanitizers see the rest.
 *
 *   irq_fuzz [SECONDS [SEED]]    a seeded random driver (default 2 s, seed 1)
 *
 * Built with -DLIBFUZZER (and -fsanitize=fuzzer) it is a libFuzzer target instead.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "irq/irqchip_int.h"

#define CPUS 3
#define CHECK(c)                                                                                                       \
	do {                                                                                                           \
		if (!(c)) {                                                                                            \
			fprintf(stderr, "irq_fuzz: %s:%d: %s does not hold\n", __FILE__, __LINE__, #c);                \
			abort();                                                                                       \
		}                                                                                                      \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int64_t now;

static int64_t fake_clock(void) { return now; }

struct input {
	const uint8_t *p, *end;
};

static uint64_t take(struct input *in, unsigned n)
{
	uint64_t v = 0;

	while (n-- && in->p < in->end)
		v = v << 8 | *in->p++;
	return v;
}

struct vm {
	struct irqchip *c;
	struct bus *bus;
	struct timer_queue q;
	unsigned fired; /* timers served at one instant */
};

static void on_cpu(void *ctx, unsigned cpu) { CHECK(cpu < CPUS); }
static void on_sipi(void *ctx, unsigned cpu, uint8_t vector) { CHECK(cpu < CPUS); }
static uint64_t guest_tsc(void *ctx, unsigned cpu) { return (uint64_t)now * 3; }

/* As an engine may do it: at once. */
static void on_init(void *ctx, unsigned cpu)
{
	struct vm *vm = ctx;

	CHECK(cpu < CPUS);
	lapic_init(vm->c, cpu);
}

static const struct irqchip_cpu_ops ops = {
	.kick = on_cpu, .nmi = on_cpu, .init = on_init, .sipi = on_sipi, .guest_tsc = guest_tsc};

static void check(struct vm *vm)
{
	CHECK(timer_queue_deadline(&vm->q) > 0);
	for (unsigned i = 0; i < CPUS; i++) {
		struct lapic *l = &vm->c->lapic[i];
		uint32_t ppr = l->st.regs[4 * LAPIC_PPR];

		CHECK(irqchip_hint(vm->c, i) == irqchip_pending(vm->c, i));
		CHECK(ppr <= 0xff && (ppr & 0xf0) >= (l->st.regs[4 * LAPIC_TPR] & 0xf0));
		CHECK(l->st.regs[4 * LAPIC_ID] == i << 24);
		CHECK(!(l->st.regs[4 * LAPIC_IRR] & 0xffff) && !(l->st.regs[4 * LAPIC_ISR] & 0xffff));
	}
}

/* Let time pass. No timer may make the host work faster than the floor of the periods (a one-shot is one event more).
 */
static void pass(struct vm *vm, int64_t ns)
{
	int64_t end = now + ns, at;
	uint64_t limit = 64 + 8 * ((uint64_t)ns / IRQCHIP_MIN_PERIOD_NS), n = 0;

	/* A jump when there would be too much to serve. */
	while (ns < 100000000 && (at = timer_queue_deadline(&vm->q)) <= end) {
		CHECK(n++ <= limit);
		if (at > now)
			now = at;
		timer_queue_run(&vm->q, now);
	}
	now = end;
	timer_queue_run(&vm->q, now);
	CHECK(timer_queue_deadline(&vm->q) > now);
}

static unsigned port(struct input *in)
{
	static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40,
					 0x41, 0x42, 0x43, 0x61, 0x22,	0x1f};

	return ports[take(in, 1) % ARRAY_LEN(ports)];
}

static void check_same(const char *what, const void *a, const void *b, size_t size)
{
	const uint8_t *x = a, *y = b;

	for (size_t i = 0; i < size; i++) {
		if (x[i] == y[i])
			continue;
		fprintf(stderr, "irq_fuzz: %s: byte 0x%zx was 0x%02x, is 0x%02x after loading\n", what, i, x[i], y[i]);
		abort();
	}
}

static void save_and_load(struct vm *vm, struct input *in)
{
	struct irqchip_state st, again;
	uint8_t regs[1024], regs_again[1024];
	unsigned cpu = take(in, 1) % CPUS, damage = take(in, 1) % 8;

	irqchip_get_state(vm->c, &st);
	lapic_get_state(vm->c, cpu, regs);
	if (!damage) {
		/* An undamaged state is accepted and comes back unchanged. */
		CHECK(irqchip_set_state(vm->c, &st) && lapic_set_state(vm->c, cpu, regs));
		irqchip_get_state(vm->c, &again);
		lapic_get_state(vm->c, cpu, regs_again);
		check_same("chips", &st, &again, sizeof(st));
		check_same("LAPIC", regs, regs_again, sizeof(regs));
	}
	while (damage--) {
		((uint8_t *)&st)[take(in, 2) % sizeof(st)] = (uint8_t)take(in, 1);
		regs[take(in, 2) % sizeof(regs)] = (uint8_t)take(in, 1);
	}
	irqchip_set_state(vm->c, &st);
	lapic_base_restore(vm->c, cpu, take(in, 2) << 8);
	lapic_set_state(vm->c, cpu, regs);
}

static void step(struct vm *vm, struct input *in)
{
	const struct irq_sink *sink = irqchip_sink(vm->c);
	unsigned op = take(in, 1), cpu = (op >> 4) % CPUS, r;
	uint64_t v;

	switch (op & 15) {
	case 0:
	case 1:
		r = port(in);
		bus_write(vm->bus, BUS_PIO, r, 1u << (take(in, 1) % 3), take(in, 2));
		break;
	case 2:
		bus_read(vm->bus, BUS_PIO, port(in), 1u << (take(in, 1) % 3));
		break;
	case 3:
	case 4:
		r = take(in, 1);
		lapic_mmio_write(vm->c, cpu, r % 0x50 << 4, r & 0x80 ? 4 : 1u << (r % 4), take(in, 4));
		break;
	case 5: /* likely registers, likely values */
		r = take(in, 1);
		lapic_mmio_write(vm->c, cpu, (r & 1 ? LAPIC_SVR : LAPIC_LVT_TIMER + r % 14) << 4, 4,
				 take(in, 1) | (r & 1 ? 0x100 : (take(in, 2) & 0x7ff) << 8));
		break;
	case 6:
		r = take(in, 2) & 0xfff;
		lapic_mmio_read(vm->c, cpu, r, 1u << (r % 4));
		break;
	case 7:
		r = take(in, 1);
		if (r < 0x20)
			lapic_msr_write(vm->c, cpu, 0x6e0, take(in, 8) >> 2 * r);
		else
			lapic_msr_write(vm->c, cpu, 0x800 + r, take(in, r % 3 ? 2 : 8));
		break;
	case 8:
		lapic_msr_read(vm->c, cpu, take(in, 1) ? 0x800 + (uint32_t)take(in, 1) : 0x6e0, &v);
		break;
	case 9:
		v = take(in, 1);
		lapic_base_write(vm->c, cpu, 0xfee00000 | v << 8 | (v == 0xff ? take(in, 8) : 0));
		break;
	case 10:
		bus_write(vm->bus, BUS_MMIO, IOAPIC_BASE, 4, take(in, 1) % 0x44);
		bus_write(vm->bus, BUS_MMIO, IOAPIC_BASE + 0x10, 4, take(in, 4));
		bus_read(vm->bus, BUS_MMIO, IOAPIC_BASE + (take(in, 1) & 0x1f), 4);
		break;
	case 11:
		r = take(in, 1);
		sink->set_gsi(sink->ctx, r & 31, r & 0x80);
		break;
	case 12:
		sink->msi(sink->ctx, 0xfee00000 | take(in, 3), (uint32_t)take(in, 4));
		break;
	case 13:
		if (irqchip_ack(vm->c, cpu) >= 0 && (op & 0x80))
			lapic_mmio_write(vm->c, cpu, LAPIC_EOI << 4, 4, 0);
		lapic_set_cr8(vm->c, cpu, (uint8_t)take(in, 1));
		break;
	case 14:
		pass(vm, (int64_t)take(in, 1 + op / 64) + 1);
		break;
	case 15:
		save_and_load(vm, in);
		break;
	}
	check(vm);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vm vm = {0};
	struct irqchip_config cfg = {.ncpus = CPUS, .tsc_khz = 3000000, .timers = &vm.q, .ops = &ops, .ops_ctx = &vm};
	struct input in = {data, data + size};

	now = 1000000000;
	timer_queue_init(&vm.q);
	vm.bus = bus_new();
	CHECK(vm.bus);
	vm.c = irqchip_new(&cfg, vm.bus, NULL);
	CHECK(vm.c);
	vm.c->clock = fake_clock;
	irqchip_reset(vm.c);
	while (in.p < in.end)
		step(&vm, &in);
	irqchip_reset(vm.c);
	CHECK(timer_queue_deadline(&vm.q) == TIMER_NEVER);
	irqchip_free(vm.c);
	bus_free(vm.bus);
	return 0;
}

#ifndef LIBFUZZER
int main(int argc, char **argv)
{
	int64_t end = clock_now() + (int64_t)(argc > 1 ? strtoul(argv[1], NULL, 0) : 2) * 1000000000;
	uint64_t x = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, runs = 0;
	static uint8_t data[4096];

	x |= 1;
	do {
		for (size_t i = 0; i < sizeof(data); i++) { /* xorshift64* */
			x ^= x >> 12;
			x ^= x << 25;
			x ^= x >> 27;
			data[i] = (uint8_t)((x * UINT64_C(0x2545f4914f6cdd1d)) >> 56);
		}
		LLVMFuzzerTestOneInput(data, sizeof(data));
		runs++;
	} while (clock_now() < end);
	printf("%llu runs of %zu bytes\n", (unsigned long long)runs, sizeof(data));
	return 0;
}
#endif
