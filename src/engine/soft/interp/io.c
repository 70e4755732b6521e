/* Port I/O: IN, OUT, INS, OUTS, with IOPL and the TSS bitmap (SDM vol. 1, 19.5). Devices run under the machine lock. */
#include "engine/soft/interp/interp_int.h"

#define IO_CHUNK 1024 /* elements of REP INS/OUTS before interrupts are looked at */

static bool bitmap_allows(struct vcpu *v, uint16_t port, unsigned size)
{
	const struct cpu_seg *tr = &v->s.tr;
	uint8_t base_raw[2], bits_raw[2];
	uint32_t at;

	if ((tr->attr & SEG_UNUSABLE) || !(tr->attr & SEG_P) || (tr->attr & 0xd) != 9 || tr->limit < 103)
		return vcpu_raise_gp(v, 0);
	if (!sys_read(v, tr->base + 102, base_raw, 2))
		return false;
	at = get_le16(base_raw) + port / 8u;
	if (at + 1 > tr->limit)
		return vcpu_raise_gp(v, 0);
	if (!sys_read(v, tr->base + at, bits_raw, 2))
		return false;
	return !((get_le16(bits_raw) >> (port & 7)) & ((1u << size) - 1)) || vcpu_raise_gp(v, 0);
}

static bool io_allowed(struct vcpu *v, uint16_t port, unsigned size)
{
	if (cpu_is_real(&v->s) || (!cpu_is_v86(&v->s) && cpu_cpl(&v->s) <= iopl(v)))
		return true;
	return bitmap_allows(v, port, size);
}

static uint64_t io_read(struct vcpu *v, uint16_t port, unsigned size)
{
	uint64_t value;

	machine_lock(v);
	value = bus_read(v->cfg->bus, BUS_PIO, port, size);
	machine_unlock(v);
	return value;
}

static void io_write(struct vcpu *v, uint16_t port, unsigned size, uint64_t value)
{
	machine_lock(v);
	bus_write(v->cfg->bus, BUS_PIO, port, size, value);
	machine_unlock(v);
}

static unsigned io_size(const struct insn *in) { return !(in->op & 1) ? 1 : in->osz == 2 ? 2 : 4; }

ROUTINE(in)
{
	uint16_t port = in->kind == INSN_IN_IMM ? in->imm & 0xff : v->s.gpr[R_DX];
	unsigned size = io_size(in);

	if (!io_allowed(v, port, size))
		return false;
	gpr_set(v, R_AX, size, io_read(v, port, size));
	return retire(v, in);
}

ROUTINE(out)
{
	uint16_t port = in->kind == INSN_OUT_IMM ? in->imm & 0xff : v->s.gpr[R_DX];
	unsigned size = io_size(in);

	if (!io_allowed(v, port, size))
		return false;
	io_write(v, port, size, gpr_get(v, R_AX, size));
	return retire(v, in);
}

static bool one_in(struct vcpu *v, const struct insn *in, unsigned size)
{
	uint16_t port = v->s.gpr[R_DX];
	gva_t la;

	/* The port must not be read when the store would fault. */
	if (!seg_linear(v, SEG_ES, gpr_get(v, R_DI, in->asz), size, true, &la) || !mmu_probe_write(v, la, size, 0))
		return false;
	return mem_write(v, la, size, io_read(v, port, size), MMU_WRITE);
}

static bool one_out(struct vcpu *v, const struct insn *in, unsigned size)
{
	unsigned seg = in->seg_override ? in->seg : SEG_DS;
	uint64_t value;
	gva_t la;

	if (!seg_linear(v, seg, gpr_get(v, R_SI, in->asz), size, false, &la) ||
	    !mem_read(v, la, size, &value, MMU_READ))
		return false;
	io_write(v, v->s.gpr[R_DX], size, value);
	return true;
}

static bool io_string(struct vcpu *v, const struct insn *in, bool input)
{
	unsigned size = io_size(in), index = input ? R_DI : R_SI;
	int64_t step = (v->s.rflags & FL_DF) ? -(int64_t)size : size;
	uint64_t count = in->rep ? gpr_get(v, R_CX, in->asz) : 1;
	unsigned budget = (v->s.rflags & FL_TF) ? 1 : IO_CHUNK;

	if (!io_allowed(v, v->s.gpr[R_DX], size))
		return false;
	for (; count && budget; budget--) {
		if (!(input ? one_in(v, in, size) : one_out(v, in, size)))
			return false;
		gpr_set(v, index, in->asz, v->s.gpr[index] + step);
		count--;
		if (in->rep)
			gpr_set(v, R_CX, in->asz, count);
	}
	return count ? true : retire(v, in);
}

ROUTINE(ins) { return io_string(v, in, true); }
ROUTINE(outs) { return io_string(v, in, false); }
