#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "rig.h"

/* Real mode: store to pages 0x20, 0x21 and 0x30 (segments 0x2000 and 0x3000), then OUT to the exit port. */
static const uint8_t stores[] = {
	0xb8, 0x00, 0x20, 0x8e, 0xd8, /* mov ax, 0x2000; mov ds, ax */
	0xa2, 0x10, 0x00,	      /* mov [0x10], al */
	0xa3, 0xff, 0x0f,	      /* mov [0xfff], ax: both pages */
	0xb8, 0x00, 0x30, 0x8e, 0xd8, /* mov ax, 0x3000; mov ds, ax */
	0xa2, 0x10, 0x00,	      /* mov [0x10], al */
	0xba, 0xf0, 0x05, 0xee, 0xf4, /* mov dx, 0x5f0; out dx, al; hlt */
};
#define WORDS (RIG_RAM / PAGE_SIZE / 64)

static bool dirty(const uint64_t *map, unsigned page) { return map[page / 64] >> (page % 64) & 1; }

static void dirty_log(void **state)
{
	uint64_t map[WORDS] = {0};
	struct error err = {0};
	struct rig r;

	rig_make(&r, 1);
	assert_false(kvm_dirty_log_fetch(r.engine, map, &err));
	rig_real(&r, stores, sizeof(stores));
	assert_true(kvm_dirty_log_start(r.engine, &err));
	assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
	assert_true(kvm_dirty_log_fetch(r.engine, map, &err));
	for (unsigned page = 0; page < RIG_RAM / PAGE_SIZE; page++)
		if (dirty(map, page) != (page == 0x20 || page == 0x21 || page == 0x30))
			fail_msg("page 0x%x is %sdirty", page, dirty(map, page) ? "" : "not ");
	/* Fetched: forgotten. What is written again is dirty again. */
	memset(map, 0, sizeof(map));
	assert_true(kvm_dirty_log_fetch(r.engine, map, &err));
	for (unsigned i = 0; i < WORDS; i++)
		assert_int_equal(map[i], 0);
	rig_real(&r, stores, sizeof(stores));
	assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
	assert_true(kvm_dirty_log_fetch(r.engine, map, &err));
	assert_true(dirty(map, 0x21));
	kvm_dirty_log_stop(r.engine);
	assert_false(kvm_dirty_log_fetch(r.engine, map, &err));
	rig_free(&r);
}

static uint64_t taken(int fd)
{
	uint64_t n = 0;

	return read(fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

/* OUT of 1 and 2 to port 0x500, then to the exit port. */
static const uint8_t two_outs[] = {0xba, 0x00, 0x05, 0xb0, 0x01, 0xee, 0xb0, 0x02, 0xee, 0xba, 0xf0, 0x05, 0xee, 0xf4};
/* 64-bit: mov edi, RIG_MMIO; mov [rdi + 16], ax; mov edx, 0x5f0; out dx, al; hlt */
static const uint8_t notify[] = {0xbf, 0, 0, 0, 0xd0, 0x66, 0x89, 0x47, 0x10, 0xba, 0xf0, 5, 0, 0, 0xee, 0xf4};

static void ioeventfd(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	struct error err = {0};
	uint64_t match = 2;
	struct rig r;

	rig_make(&r, 1);
	/* Only the write of 2 signals; the other reaches the device. */
	assert_true(kvm_ioeventfd_add(r.engine, BUS_PIO, RIG_PORT, 1, &match, fd, &err));
	rig_real(&r, two_outs, sizeof(two_outs));
	assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
	assert_int_equal(taken(fd), 1);
	assert_int_equal(r.count, 1);
	assert_int_equal(r.log[0].value, 1);
	kvm_ioeventfd_del(r.engine, BUS_PIO, RIG_PORT, 1, &match, fd);
	rig_real(&r, two_outs, sizeof(two_outs));
	assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
	assert_int_equal(taken(fd), 0);
	assert_int_equal(r.count, 3);

	assert_true(kvm_ioeventfd_add(r.engine, BUS_MMIO, RIG_MMIO + 16, 0, NULL, fd, &err));
	assert_false(kvm_ioeventfd_add(r.engine, BUS_MMIO, RIG_MMIO + 16, 0, NULL, fd, &err)); /* taken */
	assert_non_null(strstr(err.msg, "0xd0000010"));
	rig_long(&r, notify, sizeof(notify), 0);
	assert_int_equal(engine_kvm.run(r.engine, 0), EXIT_KICKED);
	assert_int_equal(taken(fd), 1);
	assert_int_equal(r.count, 3);
	close(fd);
	rig_free(&r);
}

/* The IOAPIC sends pin 5 as vector 0x45 to CPU 0, whose LAPIC then has it in IRR (register 0x200 + 0x10 * (vector /
 * 32)). */
static bool requested(struct rig *r, unsigned vector)
{
	uint8_t lapic[1024];

	for (unsigned tries = 0; tries < 200; tries++) {
		assert_true(kvm_engine_get_lapic(r->engine, 0, lapic));
		if (get_le32(lapic + 0x200 + 0x10 * (vector / 32)) >> (vector % 32) & 1)
			return true;
		usleep(1000);
	}
	return false;
}

static void irqfd(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	struct irqchip_state chips;
	struct error err = {0};
	uint8_t lapic[1024];
	uint64_t one = 1;
	struct rig r;

	rig_make(&r, 1);
	assert_true(kvm_engine_get_lapic(r.engine, 0, lapic));
	put_le32(lapic + 0xf0, 0x1ff);
	assert_true(kvm_engine_set_lapic(r.engine, 0, lapic));
	assert_true(kvm_engine_get_irqchip(r.engine, &chips));
	put_le64(chips.ioapic + 24 + 8 * 5, 0x45);
	assert_true(kvm_engine_set_irqchip(r.engine, &chips));

	assert_true(kvm_irqfd_add(r.engine, 5, fd, &err));
	assert_false(requested(&r, 0x45));
	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
	assert_true(requested(&r, 0x45));
	assert_false(kvm_irqfd_add(r.engine, 5, -1, &err));
	assert_non_null(strstr(err.msg, "GSI 5"));

	kvm_irqfd_del(r.engine, 5, fd);
	engine_kvm.reset(r.engine);
	assert_int_equal(write(fd, &one, sizeof(one)), sizeof(one));
	assert_false(requested(&r, 0x45));
	close(fd);
	rig_free(&r);
}

static void probe(void **state)
{
	struct kvm_probe p;

	kvm_probe(&p, NULL, 20, true);
	print_message("%s\n", p.msg);
	assert_true(p.present && p.opens && p.usable);
	assert_int_equal(p.api_version, 12);
	assert_null(p.missing);
	assert_true(p.ring0_ips > 1000);
	assert_true(p.ring3_ips > 1000);
	assert_int_equal(p.take, p.ring0_ips >= KVM_MIN_RING0_IPS);

	kvm_probe(&p, "/nonexistent/kvm", 20, true);
	assert_false(p.present || p.usable || p.take);
	assert_non_null(strstr(p.msg, "does not exist"));
	kvm_probe(&p, "/dev/null", 20, true);
	assert_true(p.present && p.opens);
	assert_false(p.usable || p.take);
	assert_true(p.msg[0]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(dirty_log),
		cmocka_unit_test(ioeventfd),
		cmocka_unit_test(irqfd),
		cmocka_unit_test(probe),
	};

	rig_need_kvm();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
