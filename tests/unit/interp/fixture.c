#include "fixture.h"

#include <stdlib.h>
#include <sys/mman.h>

/* --- the flat MMU --- */

static bool page_ok(struct vcpu *v, gva_t la, unsigned flags)
{
	bool user = (flags & MMU_USER) || (!(flags & MMU_SYSTEM) && cpu_cpl(&v->s) == 3);
	uint32_t err = ((flags & MMU_WRITE) ? PF_W : 0) | (user ? PF_U : 0);
	uint8_t p;

	if (la >= RIG_RAM)
		return vcpu_raise_pf(v, la, err);
	p = v->mmu->page[la >> PAGE_SHIFT];
	if ((p & PAGE_FAULTS) || ((p & PAGE_READONLY) && (flags & MMU_WRITE)))
		return vcpu_raise_pf(v, la, err | ((p & PAGE_FAULTS) ? 0 : PF_P));
	return true;
}

static bool range(struct vcpu *v, gva_t la, unsigned len, unsigned flags)
{
	if (!cpu_long_mode(&v->s))
		la = (uint32_t)la;
	return page_ok(v, la, flags) &&
	       (((la + len - 1) ^ la) < PAGE_SIZE || page_ok(v, (la + len - 1) & ~(PAGE_SIZE - 1), flags));
}

bool mmu_read(struct vcpu *v, gva_t la, void *buf, unsigned len, unsigned flags)
{
	if (!range(v, la, len, flags))
		return false;
	if (la >= RIG_MMIO)
		memset(buf, (int)(++v->mmu->mmio_reads & 0xff), len);
	else
		memcpy(buf, ram_ptr(v->mmu->ram, la, len), len);
	return true;
}

bool mmu_write(struct vcpu *v, gva_t la, const void *buf, unsigned len, unsigned flags)
{
	if (!range(v, la, len, flags | MMU_WRITE))
		return false;
	if (la >= RIG_MMIO)
		memcpy(&v->mmu->mmio_last, buf, len < 8 ? len : 8);
	else
		memcpy(ram_ptr(v->mmu->ram, la, len), buf, len);
	return true;
}

bool mmu_probe_write(struct vcpu *v, gva_t la, unsigned len, unsigned flags)
{
	return range(v, la, len, flags | MMU_WRITE);
}

bool mmu_host_ptr(struct vcpu *v, gva_t la, unsigned flags, void **host)
{
	if (!range(v, la, 1, flags))
		return false;
	*host = la >= RIG_MMIO ? NULL : ram_ptr(v->mmu->ram, la, 1);
	return true;
}

void mmu_host_wrote(struct vcpu *v, const void *host, unsigned len) { }

bool mmu_cmpxchg(struct vcpu *v, gva_t la, uint64_t *expected, uint64_t desired, unsigned len, unsigned flags,
		 bool *done)
{
	uint64_t now = 0;

	if (!range(v, la, len, flags | MMU_WRITE) || !mmu_read(v, la, &now, len, flags))
		return false;
	*done = now == (*expected & mask_bytes(len));
	*expected = now;
	return !*done || mmu_write(v, la, &desired, len, flags);
}

void mmu_flush_all(struct vcpu *v) { v->mmu->flushes++; }
void mmu_flush_nonglobal(struct vcpu *v) { v->mmu->flushes++; }
void mmu_flush_pcid(struct vcpu *v, unsigned pcid) { v->mmu->flushes++; }
void mmu_flush_page(struct vcpu *v, gva_t la) { v->mmu->flushes++; }
void mmu_flush_page_pcid(struct vcpu *v, gva_t la, unsigned pcid) { v->mmu->flushes++; }
void mmu_context_changed(struct vcpu *v) { v->mmu->changes++; }

void vcpu_unhalt(struct vcpu *v, unsigned target) { }
void vcpu_yield(struct vcpu *v) { }

/* --- the rig --- */

struct rig *rig_new(void)
{
	struct rig *r = aligned_alloc(64, (sizeof(*r) + 63) & ~63u);

	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
	assert_true(cpuid_policy_init(&r->policy, CPU_MAX, 1, 2000000, NULL));
	r->mmu.ram = ram_new(RIG_RAM, NULL);
	assert_non_null(r->mmu.ram);
	r->cfg = (struct engine_config){
		.ram = r->mmu.ram, .bus = bus_new(), .cpuid = &r->policy, .ncpus = 1, .lock = &r->lock};
	r->v.cfg = &r->cfg;
	r->v.mmu = &r->mmu;
	cpu_state_reset(&r->v.s, 0);
	return r;
}

void rig_free(struct rig *r)
{
	bus_free(r->cfg.bus);
	ram_free(r->mmu.ram);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

int rig_setup(void **state)
{
	*state = rig_new();
	return 0;
}

int rig_teardown(void **state)
{
	rig_free(*state);
	return 0;
}

uint8_t *rig_mem(struct rig *r, uint64_t la) { return ram_ptr(r->mmu.ram, la, 1); }

void rig_vendor(struct rig *r, bool amd)
{
	for (unsigned i = 0; i < r->policy.count; i++) {
		if (r->policy.e[i].leaf == 0)
			r->policy.e[i].r.ebx = amd ? 0x68747541 : 0x756e6547;
	}
}

void rig_desc(struct rig *r, uint16_t sel, uint32_t base, uint32_t limit, uint32_t attr)
{
	uint64_t lim = (attr & SEG_G) ? limit >> 12 : limit;
	uint64_t raw = (lim & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xf0ff) << 40 |
		       (lim & 0xf0000) << 32 | (uint64_t)(base >> 24) << 56;

	put_le64(rig_mem(r, ((sel & 4) ? LDT : GDT) + (sel & 0xfff8u)), raw);
}

void rig_gate(struct rig *r, uint64_t la, uint16_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned extra)
{
	put_le64(rig_mem(r, la), (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)extra << 32 |
					 (uint64_t)(SEG_P | type | dpl << SEG_DPL_SHIFT) << 40 |
					 (off & 0xffff0000) << 32);
}

void rig_idt(struct rig *r, uint8_t vector, uint16_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned ist)
{
	unsigned len = cpu_long_mode(&r->v.s) ? 16 : 8;

	rig_gate(r, IDT + vector * len, sel, off, type, dpl, ist);
	if (len == 16)
		put_le64(rig_mem(r, IDT + vector * 16u + 8), off >> 32);
}

static void standard_tables(struct rig *r, unsigned tss_type)
{
	struct cpu_state *s = &r->v.s;

	rig_desc(r, CODE0, 0, UINT32_MAX, A_CODE | SEG_DB | SEG_G);
	rig_desc(r, DATA0, 0, UINT32_MAX, A_DATA | SEG_DB | SEG_G);
	rig_desc(r, CODE3, 0, UINT32_MAX, A_CODE | SEG_DB | SEG_G | A_DPL(3));
	rig_desc(r, DATA3, 0, UINT32_MAX, A_DATA | SEG_DB | SEG_G | A_DPL(3));
	rig_desc(r, CODE0_64, 0, UINT32_MAX, A_CODE | SEG_L | SEG_G);
	rig_desc(r, CODE3_64, 0, UINT32_MAX, A_CODE | SEG_L | SEG_G | A_DPL(3));
	rig_desc(r, TSS_SEL, TSS, 0x1ff, SEG_P | tss_type);
	rig_desc(r, LDT_SEL, LDT, 0xff, SEG_P | 2);
	rig_desc(r, CODE0_16, 0, 0xffff, A_CODE);
	rig_desc(r, DATA0_16, 0, 0xffff, A_DATA);
	rig_desc(r, CONF0, 0, UINT32_MAX, A_CODE | 4 | SEG_DB | SEG_G);
	s->gdt = (struct cpu_dtr){.base = GDT, .limit = 0xfff};
	s->idt = (struct cpu_dtr){.base = IDT, .limit = 0xfff};
	s->tr = (struct cpu_seg){.sel = TSS_SEL, .base = TSS, .limit = 0x1ff, .attr = SEG_P | tss_type | 2};
	s->ldt = (struct cpu_seg){.sel = LDT_SEL, .base = LDT, .limit = 0xff, .attr = SEG_P | 2};
	s->cr0 = CR0_PE | CR0_ET | CR0_NE;
	s->rflags = FL_FIXED;
	s->rip = CODE;
}

static struct cpu_seg flat(uint16_t sel, uint32_t attr)
{
	return (struct cpu_seg){.sel = sel, .limit = UINT32_MAX, .attr = attr};
}

static void data_segments(struct rig *r, unsigned cpl)
{
	uint16_t sel = cpl == 3 ? DATA3 : DATA0 | cpl;

	for (unsigned i = 0; i < SEG_COUNT; i++) {
		if (i != SEG_CS)
			r->v.s.seg[i] = flat(sel, A_DATA | SEG_DB | SEG_G | A_DPL(cpl));
	}
	r->v.s.gpr[R_SP] = cpl ? STACK3 : STACK0;
}

void rig_real(struct rig *r)
{
	cpu_state_reset(&r->v.s, 0);
	r->v.s.seg[SEG_CS] = (struct cpu_seg){.sel = CODE >> 4, .base = CODE, .limit = 0xffff, .attr = A_CODE};
	r->v.s.rip = 0;
	r->v.s.gpr[R_SP] = STACK0;
	r->v.s.idt.limit = 0x3ff;
}

void rig_prot(struct rig *r, unsigned cpl)
{
	cpu_state_reset(&r->v.s, 0);
	standard_tables(r, 9);
	data_segments(r, cpl);
	r->v.s.seg[SEG_CS] = flat(cpl == 3 ? CODE3 : CODE0 | cpl, A_CODE | SEG_DB | SEG_G | A_DPL(cpl));
	put_le32(rig_mem(r, TSS + 4), STACK0);
	put_le16(rig_mem(r, TSS + 8), DATA0);
}

void rig_long(struct rig *r, unsigned cpl)
{
	cpu_state_reset(&r->v.s, 0);
	standard_tables(r, 9);
	data_segments(r, cpl);
	r->v.s.cr0 |= CR0_PG;
	r->v.s.cr4 = CR4_PAE;
	r->v.s.efer = EFER_LME | EFER_LMA | EFER_SCE;
	r->v.s.seg[SEG_CS] = flat(cpl ? CODE3_64 : CODE0_64, A_CODE | SEG_L | SEG_G | A_DPL(cpl));
	put_le64(rig_mem(r, TSS + 4), STACK0);
}

void rig_v86(struct rig *r, unsigned level)
{
	rig_prot(r, 3);
	r->v.s.rflags |= FL_VM | (uint64_t)level << FL_IOPL_SHIFT;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		r->v.s.seg[i] =
			(struct cpu_seg){.sel = 0x100 + i, .base = 0x1000 + 16 * i, .limit = 0xffff, .attr = 0xf3};
	r->v.s.seg[SEG_CS] = (struct cpu_seg){.sel = CODE >> 4, .base = CODE, .limit = 0xffff, .attr = 0xf3};
	r->v.s.rip = 0;
	r->v.s.gpr[R_SP] = 0x7000;
}

bool rig_run(struct rig *r, const uint8_t *bytes, unsigned len)
{
	assert_int_equal(insn_decode(bytes, len, vcpu_mode(&r->v), &r->in), DECODE_OK);
	assert_int_equal(r->in.len, len);
	return interp_exec(&r->v, &r->in);
}

/* xorshift64*: the same sequence in every run */
uint64_t rnd(void)
{
	static uint64_t x = 0x9e3779b97f4a7c15;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	return x * 0x2545f4914f6cdd1d;
}

void host_run(const uint8_t *bytes, unsigned len, struct host_regs *h)
{
	uint8_t *code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t flags = h->rflags | FL_FIXED | FL_IF;

	assert_ptr_not_equal(code, MAP_FAILED);
	memcpy(code, bytes, len);
	code[len] = 0xc3;
	__asm__ volatile("sub $128, %%rsp; push %[f]; popf; call *%[code]; pushf; pop %[f]; cld; add $128, %%rsp"
			 : "+a"(h->rax), "+c"(h->rcx), "+d"(h->rdx), "+S"(h->rsi), "+D"(h->rdi), [f] "+r"(flags)
			 : [code] "r"(code)
			 : "memory", "cc", "r8", "r9", "r10", "r11");
	h->rflags = flags;
	munmap(code, PAGE_SIZE);
}

void rig_xstate(struct rig *r, const uint8_t *area, uint64_t xcr0, uint8_t *out)
{
	uint64_t bv = get_le64(area + 512);

	memset(out, 0, XSAVE_AREA_SIZE);
	put_le16(out, 0x37f);
	if (bv & 1) {
		memcpy(out, area, 24);
		memcpy(out + 32, area + 32, 128);
		memset(out + 8, 0, 16);
	}
	memcpy(out + 24, area + 24, 4);
	if (bv & 2)
		memcpy(out + 160, area + 160, 256);
	for (unsigned i = 2; xcr0 >> i; i++) {
		unsigned size, off = xs_offset(&r->v, i, &size);

		if ((xcr0 & bv & BIT(i)) && size)
			memcpy(out + off, area + off, size);
	}
}
