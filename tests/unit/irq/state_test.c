/* The serialized forms: our own round trip, refusal of impossible values, and what KVM makes of them. */
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

_Static_assert(sizeof(struct kvm_ioapic_state) == sizeof(struct ioapic_state), "ioapic");
_Static_assert(sizeof(struct kvm_pic_state) == sizeof(struct pic_state), "pic");
_Static_assert(sizeof(struct kvm_pit_state2) == sizeof(struct pit_state), "pit");
_Static_assert(sizeof(struct kvm_lapic_state) == 1024, "lapic");
_Static_assert(offsetof(struct kvm_pit_state2, flags) == offsetof(struct pit_state, flags), "pit flags");
_Static_assert(offsetof(struct kvm_pit_state2, reserved) == offsetof(struct pit_state, extra), "pit extra");
_Static_assert(offsetof(struct kvm_pit_channel_state, count_load_time) == offsetof(struct pit_channel, count_load_time),
	       "");
_Static_assert(offsetof(struct kvm_pit_channel_state, gate) == offsetof(struct pit_channel, gate), "");
_Static_assert(offsetof(struct kvm_pic_state, elcr_mask) == offsetof(struct pic_state, elcr_mask), "");
_Static_assert(offsetof(struct kvm_pic_state, init_state) == offsetof(struct pic_state, init_state), "");
_Static_assert(offsetof(struct kvm_ioapic_state, redirtbl) == offsetof(struct ioapic_state, redir), "");
_Static_assert(offsetof(struct kvm_ioapic_state, irr) == offsetof(struct ioapic_state, irr), "");

#define MSR_ICR (0x800u + LAPIC_ICR)

struct all {
	struct irqchip_state chips;
	uint8_t lapic[FX_CPUS][1024];
	uint64_t base[FX_CPUS], deadline[FX_CPUS];
};

static void save(struct fx *f, struct all *a)
{
	memset(a, 0, sizeof(*a));
	irqchip_get_state(f->c, &a->chips);
	for (unsigned i = 0; i < FX_CPUS; i++) {
		lapic_get_state(f->c, i, a->lapic[i]);
		a->base[i] = lapic_base_read(f->c, i);
		assert_true(lapic_msr_read(f->c, i, 0x6e0, &a->deadline[i]));
	}
}

static void load(struct fx *f, const struct all *a)
{
	assert_true(irqchip_set_state(f->c, &a->chips));
	for (unsigned i = 0; i < FX_CPUS; i++) {
		lapic_base_restore(f->c, i, a->base[i]);
		assert_true(lapic_set_state(f->c, i, a->lapic[i]));
		assert_true(lapic_msr_write(f->c, i, 0x6e0, a->deadline[i]));
	}
}

/* A machine with something in every corner. */
static void busy(struct fx *f)
{
	static const uint8_t pic_init[2][4] = {{0x11, 0x20, 0x04, 0x03}, {0x11, 0x28, 0x02, 0x11}};

	enable_all(f);
	for (unsigned i = 0; i < 4; i++) {
		out8(f, i ? 0x21 : 0x20, pic_init[0][i]);
		out8(f, i ? 0xa1 : 0xa0, pic_init[1][i]);
	}
	out8(f, 0x20, 0xc2); /* rotated */
	out8(f, 0xa0, 0x68); /* special mask */
	out8(f, 0x21, 0x41);
	out8(f, 0x4d1, 0x0c);
	wr(f, 0, LAPIC_LVT_LINT0, 0x10000);
	for (unsigned pin = 1; pin < IOAPIC_PINS; pin++) {
		bus_write(f->bus, BUS_MMIO, 0xfec00000, 4, 0x10 + 2 * pin);
		bus_write(f->bus, BUS_MMIO, 0xfec00010, 4,
			  (0x40 + 3 * pin) | (pin >= 16 ? 0xa000 : 0) | (pin == 5 ? 0x10000 : 0));
		bus_write(f->bus, BUS_MMIO, 0xfec00000, 4, 0x11 + 2 * pin);
		bus_write(f->bus, BUS_MMIO, 0xfec00010, 4, (pin % FX_CPUS) << 24);
	}
	bus_write(f->bus, BUS_MMIO, 0xfec00000, 4, 0);
	bus_write(f->bus, BUS_MMIO, 0xfec00010, 4, 0x05000000);
	gsi(f, 4, true);
	gsi(f, 11, true);
	gsi(f, 17, true);
	gsi(f, 19, true);
	gsi(f, 6, true);
	gsi(f, 6, false);
	assert_true(irqchip_ack(f->c, 1) > 0); /* 17 or 4, in service */
	for (unsigned i = 0; i < FX_CPUS; i++) {
		wr(f, i, LAPIC_LDR, 0x01000000u << i);
		wr(f, i, LAPIC_LVT_THERMAL, 0x10200);
		wr(f, i, LAPIC_LVT_PERF, 0x400);
		wr(f, i, LAPIC_LVT_LINT1, 0x400);
		wr(f, i, LAPIC_LVT_ERROR, 0xfe);
		wr(f, i, LAPIC_TPR, 0x20);
		wr(f, i, LAPIC_TDCR, i & 3);
	}
	wr(f, 0, LAPIC_LVT_TIMER, 0x200ec);
	wr(f, 0, LAPIC_TMICT, 1000000);
	wr(f, 1, LAPIC_LVT_TIMER, 0x000ed);
	wr(f, 1, LAPIC_TMICT, 2000000);
	wr(f, 2, LAPIC_LVT_TIMER, 0x400ee);
	assert_true(lapic_msr_write(f->c, 2, 0x6e0, (uint64_t)(fx_now() + 5000000) * 2));
	assert_true(lapic_base_write(f->c, 3, 0xfee00c00));
	assert_true(lapic_msr_write(f->c, 3, MSR_ICR, UINT64_C(0x12345678) << 32 | 0xb0));
	wr(f, 2, LAPIC_ICR2, 0x01000000);
	wr(f, 2, LAPIC_ICR, 0x0f); /* an error, not shown yet */
	out8(f, 0x43, 0x34);
	out8(f, 0x40, 0x9c);
	out8(f, 0x40, 0x2e);
	out8(f, 0x43, 0xb7);
	out8(f, 0x42, 0x34);
	out8(f, 0x42, 0x12);
	out8(f, 0x61, 0x0b);
	fx_advance(f, 300000);
	out8(f, 0x42, 0x50); /* a pending count */
	out8(f, 0x42, 0x07);
	out8(f, 0x43, 0xc0 | 0x0c); /* latches of channels 1 and 2 */
	in8(f, 0x42);
	in8(f, 0x42);
	out8(f, 0x42, 0x99); /* half a count */
	in8(f, 0x40);	     /* half a read */
	fx_advance(f, 400001);
}

static void round_trip(void **state)
{
	struct fx *f = *state;
	struct all a, b;
	int64_t next;

	busy(f);
	save(f, &a);
	next = timer_queue_deadline(&f->q);
	for (unsigned i = 0; i < FX_CPUS; i++)
		assert_true(irqchip_hint(f->c, i) == irqchip_pending(f->c, i));
	irqchip_reset(f->c);
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	load(f, &a);
	save(f, &b);
	assert_memory_equal(&a, &b, sizeof(a));
	/* It goes on as it would have: the same next deadline (to the LAPIC's tick), the same pending vectors. */
	assert_in_range(timer_queue_deadline(&f->q), next - 16, next + 16);
	for (unsigned i = 0; i < FX_CPUS; i++)
		assert_true(irqchip_hint(f->c, i) == irqchip_pending(f->c, i));
	/* CPUs before chips is right too. */
	irqchip_reset(f->c);
	for (unsigned i = 0; i < FX_CPUS; i++) {
		lapic_base_restore(f->c, i, a.base[i]);
		assert_true(lapic_set_state(f->c, i, a.lapic[i]));
		assert_true(lapic_msr_write(f->c, i, 0x6e0, a.deadline[i]));
	}
	assert_true(irqchip_set_state(f->c, &a.chips));
	save(f, &b);
	assert_memory_equal(&a, &b, sizeof(a));
}

/* An expiry that is due but not served when the state is taken is in the state as an interrupt. */
static void late_expiry_is_kept(void **state)
{
	struct fx *f = *state;
	struct all a;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_LINT0, 0x10000);
	wr(f, 0, LAPIC_LVT_TIMER, 0x000ec);
	wr(f, 0, LAPIC_TMICT, 1000);
	out8(f, 0x43, 0x30);
	out8(f, 0x40, 0x10);
	out8(f, 0x40, 0x00);
	fx_sleep(1000000);
	save(f, &a);
	assert_int_equal(a.chips.pic[0][offsetof(struct pic_state, irr)] & 1, 1);
	assert_true(in_reg(f, 0, LAPIC_IRR, 0xec));
	assert_int_equal(get_le32(&a.lapic[0][0x390]), 0);
}

#define REFUSED(member, value)                                                                                         \
	do {                                                                                                           \
		struct irqchip_state bad = good;                                                                       \
		member = value;                                                                                        \
		assert_false(irqchip_set_state(f->c, &bad));                                                           \
	} while (0)
#define PIC_AT(chip, field) bad.pic[chip][offsetof(struct pic_state, field)]
#define PIT_AT(ch, field) bad.pit[(ch) * sizeof(struct pit_channel) + offsetof(struct pit_channel, field)]

static void impossible_values(void **state)
{
	struct fx *f = *state;
	struct irqchip_state good;
	uint8_t lapic[1024];

	irqchip_get_state(f->c, &good);
	assert_true(irqchip_set_state(f->c, &good));
	REFUSED(PIC_AT(0, priority_add), 8);
	REFUSED(PIC_AT(1, irq_base), 3);
	REFUSED(PIC_AT(0, init_state), 4);
	REFUSED(PIC_AT(0, elcr), 1);
	REFUSED(PIC_AT(1, elcr_mask), 0xff);
	REFUSED(PIC_AT(1, poll), 2);
	REFUSED(bad.ioapic[0], 1);  /* base */
	REFUSED(bad.ioapic[19], 1); /* an IRR bit above 23 */
	REFUSED(bad.ioapic[12], 0x10);
	REFUSED(PIT_AT(0, mode), 6);
	REFUSED(PIT_AT(2, gate), 2);
	REFUSED(PIT_AT(1, rw_mode), 4);
	REFUSED(PIT_AT(1, read_state), 5);
	REFUSED(PIT_AT(0, count) = 0; bad.pit[2], 0); /* count 0 */
	REFUSED(bad.pit[2], 2);			      /* count 0x20000 */
	REFUSED(bad.pit[76 + 8], 8);		      /* an unknown flag */
	lapic_get_state(f->c, 1, lapic);
	assert_false(lapic_set_state(f->c, 2, lapic)); /* another CPU's */
	/* Register bits that do not exist are dropped. */
	memset(lapic, 0xff, sizeof(lapic));
	put_le32(&lapic[0x20], 1 << 24);
	assert_true(lapic_set_state(f->c, 1, lapic));
	assert_int_equal(rd(f, 1, LAPIC_SVR), 0x3ff);
	assert_int_equal(rd(f, 1, LAPIC_IRR), 0xffff0000);
	assert_int_equal(rd(f, 1, LAPIC_VERSION), 0x50014);
	assert_int_equal(rd(f, 1, LAPIC_LVT_TIMER), 0x700ff);
	put_le32(&lapic[0xf0], 0xff); /* software-disabled: every LVT is masked */
	for (unsigned r = LAPIC_LVT_TIMER; r <= LAPIC_LVT_ERROR; r++)
		put_le32(&lapic[16 * r], 0);
	assert_true(lapic_set_state(f->c, 1, lapic));
	for (unsigned r = LAPIC_LVT_TIMER; r <= LAPIC_LVT_ERROR; r++)
		assert_int_equal(rd(f, 1, r), r == LAPIC_LVT_LINT0 ? 0 : 0x10000);
	/* A load time in the future (another host's clock) is now. */
	put_le64(&good.pit[16], (uint64_t)INT64_MAX);
	put_le64(&good.pit[40], (uint64_t)INT64_MIN);
	assert_true(irqchip_set_state(f->c, &good));
	assert_int_equal(f->c->pit.st.ch[0].count_load_time, fx_now());
	assert_int_equal(f->c->pit.st.ch[1].count_load_time, fx_now());
}

/* --- KVM --- */

struct kvm {
	int sys, vm, vcpu[FX_CPUS];
};

static bool kvm_open(struct kvm *k)
{
	size_t entries = 100;
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + entries * sizeof(cpuid->entries[0]));
	struct kvm_pit_config pit = {0};

	assert_non_null(cpuid);
	k->sys = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (k->sys < 0) {
		free(cpuid);
		return false;
	}
	k->vm = ioctl(k->sys, KVM_CREATE_VM, 0);
	assert_true(k->vm >= 0);
	assert_int_equal(ioctl(k->vm, KVM_CREATE_IRQCHIP, 0), 0);
	assert_int_equal(ioctl(k->vm, KVM_CREATE_PIT2, &pit), 0);
	cpuid->nent = (uint32_t)entries;
	assert_int_equal(ioctl(k->sys, KVM_GET_SUPPORTED_CPUID, cpuid), 0); /* x2APIC */
	for (unsigned e = 0; e < cpuid->nent; e++)
		if (cpuid->entries[e].function == 1)
			cpuid->entries[e].ecx |= 1u << 24; /* TSC deadline */
	for (unsigned i = 0; i < FX_CPUS; i++) {
		k->vcpu[i] = ioctl(k->vm, KVM_CREATE_VCPU, i);
		assert_true(k->vcpu[i] >= 0);
		assert_int_equal(ioctl(k->vcpu[i], KVM_SET_CPUID2, cpuid), 0);
	}
	free(cpuid);
	return true;
}

static void kvm_close(struct kvm *k)
{
	for (unsigned i = 0; i < FX_CPUS; i++)
		close(k->vcpu[i]);
	close(k->vm);
	close(k->sys);
}

static void kvm_chip(struct kvm *k, unsigned id, const void *in, void *out, size_t size)
{
	struct kvm_irqchip chip = {.chip_id = id};

	memcpy(&chip.chip, in, size);
	assert_int_equal(ioctl(k->vm, KVM_SET_IRQCHIP, &chip), 0);
	memset(&chip.chip, 0xee, sizeof(chip.chip));
	assert_int_equal(ioctl(k->vm, KVM_GET_IRQCHIP, &chip), 0);
	memcpy(out, &chip.chip, size);
}

static void kvm_pit(struct kvm *k, const uint8_t in[112], uint8_t out[112])
{
	struct kvm_pit_state2 pit;

	memcpy(&pit, in, sizeof(pit));
	assert_int_equal(ioctl(k->vm, KVM_SET_PIT2, &pit), 0);
	memset(&pit, 0xee, sizeof(pit));
	assert_int_equal(ioctl(k->vm, KVM_GET_PIT2, &pit), 0);
	memcpy(out, &pit, sizeof(pit));
}

static void kvm_lapic(int vcpu, uint64_t base, const uint8_t in[1024], uint8_t out[1024])
{
	struct kvm_sregs sregs;
	struct kvm_lapic_state st;

	assert_int_equal(ioctl(vcpu, KVM_GET_SREGS, &sregs), 0);
	sregs.apic_base = base;
	assert_int_equal(ioctl(vcpu, KVM_SET_SREGS, &sregs), 0);
	memcpy(&st, in, sizeof(st));
	assert_int_equal(ioctl(vcpu, KVM_SET_LAPIC, &st), 0);
	memset(&st, 0xee, sizeof(st));
	assert_int_equal(ioctl(vcpu, KVM_GET_LAPIC, &st), 0);
	memcpy(out, &st, sizeof(st));
}

/*
 * Every LAPIC register as KVM returns it. Not compared: PPR, which derives from others and which KVM brings up to date
 * only when the CPU runs. The running count only roughly, as KVM's timer runs on.
 */
static void compare_lapic(const uint8_t in[1024], const uint8_t out[1024])
{
	for (unsigned r = 0; r < LAPIC_REGS; r++) {
		uint32_t a = get_le32(&in[16 * r]), b = get_le32(&out[16 * r]);

		if (r == LAPIC_PPR)
			continue;
		if (r == LAPIC_TMCCT && a) {
			assert_in_range(b, 0, get_le32(&in[16 * LAPIC_TMICT]));
			continue;
		}
		if (a != b)
			fail_msg("LAPIC register 0x%x: 0x%x became 0x%x", 16 * r, a, b);
	}
}

static void kvm_takes_it(void **state)
{
	struct fx *f = *state;
	struct kvm k;
	struct all a;
	uint8_t out[1024];

	if (!kvm_open(&k))
		skip();
	for (unsigned round = 0; round < 2; round++) {
		if (round == 1)
			busy(f);
		save(f, &a);
		for (unsigned i = 0; i < FX_CPUS; i++) {
			kvm_lapic(k.vcpu[i], a.base[i], a.lapic[i], out);
			compare_lapic(a.lapic[i], out);
			/* And back. */
			assert_true(lapic_set_state(f->c, i, out));
		}
		kvm_chip(&k, KVM_IRQCHIP_PIC_MASTER, a.chips.pic[0], out, 16);
		assert_memory_equal(out, a.chips.pic[0], 16);
		kvm_chip(&k, KVM_IRQCHIP_PIC_SLAVE, a.chips.pic[1], out, 16);
		assert_memory_equal(out, a.chips.pic[1], 16);
		kvm_chip(&k, KVM_IRQCHIP_IOAPIC, a.chips.ioapic, out, 216);
		/* KVM offers the asserted pins again; what it returns must be loadable, and equal but for request bits.
		 */
		memcpy(out + 16, a.chips.ioapic + 16, 4);
		assert_memory_equal(out, a.chips.ioapic, 216);
		kvm_pit(&k, a.chips.pit, out);
		for (unsigned ch = 0; ch < 3; ch++) /* KVM starts the counts anew */
			memcpy(out + 24 * ch + 16, a.chips.pit + 24 * ch + 16, 8);
		assert_memory_equal(out, a.chips.pit, 73);
		memcpy(a.chips.pit, out, 112);
		assert_true(irqchip_set_state(f->c, &a.chips));
	}
	kvm_close(&k);
}

/* What KVM itself starts with is loadable, and equals our own reset state. */
static void kvm_reset_state(void **state)
{
	struct fx *f = *state;
	struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
	struct kvm_lapic_state lapic;
	struct kvm_pit_state2 pit;
	struct irqchip_state mine, theirs = {0};
	uint8_t regs[1024];
	struct kvm k;

	if (!kvm_open(&k))
		skip();
	assert_int_equal(ioctl(k.vm, KVM_GET_IRQCHIP, &chip), 0);
	memcpy(theirs.ioapic, &chip.chip, 216);
	for (unsigned i = 0; i < 2; i++) {
		chip.chip_id = i;
		assert_int_equal(ioctl(k.vm, KVM_GET_IRQCHIP, &chip), 0);
		memcpy(theirs.pic[i], &chip.chip, 16);
	}
	assert_int_equal(ioctl(k.vm, KVM_GET_PIT2, &pit), 0);
	memcpy(theirs.pit, &pit, 112);
	irqchip_get_state(f->c, &mine);
	assert_memory_equal(mine.ioapic, theirs.ioapic, 216);
	assert_memory_equal(mine.pic, theirs.pic, 32);
	for (unsigned ch = 0; ch < 3; ch++)
		assert_memory_equal(mine.pit + 24 * ch, theirs.pit + 24 * ch, 16);
	assert_true(irqchip_set_state(f->c, &theirs));
	for (unsigned i = 0; i < FX_CPUS; i++) {
		assert_int_equal(ioctl(k.vcpu[i], KVM_GET_LAPIC, &lapic), 0);
		lapic_get_state(f->c, i, regs);
		compare_lapic(regs, (uint8_t *)lapic.regs);
		assert_true(lapic_set_state(f->c, i, (uint8_t *)lapic.regs));
	}
	kvm_close(&k);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IRQ_TEST(round_trip),	IRQ_TEST(late_expiry_is_kept), IRQ_TEST(impossible_values),
		IRQ_TEST(kvm_takes_it), IRQ_TEST(kvm_reset_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
