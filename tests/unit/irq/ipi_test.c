/* Who gets what: ICR, MSI, logical destinations, lowest priority. */
#include "fixture.h"

#define X2_ICR (0x800u + LAPIC_ICR)
#define SELF BIT(18)
#define ALL BIT(19)
#define OTHERS (BIT(18) | BIT(19))
#define LOGICAL BIT(11)

static void icr(struct fx *f, unsigned from, uint8_t dest, uint32_t low)
{
	wr(f, from, LAPIC_ICR2, (uint32_t)dest << 24);
	wr(f, from, LAPIC_ICR, low);
}

/* The CPUs that hold the vector, as a mask; takes it from them. */
static unsigned takers(struct fx *f, uint8_t vector)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < FX_CPUS; i++) {
		struct lapic *l = &f->c->lapic[i];
		uint32_t *irr = &l->st.regs[4 * (LAPIC_IRR + vector / 32)];

		if (*irr & (1u << (vector % 32)))
			mask |= 1u << i;
		*irr &= ~(1u << (vector % 32));
		lapic_update(l);
	}
	return mask;
}

static unsigned count_mask(const unsigned n[FX_CPUS])
{
	unsigned mask = 0;

	for (unsigned i = 0; i < FX_CPUS; i++)
		mask |= n[i] ? 1u << i : 0;
	return mask;
}

static void set_logical(struct fx *f, uint32_t dfr, const uint8_t ldr[FX_CPUS])
{
	for (unsigned i = 0; i < FX_CPUS; i++) {
		wr(f, i, LAPIC_DFR, dfr);
		wr(f, i, LAPIC_LDR, (uint32_t)ldr[i] << 24);
	}
}

static void all_x2apic(struct fx *f)
{
	for (unsigned i = 0; i < FX_CPUS; i++) {
		assert_true(lapic_base_write(f->c, i, lapic_base_read(f->c, i) | BIT(10)));
		assert_true(lapic_msr_write(f->c, i, 0x80f, 0x1ff));
	}
}

static void physical_and_shorthands(void **state)
{
	struct fx *f = *state;

	enable_all(f);
	for (unsigned i = 0; i < FX_CPUS; i++) {
		icr(f, 0, (uint8_t)i, 0x30);
		assert_int_equal(takers(f, 0x30), 1u << i);
	}
	icr(f, 0, FX_CPUS, 0x30); /* nobody */
	assert_int_equal(takers(f, 0x30), 0);
	icr(f, 2, 0xff, 0x30);
	assert_int_equal(takers(f, 0x30), 0xf);
	icr(f, 2, 0, 0x30 | SELF);
	assert_int_equal(takers(f, 0x30), 1u << 2);
	icr(f, 2, 0, 0x30 | ALL);
	assert_int_equal(takers(f, 0x30), 0xf);
	icr(f, 2, 0, 0x30 | OTHERS);
	assert_int_equal(takers(f, 0x30), 0xb);
	/* A software-disabled APIC takes no vector, a disabled one nothing at all. */
	wr(f, 1, LAPIC_SVR, 0xff);
	assert_true(lapic_base_write(f->c, 3, 0xfee00000));
	icr(f, 2, 0, 0x30 | ALL);
	assert_int_equal(takers(f, 0x30), 0x5);
	icr(f, 2, 0, DM_NMI << 8 | OTHERS);
	assert_int_equal(count_mask(f->nmis), 0x3);
	/* Vectors below 16 are not sent. */
	icr(f, 2, 0, 0x0f | ALL);
	assert_int_equal(takers(f, 0x0f), 0);
}

static void nmi_init_sipi(void **state)
{
	struct fx *f = *state;

	icr(f, 0, 2, DM_NMI << 8);
	assert_int_equal(count_mask(f->nmis), 1u << 2);
	icr(f, 0, 1, DM_INIT << 8 | BIT(14) | BIT(15)); /* level assert, as operating systems send it */
	assert_int_equal(count_mask(f->inits), 1u << 1);
	icr(f, 0, 1, DM_INIT << 8 | BIT(15)); /* de-assert: nothing */
	assert_int_equal(f->inits[1], 1);
	icr(f, 0, 1, DM_SIPI << 8 | 0x9a);
	assert_int_equal(count_mask(f->sipis), 1u << 1);
	assert_int_equal(f->sipi_vector[1], 0x9a);
	icr(f, 0, 0, DM_SIPI << 8 | 0x01 | OTHERS);
	assert_int_equal(count_mask(f->sipis), 0xe);
	/* SMI, ExtINT and the reserved mode reach nobody. */
	enable_all(f);
	icr(f, 0, 0, DM_SMI << 8 | 0x30 | ALL);
	icr(f, 0, 0, 3 << 8 | 0x30 | ALL);
	icr(f, 0, 0, DM_EXTINT << 8 | 0x30 | ALL);
	assert_int_equal(takers(f, 0x30), 0);
}

static void logical_flat(void **state)
{
	static const uint8_t ldr[FX_CPUS] = {0x01, 0x02, 0x04, 0x80};
	struct fx *f = *state;

	enable_all(f);
	set_logical(f, 0xffffffff, ldr);
	icr(f, 0, 0x02, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0x2);
	icr(f, 0, 0x85, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0xd);
	icr(f, 0, 0x78, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0);
	icr(f, 0, 0xff, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0xf);
	/* A DFR that is neither model matches nothing. */
	wr(f, 1, LAPIC_DFR, 0x70000000);
	icr(f, 0, 0xff, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0xd);
}

static void logical_cluster(void **state)
{
	static const uint8_t ldr[FX_CPUS] = {0x11, 0x12, 0x21, 0x24};
	struct fx *f = *state;

	enable_all(f);
	set_logical(f, 0, ldr);
	icr(f, 0, 0x11, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0x1);
	icr(f, 0, 0x13, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0x3);
	icr(f, 0, 0x2f, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0xc);
	icr(f, 0, 0x3f, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0);
	icr(f, 0, 0xff, 0x30 | LOGICAL);
	assert_int_equal(takers(f, 0x30), 0xf);
}

static void lowest_priority(void **state)
{
	static const uint8_t ldr[FX_CPUS] = {1, 2, 4, 8};
	struct fx *f = *state;
	unsigned seen = 0;

	enable_all(f);
	set_logical(f, 0xffffffff, ldr);
	for (unsigned i = 0; i < FX_CPUS; i++)
		wr(f, i, LAPIC_TPR, 0x60 - 0x10 * i);
	icr(f, 0, 0x0f, 0x30 | LOGICAL | DM_LOWEST << 8);
	assert_int_equal(takers(f, 0x30), 0x8);
	icr(f, 0, 0x07, 0x30 | LOGICAL | DM_LOWEST << 8);
	assert_int_equal(takers(f, 0x30), 0x4);
	wr(f, 2, LAPIC_SVR, 0xff); /* cannot take it */
	icr(f, 0, 0x07, 0x30 | LOGICAL | DM_LOWEST << 8);
	assert_int_equal(takers(f, 0x30), 0x2);
	enable_all(f);
	/* Equal priorities: exactly one each time, and different vectors spread. */
	for (unsigned i = 0; i < FX_CPUS; i++)
		wr(f, i, LAPIC_TPR, 0);
	for (unsigned v = 0x30; v < 0x38; v++) {
		unsigned who;

		icr(f, 0, 0x0f, v | LOGICAL | DM_LOWEST << 8);
		who = takers(f, (uint8_t)v);
		assert_int_equal(__builtin_popcount(who), 1);
		seen |= who;
	}
	assert_int_equal(seen, 0xf);
}

static void x2apic_destinations(void **state)
{
	struct fx *f = *state;
	uint64_t v;

	all_x2apic(f);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(3) << 32 | 0x30));
	assert_int_equal(takers(f, 0x30), 0x8);
	assert_true(lapic_msr_read(f->c, 0, X2_ICR, &v));
	assert_int_equal(v, UINT64_C(3) << 32 | 0x30);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(0xff) << 32 | 0x30)); /* 255 is no broadcast here */
	assert_int_equal(takers(f, 0x30), 0);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(0xffffffff) << 32 | 0x30));
	assert_int_equal(takers(f, 0x30), 0xf);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(0xffffffff) << 32 | 0x30 | LOGICAL));
	assert_int_equal(takers(f, 0x30), 0xf);
	/* Logical: cluster in bits 31-16, CPUs in 15-0. */
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(0x00006) << 32 | 0x30 | LOGICAL));
	assert_int_equal(takers(f, 0x30), 0x6);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(0x1000f) << 32 | 0x30 | LOGICAL));
	assert_int_equal(takers(f, 0x30), 0);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, 0x30 | OTHERS));
	assert_int_equal(takers(f, 0x30), 0xe);
	assert_true(lapic_msr_write(f->c, 2, 0x83f, 0x31));
	assert_int_equal(takers(f, 0x31), 0x4);
	/* A sender in xAPIC mode says "all" with 8 bits; one in x2APIC mode reaches xAPIC CPUs. */
	assert_true(lapic_base_write(f->c, 1, 0xfee00000));
	assert_true(lapic_base_write(f->c, 1, 0xfee00800));
	wr(f, 1, LAPIC_SVR, 0x1ff);
	icr(f, 1, 0xff, 0x30);
	assert_int_equal(takers(f, 0x30), 0xf);
	assert_true(lapic_msr_write(f->c, 0, X2_ICR, UINT64_C(1) << 32 | 0x30));
	assert_int_equal(takers(f, 0x30), 0x2);
}

/* KVM's hypercall: physical, one APIC id each, whatever mode the APICs are in. */
static void hypercall_ipis(void **state)
{
	struct fx *f = *state;

	enable_all(f);
	assert_true(irqchip_send_ipi(f->c, 2, 0x51));
	assert_int_equal(takers(f, 0x51), 1 << 2);
	assert_false(irqchip_send_ipi(f->c, FX_CPUS, 0x51));
	assert_false(irqchip_send_ipi(f->c, 0xff, 0x51));
	assert_int_equal(takers(f, 0x51), 0);
	assert_true(irqchip_send_ipi(f->c, 1, 0x400));
	assert_int_equal(f->nmis[1], 1);
	assert_false(irqchip_send_ipi(f->c, 1, 7)); /* no such vector */
	all_x2apic(f);
	assert_true(irqchip_send_ipi(f->c, 3, 0x52));
	assert_int_equal(takers(f, 0x52), 1 << 3);
}

static void messages(void **state)
{
	static const uint8_t ldr[FX_CPUS] = {1, 2, 4, 8};
	struct fx *f = *state;
	const struct irq_sink *s = irqchip_sink(f->c);

	assert_false(irq_msi(s, 0xfee00000, 0x30)); /* all are disabled */
	enable_all(f);
	set_logical(f, 0xffffffff, ldr);
	assert_true(irq_msi(s, 0xfee02000, 0x30));
	assert_int_equal(takers(f, 0x30), 0x4);
	assert_false(irq_msi(s, 0xfee09000, 0x30)); /* no such CPU */
	assert_true(irq_msi(s, 0xfeeff000, 0x30));
	assert_int_equal(takers(f, 0x30), 0xf);
	assert_true(irq_msi(s, 0xfee0600c, 0x30)); /* logical, redirection hint: one of them */
	assert_int_equal(__builtin_popcount(takers(f, 0x30)), 1);
	assert_true(irq_msi(s, 0xfee06004, 0x30));
	assert_int_equal(takers(f, 0x30), 0x6);
	assert_true(irq_msi(s, 0xfee03000, DM_NMI << 8));
	assert_int_equal(count_mask(f->nmis), 0x8);
	/* Level: assert sets TMR, deassert is nothing. */
	assert_true(irq_msi(s, 0xfee00000, 0xc030));
	assert_true(in_reg(f, 0, LAPIC_TMR, 0x30));
	assert_int_equal(takers(f, 0x30), 0x1);
	assert_false(irq_msi(s, 0xfee00000, 0x8030));
	assert_int_equal(takers(f, 0x30), 0);
	assert_true(irq_msi(s, 0xfee00000, 0x30));
	assert_false(in_reg(f, 0, LAPIC_TMR, 0x30));
	assert_int_equal(takers(f, 0x30), 0x1);
	assert_true(irq_msi(s, 0xfee00000, DM_INIT << 8));
	assert_int_equal(count_mask(f->inits), 0x1);
	assert_true(irq_msi(s, 0xfee00000, 0x10));
	assert_int_equal(takers(f, 0x10), 0x1);
	/* Not an MSI address; modes that reach nobody. */
	assert_false(irq_msi(s, 0xfee00000, DM_SMI << 8));
	assert_false(irq_msi(s, 0xfee00000, DM_EXTINT << 8 | 0x30));
	assert_false(irq_msi(s, 0xfed00000, 0x30));
	assert_false(irq_msi(s, UINT64_C(0x1fee00000), 0x30));
	assert_false(irq_msi(s, 0xfee00000, DM_SIPI << 8 | 0x30));
	assert_int_equal(count_mask(f->sipis), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IRQ_TEST(physical_and_shorthands),
		IRQ_TEST(nmi_init_sipi),
		IRQ_TEST(logical_flat),
		IRQ_TEST(logical_cluster),
		IRQ_TEST(lowest_priority),
		IRQ_TEST(x2apic_destinations),
		IRQ_TEST(hypercall_ipis),
		IRQ_TEST(messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
