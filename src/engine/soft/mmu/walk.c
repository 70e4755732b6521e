/*
 * Guest page-table walk (SDM vol. 3, 4.3-4.7): none, 32-bit, PAE, 4-level.
 */
#include "engine/soft/mmu/mmu.h"
#include "engine/soft/soft_int.h"

#define PTE_P BIT(0)
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_A BIT(5)
#define PTE_D BIT(6)
#define PTE_PS BIT(7)
#define PTE_G BIT(8)
#define PTE_NX BIT(63)

#define MAX_TRIES 100 /* of a walk whose entries others keep changing */

struct walk_ctx {
	struct vcpu *v;
	gva_t la;
	unsigned flags;
	bool user_access;
	uint64_t *pte64;   /* host address of the leaf */
	bool again;
	uint64_t rsvd;     /* reserved bits of an 8-byte entry */
};

static bool fault(const struct walk_ctx *c, uint32_t error)
{
	struct vcpu *v = c->v;

	if (c->flags & MMU_WRITE)
		error |= PF_W;
	if (c->user_access)
		error |= PF_U;
	if ((c->flags & MMU_FETCH) && ((v->s.efer & EFER_NXE) || (v->s.cr4 & CR4_SMEP)))
		error |= PF_I;
	return vcpu_raise_pf(v, c->la, error);
}

/* An entry outside RAM reads as all ones on the bus: present with reserved bits set. */
static uint64_t *entry64(const struct walk_ctx *c, gpa_t gpa)
{
	return ram_ptr(c->v->cfg->ram, gpa, 8);
}

/* Accessed and dirty bits. False: another processor has changed the entry since it was read, and the walk begins anew. */
static bool set_bits64(uint64_t *p, uint64_t *e, uint64_t bits)
{
	uint64_t want = *e | bits;

	return want == *e || (__atomic_compare_exchange_n(p, e, want, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) && (*e = want));
}

static bool set_bits32(uint32_t *p, uint32_t *e, uint32_t bits)
{
	uint32_t want = *e | bits;

	return want == *e || (__atomic_compare_exchange_n(p, e, want, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) && (*e = want));
}

static bool again(struct walk_ctx *c)
{
	c->again = true;
	return false;
}

/* Permission check on the combined rights of all levels. */
static bool check_rights(struct walk_ctx *c, bool w, bool u, bool nx, struct walk *out)
{
	const struct cpu_state *s = &c->v->s;
	bool write_ok;

	if (c->user_access) {
		if (!u)
			return fault(c, PF_P);
		write_ok = w;
	} else {
		write_ok = w || !(s->cr0 & CR0_WP);
		if (u && (c->flags & MMU_FETCH) && (s->cr4 & CR4_SMEP))
			return fault(c, PF_P);
		if (u && !(c->flags & MMU_FETCH) && (s->cr4 & CR4_SMAP) && ((c->flags & MMU_SYSTEM) || !(s->rflags & FL_AC)))
			return fault(c, PF_P);
	}
	if ((c->flags & MMU_WRITE) && !write_ok)
		return fault(c, PF_P);
	if ((c->flags & MMU_FETCH) && nx)
		return fault(c, PF_P);
	out->writable = write_ok;
	out->user = u;
	return true;
}

static bool walk_long(struct walk_ctx *c, struct walk *out)
{
	struct vcpu *v = c->v;
	const struct cpu_state *s = &v->s;
	uint64_t phys = ((BIT(v->cfg->cpuid->phys_bits) - 1) & ~(PAGE_SIZE - 1));
	uint64_t rsvd = ~phys & (BIT(52) - 1) & ~(PAGE_SIZE - 1);
	bool nxe = s->efer & EFER_NXE, pae = !(s->efer & EFER_LMA);
	bool w = true, u = true, nx = false;
	uint64_t table, e;
	int shift;

	if (!nxe)
		rsvd |= PTE_NX;
	if (pae) {
		/* PAE: the four PDPTEs are registers; only bits P and address count here (SDM vol. 3, 4.4.1) */
		uint64_t pdpte = s->pdpte[(c->la >> 30) & 3];

		if (!(pdpte & PTE_P))
			return fault(c, 0);
		table = pdpte & phys;
		shift = 21;
		rsvd |= ((BIT(63) - 1) & ~(BIT(52) - 1));
	} else {
		table = s->cr3 & phys;
		shift = 39;
	}
	for (;; shift -= 9) {
		uint64_t *p = entry64(c, table + ((c->la >> shift) & 511) * 8);
		bool leaf;

		e = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : ~UINT64_C(0);
		if (!(e & PTE_P))
			return fault(c, 0);
		leaf = shift == 12 || ((e & PTE_PS) && shift <= 30);
		if (e & rsvd)
			return fault(c, PF_P | PF_RSVD);
		if (shift == 39 && (e & PTE_PS))
			return fault(c, PF_P | PF_RSVD);
		if (shift == 30 && leaf && !cpuid_has(v->cfg->cpuid, 0x80000001, 0, CPUID_EDX, 26))
			return fault(c, PF_P | PF_RSVD);
		if (leaf && shift > 12 && (e & ((BIT(shift) - 1) & ~(BIT(13) - 1))))
			return fault(c, PF_P | PF_RSVD);
		out->table_writable = w;
		out->table_user = u;
		w &= !!(e & PTE_W);
		u &= !!(e & PTE_U);
		nx |= nxe && (e & PTE_NX);
		if (!p)
			return fault(c, PF_P | PF_RSVD);
		if (leaf) {
			c->pte64 = p;
			break;
		}
		if (!set_bits64(p, &e, PTE_A))
			return again(c);
		table = e & phys;
	}
	if (!check_rights(c, w, u, nx, out))
		return false;
	if (!set_bits64(c->pte64, &e, PTE_A | ((c->flags & MMU_WRITE) ? PTE_D : 0)))
		return again(c);
	out->shift = (unsigned)shift;
	out->table = shift == 12 ? c->pte64 - ((c->la >> 12) & 511) : NULL;
	out->gpa = (e & phys & ~(BIT(shift) - 1)) | (c->la & (BIT(shift) - 1));
	out->dirty = e & PTE_D;
	out->global = (e & PTE_G) && (s->cr4 & CR4_PGE);
	return true;
}

static bool walk_32(struct walk_ctx *c, struct walk *out)
{
	const struct cpu_state *s = &c->v->s;
	struct ram *ram = c->v->cfg->ram;
	uint32_t *p, e;
	bool w, u;

	out->table = NULL;
	p = ram_ptr(ram, (s->cr3 & 0xfffff000) + ((c->la >> 22) & 1023) * 4, 4);
	e = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
	if (!(e & PTE_P))
		return fault(c, 0);
	w = e & PTE_W;
	u = e & PTE_U;
	out->shift = 12;
	if ((e & PTE_PS) && (s->cr4 & CR4_PSE)) {
		unsigned bits = c->v->cfg->cpuid->phys_bits;

		/* PSE-36: bits 13..20 are address bits 32..39 */
		if ((e & BIT(21)) || (bits < 40 && ((uint64_t)((e >> 13) & 0xff) >> (bits > 32 ? bits - 32 : 0))))
			return fault(c, PF_P | PF_RSVD);
		out->shift = 22;
	} else {
		if (!set_bits32(p, &e, PTE_A))
			return again(c);
		p = ram_ptr(ram, (e & 0xfffff000) + ((c->la >> 12) & 1023) * 4, 4);
		e = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;
		if (!(e & PTE_P))
			return fault(c, 0);
		w = w && (e & PTE_W);
		u = u && (e & PTE_U);
	}
	if (!check_rights(c, w, u, false, out))
		return false;
	if (!set_bits32(p, &e, PTE_A | ((c->flags & MMU_WRITE) ? PTE_D : 0)))
		return again(c);
	if (out->shift == 22)
		out->gpa = ((e & 0xffc00000) | ((uint64_t)((e >> 13) & 0xff) << 32)) + (c->la & 0x3fffff);
	else
		out->gpa = (e & 0xfffff000) | (c->la & 0xfff);
	out->dirty = e & PTE_D;
	out->global = (e & PTE_G) && (s->cr4 & CR4_PGE);
	return true;
}

bool mmu_walk(struct vcpu *v, gva_t la, unsigned flags, struct walk *w)
{
	struct walk_ctx c = {
		.v = v,
		.la = la,
		.flags = flags,
		.user_access = (flags & MMU_USER) || (!(flags & MMU_SYSTEM) && cpu_cpl(&v->s) == 3),
	};

	if (!(v->s.cr0 & CR0_PG)) {
		*w = (struct walk){.gpa = la & 0xffffffff, .shift = 30, .writable = true, .dirty = true, .user = true};
		return true;
	}
	for (unsigned tries = 0; tries < MAX_TRIES; tries++) {
		c.again = false;
		if ((v->s.cr4 & CR4_PAE) ? walk_long(&c, w) : walk_32(&c, w))
			return true;
		if (!c.again)
			return false;
	}
	return fault(&c, 0); /* who is faulted for nothing tries again */
}
