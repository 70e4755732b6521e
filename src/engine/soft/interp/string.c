/*
 * String instructions (SDM vol. 1, 7.3.9; vol. 2: REP). Elements are done one by one in the architectural order; where
 * a run of them lies in one page of RAM on each side it is done on host memory at once, with the same result, overlaps
 * included.
 */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

/* One memory side of a string instruction. */
struct side {
	unsigned seg, reg;
	bool write;
	uint64_t off; /* of the first element */
	gva_t la;     /* linear address of the first element */
};

struct str {
	unsigned size, asz;
	bool down, rep, repe;
};

static struct str str_of(const struct vcpu *v, const struct insn *in)
{
	return (struct str){.size = (in->op & 1) ? in->osz : 1,
			    .asz = in->asz,
			    .down = v->s.rflags & FL_DF,
			    .rep = in->rep,
			    .repe = in->rep == 0xf3};
}

static struct side source(const struct insn *in)
{
	return (struct side){.seg = in->seg_override ? in->seg : SEG_DS, .reg = R_SI};
}

static void advance(struct vcpu *v, const struct str *st, unsigned reg, uint64_t n)
{
	uint64_t bytes = n * st->size;

	gpr_set(v, reg, st->asz, st->down ? v->s.gpr[reg] - bytes : v->s.gpr[reg] + bytes);
}

/* Elements, from the first, that neither leave la's page nor wrap the address size. 0: the first one itself crosses. */
static uint64_t run_in_page(const struct str *st, const struct side *s)
{
	uint64_t in_page = s->la & (PAGE_SIZE - 1),
		 room = mask_bytes(st->asz) - s->off; /* room: bytes after the first one */

	if (in_page + st->size > PAGE_SIZE || room < st->size - 1)
		return 0;
	if (st->down)
		return min_u64(in_page, s->off) / st->size + 1;
	return min_u64(PAGE_SIZE - in_page - 1, room) / st->size +
	       ((min_u64(PAGE_SIZE - in_page - 1, room) % st->size) == st->size - 1);
}

/* Check the first element (may fault) and cut *n to what one host pointer can serve; *n = 0: do one by
 * mmu_read/mmu_write. */
static bool side_run(struct vcpu *v, const struct str *st, struct side *s, uint64_t *n)
{
	uint64_t run;

	s->off = gpr_get(v, s->reg, st->asz);
	if (!seg_linear(v, s->seg, s->off, st->size, s->write, &s->la))
		return false;
	run = min_u64(run_in_page(st, s), *n);
	if (run > 1) {
		uint64_t low = st->down ? s->off - (run - 1) * st->size : s->off;
		gva_t unused;

		/* The end of the segment lies within: go one by one up to it. */
		if (!seg_linear(v, s->seg, low, run * st->size, s->write, &unused))
			run = 0;
	}
	*n = run > 1 ? run : 0;
	return true;
}

/* Host address of the lowest byte of a run of n elements; NULL: not plain RAM. */
static bool host_run(struct vcpu *v, const struct str *st, const struct side *s, uint64_t n, uint8_t **host)
{
	gva_t low = st->down ? s->la - (n - 1) * st->size : s->la;
	void *p;

	if (!mmu_host_ptr(v, low, s->write ? MMU_WRITE : MMU_READ, &p))
		return false;
	*host = p;
	return true;
}

/* Copy n elements in order; bytes that the copy itself wrote are read again, as the CPU does. */
static void copy_run(uint8_t *dst, const uint8_t *src, uint64_t n, const struct str *st)
{
	uint64_t bytes = n * st->size;
	bool feeds = st->down ? dst < src && src < dst + bytes : dst > src && dst < src + bytes;

	if (!feeds) {
		memmove(dst, src, bytes);
		return;
	}
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = (st->down ? n - 1 - i : i) * st->size, tmp;

		memcpy(&tmp, src + at, st->size);
		memcpy(dst + at, &tmp, st->size);
	}
}

static void fill_run(uint8_t *dst, uint64_t value, uint64_t n, unsigned size)
{
	if (size == 1) {
		memset(dst, (int)(value & 0xff), n);
		return;
	}
	for (uint64_t i = 0; i < n; i++)
		memcpy(dst + i * size, &value, size);
}

/* A step does 1..max elements and says how many, or faults and does none. *stop: REPE's or REPNE's condition ended it. */
typedef bool step_fn(struct vcpu *v, const struct insn *in, const struct str *st, uint64_t max, uint64_t *done,
		     bool *stop);

/* The source is read before the destination's address is looked at: its fault comes first. */
static bool both_sides(struct vcpu *v, const struct str *st, struct side *src, struct side *dst, uint64_t *n)
{
	struct vcpu_exc exc;
	uint64_t value;

	if (!side_run(v, st, src, n))
		return false;
	if (side_run(v, st, dst, n))
		return true;
	exc = v->exc;
	if (mem_read(v, src->la, st->size, &value, MMU_READ))
		v->exc = exc;
	return false;
}

static bool movs_step(struct vcpu *v, const struct insn *in, const struct str *st, uint64_t max, uint64_t *done,
		      bool *stop)
{
	struct side src = source(in), dst = {.seg = SEG_ES, .reg = R_DI, .write = true};
	uint8_t *from = NULL, *to = NULL;
	uint64_t n = max, value;

	if (!both_sides(v, st, &src, &dst, &n))
		return false;
	if (n && (!host_run(v, st, &src, n, &from) || !host_run(v, st, &dst, n, &to)))
		n = 0; /* a fault within the first page: the element-wise path below meets it in order */
	if (n && from && to) {
		copy_run(to, from, n, st);
		mmu_host_wrote(v, to, (unsigned)(n * st->size));
	} else {
		n = 1;
		if (!mem_read(v, src.la, st->size, &value, MMU_READ) ||
		    !mem_write(v, dst.la, st->size, value, MMU_WRITE))
			return false;
	}
	advance(v, st, R_SI, n);
	advance(v, st, R_DI, n);
	*done = n;
	return true;
}

static bool stos_step(struct vcpu *v, const struct insn *in, const struct str *st, uint64_t max, uint64_t *done,
		      bool *stop)
{
	struct side dst = {.seg = SEG_ES, .reg = R_DI, .write = true};
	uint8_t *to = NULL;
	uint64_t n = max;

	if (!side_run(v, st, &dst, &n))
		return false;
	if (n && !host_run(v, st, &dst, n, &to))
		n = 0; /* as for MOVS: the fault is the first element's, with its own address */
	if (n && to) {
		fill_run(to, v->s.gpr[R_AX], n, st->size);
		mmu_host_wrote(v, to, (unsigned)(n * st->size));
	} else {
		n = 1;
		if (!mem_write(v, dst.la, st->size, v->s.gpr[R_AX], MMU_WRITE))
			return false;
	}
	advance(v, st, R_DI, n);
	*done = n;
	return true;
}

static bool lods_step(struct vcpu *v, const struct insn *in, const struct str *st, uint64_t max, uint64_t *done,
		      bool *stop)
{
	struct side src = source(in);
	uint64_t n = 0, value;

	if (!side_run(v, st, &src, &n) || !mem_read(v, src.la, st->size, &value, MMU_READ))
		return false;
	gpr_set(v, R_AX, st->size, value);
	advance(v, st, R_SI, 1);
	*done = 1;
	return true;
}

static void sub_flags(struct vcpu *v, uint64_t a, uint64_t b, unsigned size)
{
	uint64_t mask = mask_bytes(size), r = (a - b) & mask, sign = BIT(8 * size - 1), f = 0;

	if (a < b)
		f |= FL_CF;
	if (!__builtin_parityll(r & 0xff))
		f |= FL_PF;
	f |= (a ^ b ^ r) & FL_AF;
	if (!r)
		f |= FL_ZF;
	if (r & sign)
		f |= FL_SF;
	if ((a ^ b) & (a ^ r) & sign)
		f |= FL_OF;
	v->s.rflags = (v->s.rflags & ~FL_ARITH) | f;
}

static uint64_t load(const uint8_t *p, unsigned size)
{
	uint64_t value = 0;

	memcpy(&value, p, size);
	return value;
}

/* Compare a run; b NULL compares with value. Returns how many elements were looked at. */
static uint64_t compare_run(struct vcpu *v, const uint8_t *a, const uint8_t *b, uint64_t value, uint64_t n,
			    const struct str *st, bool *stop)
{
	uint64_t x = 0, y = value, i = 0;

	while (i < n) {
		uint64_t at = (st->down ? n - 1 - i : i) * st->size;

		x = a ? load(a + at, st->size) : value;
		y = load(b + at, st->size);
		i++;
		if ((x == y) != st->repe) {
			*stop = true;
			break;
		}
	}
	sub_flags(v, x, y, st->size);
	return i;
}

static bool cmps_step(struct vcpu *v, const struct insn *in, const struct str *st, uint64_t max, uint64_t *done,
		      bool *stop)
{
	struct side src = source(in), dst = {.seg = SEG_ES, .reg = R_DI};
	uint8_t *a = NULL, *b = NULL;
	uint64_t n = max, x, y;

	if (!both_sides(v, st, &src, &dst, &n))
		return false;
	if (n && (!host_run(v, st, &src, n, &a) || !host_run(v, st, &dst, n, &b)))
		n = 0;
	if (n && a && b) {
		n = compare_run(v, a, b, 0, n, st, stop);
	} else {
		n = 1;
		if (!mem_read(v, src.la, st->size, &x, MMU_READ) || !mem_read(v, dst.la, st->size, &y, MMU_READ))
			return false;
		sub_flags(v, x, y, st->size);
		*stop = (x == y) != st->repe;
	}
	advance(v, st, R_SI, n);
	advance(v, st, R_DI, n);
	*done = n;
	return true;
}

static bool scas_step(struct vcpu *v, const struct insn *in, const struct str *st, uint64_t max, uint64_t *done,
		      bool *stop)
{
	struct side dst = {.seg = SEG_ES, .reg = R_DI};
	uint64_t n = max, x = gpr_get(v, R_AX, st->size), y;
	uint8_t *b = NULL;

	if (!side_run(v, st, &dst, &n))
		return false;
	if (n && !host_run(v, st, &dst, n, &b))
		n = 0;
	if (n && b) {
		n = compare_run(v, NULL, b, x, n, st, stop);
	} else {
		n = 1;
		if (!mem_read(v, dst.la, st->size, &y, MMU_READ))
			return false;
		sub_flags(v, x, y, st->size);
		*stop = (x == y) != st->repe;
	}
	advance(v, st, R_DI, n);
	*done = n;
	return true;
}

static bool run(struct vcpu *v, const struct insn *in, step_fn *step)
{
	struct str st = str_of(v, in);
	uint64_t budget = (v->s.rflags & FL_TF) ? 1 : INTERP_CHUNK / st.size, count = gpr_get(v, R_CX, in->asz), n = 0;
	bool stop = false;

	if (!st.rep)
		return step(v, in, &st, 1, &n, &stop) && retire(v, in);
	while (count && budget && !stop) {
		if (!step(v, in, &st, min_u64(count, budget), &n, &stop))
			return false;
		count -= n;
		budget -= n;
		gpr_set(v, R_CX, in->asz, count);
	}
	return count && !stop ? true : retire(v, in);
}

ROUTINE(movs) { return run(v, in, movs_step); }
ROUTINE(stos) { return run(v, in, stos_step); }
ROUTINE(lods) { return run(v, in, lods_step); }
ROUTINE(cmps) { return run(v, in, cmps_step); }
ROUTINE(scas) { return run(v, in, scas_step); }

ROUTINE(xlat)
{
	unsigned seg = in->seg_override ? in->seg : SEG_DS;
	uint64_t off = (v->s.gpr[R_BX] + (v->s.gpr[R_AX] & 0xff)) & mask_bytes(in->asz), value;
	gva_t la;

	if (!seg_linear(v, seg, off, 1, false, &la) || !mem_read(v, la, 1, &value, MMU_READ))
		return false;
	gpr_set(v, R_AX, 1, value);
	return retire(v, in);
}
