/* String instructions against the CPU's own, overlaps included; page ends, faults, address-size wrap, MMIO, ports. */
#include "fixture.h"

#define AREA 0x20000 /* guest address of the bytes under test */
#define AREA_LEN 0x3000

static uint8_t host_area[AREA_LEN];

/* Bytes of the instruction for op (0xa4 ...) of size. Returns the length. */
static unsigned encode(uint8_t *b, uint8_t rep, uint8_t op, unsigned size)
{
	unsigned n = 0;

	if (size == 2)
		b[n++] = 0x66;
	if (rep)
		b[n++] = rep;
	if (size == 8)
		b[n++] = 0x48;
	b[n++] = size == 1 ? op : op + 1;
	return n;
}

/* Both sides from the same state; everything must agree. src, dst are offsets in the area. */
static void compare(struct rig *r, uint8_t rep, uint8_t op, unsigned size, unsigned src, unsigned dst, uint64_t count,
		    uint64_t rax, bool down)
{
	uint8_t bytes[8];
	unsigned len = encode(bytes, rep, op, size);
	struct host_regs h = {.rax = rax,
			      .rcx = count,
			      .rsi = (uintptr_t)host_area + src,
			      .rdi = (uintptr_t)host_area + dst,
			      .rflags = down ? FL_DF : 0};

	rig_long(r, 3);
	memcpy(rig_mem(r, AREA), host_area, AREA_LEN);
	r->v.s.gpr[R_AX] = rax;
	r->v.s.gpr[R_CX] = count;
	r->v.s.gpr[R_SI] = AREA + src;
	r->v.s.gpr[R_DI] = AREA + dst;
	r->v.s.rflags = FL_FIXED | (down ? FL_DF : 0);
	host_run(bytes, len, &h);
	assert_true(rig_run(r, bytes, len));
	assert_int_equal(r->v.s.rip, CODE + len);
	assert_int_equal(r->v.s.gpr[R_AX], h.rax);
	assert_int_equal(r->v.s.gpr[R_CX], h.rcx);
	assert_int_equal(r->v.s.gpr[R_SI] - AREA, h.rsi - (uintptr_t)host_area);
	assert_int_equal(r->v.s.gpr[R_DI] - AREA, h.rdi - (uintptr_t)host_area);
	assert_int_equal(r->v.s.rflags & FL_ARITH, h.rflags & FL_ARITH);
	assert_memory_equal(rig_mem(r, AREA), host_area, AREA_LEN);
}

static void fill(unsigned values)
{
	for (unsigned i = 0; i < AREA_LEN; i++)
		host_area[i] = rnd() % values;
}

static void movs_overlap(void **state)
{
	for (unsigned size = 1; size <= 8; size *= 2) {
		for (int delta = -40; delta <= 40; delta++) {
			fill(256);
			compare(*state, 0xf3, 0xa4, size, 0x1000, (unsigned)(0x1000 + delta), 64, 0, false);
			fill(256);
			compare(*state, 0xf3, 0xa4, size, 0x1200, (unsigned)(0x1200 + delta), 64, 0, true);
		}
	}
}

static void random_runs(void **state)
{
	static const uint8_t ops[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae}, reps[] = {0, 0xf2, 0xf3};

	for (unsigned n = 0; n < 6000; n++) {
		uint8_t op = ops[rnd() % ARRAY_LEN(ops)], rep = reps[rnd() % ARRAY_LEN(reps)];
		unsigned size = 1u << (rnd() % 4);
		bool down = rnd() & 1;
		uint64_t count = rnd() % 4 ? rnd() % 100 : rnd() % 350;

		fill(rnd() % 3 ? 2 : 256);
		if (rnd() & 1) /* long equal runs */
			memset(host_area + 0x800, 1, 0x1800);
		compare(*state, rep, op, size, 0xd00 + rnd() % 0x600, 0xd00 + rnd() % 0x600, count,
			rnd() & 1 ? 0x0101010101010101 : rnd(), down);
	}
}

/* A fault in the middle: what is done is done, registers stand at the element that faults. */
static void fault_in_the_middle(void **state)
{
	struct rig *r = *state;

	for (unsigned size = 1; size <= 8; size *= 2) {
		for (unsigned which = 0; which < 2; which++) {
			uint8_t bytes[8];
			unsigned len = encode(bytes, 0xf3, 0xa4, size), start = 0x1000 - 3 * size - (size > 1);

			rig_long(r, 3);
			memset(r->mmu.page, 0, sizeof(r->mmu.page));
			r->mmu.page[(which ? 0x51000 : 0x41000) >> PAGE_SHIFT] = which ? PAGE_READONLY : PAGE_FAULTS;
			memset(rig_mem(r, 0x40000), 0x5a, 0x1000);
			memset(rig_mem(r, 0x50000), 0, 0x2000);
			r->v.s.gpr[R_CX] = 10;
			r->v.s.gpr[R_SI] = 0x40000 + start;
			r->v.s.gpr[R_DI] = 0x50000 + start;
			assert_false(rig_run(r, bytes, len));
			assert_fault(r, EXC_PF, PF_U | (which ? PF_W | PF_P : 0));
			assert_int_equal(r->v.s.rip, CODE);
			assert_int_equal(r->v.s.gpr[R_CX], 10 - 3);
			assert_int_equal(r->v.s.gpr[R_SI], 0x40000 + start + 3 * size);
			assert_int_equal(r->v.s.gpr[R_DI], 0x50000 + start + 3 * size);
			assert_int_equal(rig_mem(r, 0x50000 + start + 3 * size - 1)[0], 0x5a);
			assert_int_equal(rig_mem(r, 0x50000 + start + 3 * size)[0], 0);
		}
	}
	memset(r->mmu.page, 0, sizeof(r->mmu.page));
}

static void chunks_and_tf(void **state)
{
	struct rig *r = *state;
	unsigned calls = 0;

	rig_long(r, 3);
	r->v.s.gpr[R_CX] = 0x30000;
	r->v.s.gpr[R_DI] = 0x100000;
	r->v.s.gpr[R_AX] = 0x77;
	while (r->v.s.rip == CODE) {
		uint64_t before = r->v.s.gpr[R_CX];

		assert_true(RUN(r, 0xf3, 0xaa));
		assert_in_range(before - r->v.s.gpr[R_CX], 1, INTERP_CHUNK);
		calls++;
	}
	assert_int_equal(calls, 3);
	assert_int_equal(r->v.s.gpr[R_DI], 0x130000);
	assert_int_equal(rig_mem(r, 0x12ffff)[0], 0x77);
	rig_long(r, 3);
	r->v.s.rflags |= FL_TF;
	r->v.s.gpr[R_CX] = 3;
	r->v.s.gpr[R_DI] = 0x100000;
	assert_true(RUN(r, 0xf3, 0xab));
	assert_int_equal(r->v.s.gpr[R_CX], 2);
	assert_int_equal(r->v.s.rip, CODE);
}

/* 16- and 32-bit address sizes wrap; the upper halves follow the CPU's rules. */
static void address_size(void **state)
{
	struct rig *r = *state;

	rig_real(r);
	for (unsigned i = 0; i < 16; i++)
		rig_mem(r, (0xfff8 + i) & 0xffff)[0] = 0x10 + i;
	r->v.s.gpr[R_CX] = 0xabcd0010;
	r->v.s.gpr[R_SI] = 0x1111fff8;
	r->v.s.gpr[R_DI] = 0x22223000;
	assert_true(RUN(r, 0xf3, 0xa4));
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(rig_mem(r, 0x3000 + i)[0], 0x10 + i);
	assert_int_equal(r->v.s.gpr[R_CX], 0xabcd0000);
	assert_int_equal(r->v.s.gpr[R_SI], 0x11110008);
	assert_int_equal(r->v.s.gpr[R_DI], 0x22223010);
	/* a word across the end of the segment */
	r->v.s.gpr[R_SI] = 0xffff;
	assert_false(RUN(r, 0xad));
	assert_fault(r, EXC_GP, 0);
	rig_long(r, 3);
	r->v.s.gpr[R_CX] = 0xffffffff00000002;
	r->v.s.gpr[R_DI] = 0xffffffff00005000;
	assert_true(RUN(r, 0x67, 0xf3, 0xaa));
	assert_int_equal(r->v.s.gpr[R_CX], 0);
	assert_int_equal(r->v.s.gpr[R_DI], 0x5002);
	r->v.s.gpr[R_CX] = 0xffffffff00000000; /* nothing to do: registers stay */
	assert_true(RUN(r, 0x67, 0xf3, 0xaa));
	assert_int_equal(r->v.s.gpr[R_CX], 0xffffffff00000000);
}

/* A run that the segment limit cuts goes up to it, then faults. */
static void segment_limit(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->v.s.seg[SEG_ES].limit = 0x5007;
	memset(rig_mem(r, 0x5000), 0, 0x20);
	r->v.s.gpr[R_DI] = 0x5000;
	r->v.s.gpr[R_CX] = 5;
	r->v.s.gpr[R_AX] = 0xffffffff;
	assert_false(RUN(r, 0xf3, 0xab));
	assert_fault(r, EXC_GP, 0);
	assert_int_equal(r->v.s.gpr[R_CX], 3);
	assert_int_equal(r->v.s.gpr[R_DI], 0x5008);
	assert_int_equal(get_le64(rig_mem(r, 0x5000)), UINT64_MAX);
	assert_int_equal(get_le64(rig_mem(r, 0x5008)), 0);
	/* segment override applies to the source only */
	rig_prot(r, 0);
	r->v.s.seg[SEG_FS].base = 0x40000;
	rig_mem(r, 0x45000)[0] = 0x99;
	r->v.s.gpr[R_SI] = 0x5000;
	r->v.s.gpr[R_DI] = 0x6000;
	assert_true(RUN(r, 0x64, 0xa4));
	assert_int_equal(rig_mem(r, 0x6000)[0], 0x99);
}

static void mmio(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	r->v.s.gpr[R_SI] = RIG_MMIO;
	r->v.s.gpr[R_DI] = 0x5000;
	r->v.s.gpr[R_CX] = 4;
	assert_true(RUN(r, 0xf3, 0xa4)); /* one access an element */
	assert_int_equal(r->mmu.mmio_reads, 4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(rig_mem(r, 0x5000)[i], i + 1);
	r->v.s.gpr[R_SI] = 0x5000;
	r->v.s.gpr[R_DI] = RIG_MMIO + 8;
	r->v.s.gpr[R_CX] = 1;
	assert_true(RUN(r, 0xf3, 0xa5));
	assert_int_equal(r->mmu.mmio_last, 0x04030201);
}

static void xlat(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	rig_mem(r, 0x5080)[0] = 0x42;
	r->v.s.gpr[R_BX] = 0x5000;
	r->v.s.gpr[R_AX] = 0x12345680;
	assert_true(RUN(r, 0xd7));
	assert_int_equal(r->v.s.gpr[R_AX], 0x12345642);
}

static uint64_t port_read(void *dev, uint64_t off, unsigned size) { return 0x11111111u * ++*(unsigned *)dev; }
static void port_write(void *dev, uint64_t off, unsigned size, uint64_t value) { *(unsigned *)dev += value & 0xff; }

static void ports(void **state)
{
	static const struct bus_ops ops = {.read = port_read, .write = port_write, .min_size = 1, .max_size = 4};
	struct rig *r = *state;
	unsigned dev = 0;

	assert_true(bus_map(r->cfg.bus, BUS_PIO, 0x300, 8, &ops, &dev, "test", NULL));
	rig_prot(r, 0);
	r->v.s.gpr[R_DX] = 0x300;
	assert_true(RUN(r, 0xed));
	assert_int_equal(r->v.s.gpr[R_AX], 0x11111111);
	assert_true(RUN(r, 0x66, 0xed));
	assert_int_equal(r->v.s.gpr[R_AX], 0x11112222);
	assert_true(RUN(r, 0xe4, 0x99)); /* nobody there */
	assert_int_equal(r->v.s.gpr[R_AX], 0x111122ff);
	r->v.s.gpr[R_DI] = 0x5000;
	r->v.s.gpr[R_CX] = 3;
	assert_true(RUN(r, 0xf3, 0x6d));
	assert_int_equal(get_le32(rig_mem(r, 0x5008)), 0x55555555);
	assert_int_equal(r->v.s.gpr[R_CX], 0);
	/* INS to a page that faults does not read the port */
	r->mmu.page[6] = PAGE_READONLY;
	r->v.s.gpr[R_DI] = 0x6000;
	assert_false(RUN(r, 0x6d));
	assert_int_equal(dev, 5);
	r->mmu.page[6] = 0;
	dev = 0;
	memset(rig_mem(r, 0x5000), 3, 4);
	r->v.s.gpr[R_SI] = 0x5000;
	r->v.s.gpr[R_CX] = 4;
	assert_true(RUN(r, 0xf3, 0x6e));
	assert_int_equal(dev, 12);

	/* ring 3: IOPL, else the TSS bitmap */
	rig_prot(r, 3);
	r->v.s.gpr[R_DX] = 0x300;
	put_le16(rig_mem(r, TSS + 102), 0x68);
	memset(rig_mem(r, TSS + 0x68), 0xff, 0x200 - 0x68);
	assert_false(RUN(r, 0xec));
	assert_fault(r, EXC_GP, 0);
	rig_mem(r, TSS + 0x68 + 0x60)[0] = 0xfe;
	assert_true(RUN(r, 0xec));
	assert_false(RUN(r, 0x66, 0xed)); /* the second port's bit is set */
	rig_mem(r, TSS + 0x68 + 0x60)[0] = 0xf0;
	assert_true(RUN(r, 0xed));
	r->v.s.tr.limit = 0x68 + 0x60; /* the bitmap needs one more byte */
	assert_false(RUN(r, 0xec));
	r->v.s.tr.limit++;
	assert_true(RUN(r, 0xec));
	r->v.s.tr.attr = SEG_P | 3; /* a 16-bit TSS has none */
	assert_false(RUN(r, 0xec));
	r->v.s.rflags |= FL_IOPL;
	assert_true(RUN(r, 0xec));
	rig_v86(r, 3); /* in VM86 the bitmap alone decides */
	r->v.s.gpr[R_DX] = 0x300;
	put_le16(rig_mem(r, TSS + 102), 0x68);
	assert_true(RUN(r, 0xec));
	rig_mem(r, TSS + 0x68 + 0x60)[0] = 0xff;
	assert_false(RUN(r, 0xec));
	assert_fault(r, EXC_GP, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(movs_overlap),	TEST(random_runs),  TEST(fault_in_the_middle),
					   TEST(chunks_and_tf), TEST(address_size), TEST(segment_limit),
					   TEST(mmio),		TEST(xlat),	    TEST(ports)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
