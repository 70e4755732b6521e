#include "zydis_compare.h"

#include <Zydis/Zydis.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/soft/translate/decode.h"

struct ctx {
	const uint8_t *bytes;
	enum insn_cpu_mode mode;
	struct insn in;
	enum decode_result res;
	ZydisDecodedInstruction z;
	ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
	bool zok;
	char *why;
	size_t why_size;
	bool bad;
};

__attribute__((format(printf, 2, 3))) static void differ(struct ctx *c, const char *fmt, ...)
{
	size_t n = strlen(c->why);
	va_list ap;

	c->bad = true;
	va_start(ap, fmt);
	vsnprintf(c->why + n, c->why_size - n, fmt, ap);
	va_end(ap);
}

static void init_decoder(ZydisDecoder *d, enum insn_cpu_mode mode)
{
	static const ZydisMachineMode modes[] = {
		ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_MACHINE_MODE_LONG_64,
	};
	static const ZydisStackWidth stacks[] = {ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32, ZYDIS_STACK_WIDTH_64};

	ZydisDecoderInit(d, modes[mode], stacks[mode]);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
}

/* Instruction sets that Zydis knows and doppel's guests never see: CPUID hides them, so they are #UD. */
static bool hidden_set(ZydisISASet set)
{
	static const ZydisISASet hidden[] = {
		ZYDIS_ISA_SET_AMD3DNOW,
		ZYDIS_ISA_SET_AMD_INVLPGB,
		ZYDIS_ISA_SET_AMX_BF16,
		ZYDIS_ISA_SET_AMX_INT8,
		ZYDIS_ISA_SET_AMX_TILE,
		ZYDIS_ISA_SET_AVX512ER_512,
		ZYDIS_ISA_SET_AVX512ER_SCALAR,
		ZYDIS_ISA_SET_AVX512PF_512,
		ZYDIS_ISA_SET_AVX512_4FMAPS_512,
		ZYDIS_ISA_SET_AVX512_4FMAPS_SCALAR,
		ZYDIS_ISA_SET_AVX512_4VNNIW_512,
		ZYDIS_ISA_SET_CET,
		ZYDIS_ISA_SET_ENQCMD,
		ZYDIS_ISA_SET_FMA4,
		ZYDIS_ISA_SET_XOP,
		ZYDIS_ISA_SET_LWP,
		ZYDIS_ISA_SET_TBM,
		ZYDIS_ISA_SET_HRESET,
		ZYDIS_ISA_SET_KEYLOCKER,
		ZYDIS_ISA_SET_KEYLOCKER_WIDE,
		ZYDIS_ISA_SET_KNCE,
		ZYDIS_ISA_SET_KNCJKBR,
		ZYDIS_ISA_SET_KNCSTREAM,
		ZYDIS_ISA_SET_KNCV,
		ZYDIS_ISA_SET_KNC_MISC,
		ZYDIS_ISA_SET_KNC_PF_HINT,
		ZYDIS_ISA_SET_MCOMMIT,
		ZYDIS_ISA_SET_MONITORX,
		ZYDIS_ISA_SET_MPX,
		ZYDIS_ISA_SET_PADLOCK_ACE,
		ZYDIS_ISA_SET_PADLOCK_PHE,
		ZYDIS_ISA_SET_PADLOCK_PMM,
		ZYDIS_ISA_SET_PADLOCK_RNG,
		ZYDIS_ISA_SET_PCONFIG,
		ZYDIS_ISA_SET_PT,
		ZYDIS_ISA_SET_RDPRU,
		ZYDIS_ISA_SET_RTM,
		ZYDIS_ISA_SET_SERIALIZE,
		ZYDIS_ISA_SET_SGX,
		ZYDIS_ISA_SET_SGX_ENCLV,
		ZYDIS_ISA_SET_SMX,
		ZYDIS_ISA_SET_SNP,
		ZYDIS_ISA_SET_TDX,
		ZYDIS_ISA_SET_TSX_LDTRK,
		ZYDIS_ISA_SET_UINTR,
		ZYDIS_ISA_SET_WAITPKG,
	};

	for (unsigned i = 0; i < ARRAY_LEN(hidden); i++)
		if (hidden[i] == set)
			return true;
	return false;
}

/* We say #UD, Zydis does not. */
static bool may_be_invalid(const struct ctx *c)
{
	/* Prefixes make it something else or #UD, as measured (66 CLZERO runs on AMD; nobody writes it). */
	if (c->z.mnemonic == ZYDIS_MNEMONIC_CLZERO)
		return c->in.opsize66 || c->in.rep;
	/* MOVDIR64B shares its set with MOVDIRI, which is a plain store. */
	return hidden_set(c->z.meta.isa_set) || c->z.mnemonic == ZYDIS_MNEMONIC_MOVDIR64B;
}

/* Zydis says #UD, we do not. */
static bool may_be_valid(const struct ctx *c)
{
	const struct insn *in = &c->in;

	/* SDM: "EVEX.W in non-64 bit is ignored" for conversions between FP16 and a GPR. */
	if (in->enc == ENC_EVEX && in->map == 5 && in->vex_w && c->mode != MODE_64)
		return in->op == 0x2a || in->op == 0x2c || in->op == 0x2d || in->op == 0x78 || in->op == 0x79 ||
		       in->op == 0x7b;
	/* SDM: rounding with a 32-bit integer source is ignored; and here W is. */
	if (in->enc == ENC_EVEX && in->map == 1 && in->pp == 3 && in->evex_b && (in->op == 0x2a || in->op == 0x7b))
		return in->mod == 3 && c->mode != MODE_64;
	/* VPERMQ, VPERMPD: AMD ignores W (measured); on Intel the host raises #UD. */
	return in->enc == ENC_VEX3 && in->map == 3 && in->op <= 0x01 && !in->vex_w;
}

/* Number of the GPR that a register is part of, or -1. */
static int gpr_number(ZydisRegister r)
{
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_GPR8:
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		break;
	default: return -1;
	}
	return ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r));
}

static unsigned action_bits(ZydisOperandActions a)
{
	return ((a & ZYDIS_OPERAND_ACTION_MASK_READ) ? REG_READ : 0) |
	       ((a & ZYDIS_OPERAND_ACTION_MASK_WRITE) ? REG_WRITE : 0);
}

static const ZydisDecodedOperand *find_operand(const struct ctx *c, ZydisOperandEncoding e1, ZydisOperandEncoding e2)
{
	for (unsigned i = 0; i < c->z.operand_count; i++)
		if (c->ops[i].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
		    (c->ops[i].encoding == e1 || c->ops[i].encoding == e2))
			return &c->ops[i];
	return NULL;
}

static void compare_gpr(struct ctx *c, const char *name, const ZydisDecodedOperand *o, unsigned use, unsigned number,
			bool high8)
{
	bool gpr = o && o->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_number(o->reg.value) >= 0;
	unsigned want = gpr ? action_bits(o->actions) : REG_NONE;

	/* BSF and BSR leave the destination alone when the source is 0. */
	if (c->z.mnemonic == ZYDIS_MNEMONIC_BSF || c->z.mnemonic == ZYDIS_MNEMONIC_BSR)
		want |= want & REG_WRITE ? REG_READ : 0;
	/* A conditional write keeps the old value at times. */
	if (use != want && !(gpr && (use & ~want) == REG_READ && (o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE)))
		differ(c, " %s_gpr %u/%u", name, use, want);
	if (!gpr || !use)
		return;
	bool zhigh = o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH;
	unsigned n = zhigh ? (unsigned)(o->reg.value - ZYDIS_REGISTER_AH) + 4 : (unsigned)gpr_number(o->reg.value);

	if (n != number || zhigh != high8)
		differ(c, " %s number %u/%u high %d/%d", name, number, n, high8, zhigh);
}

static void compare_registers(struct ctx *c)
{
	const struct insn *in = &c->in;

	/* Never copied, so their registers do not matter; the second is 0F 0D with a register. */
	if (in->kind == INSN_NOP || in->kind == INSN_UD || c->z.mnemonic == ZYDIS_MNEMONIC_NOP)
		return;
	compare_gpr(c, "reg", find_operand(c, ZYDIS_OPERAND_ENCODING_MODRM_REG, ZYDIS_OPERAND_ENCODING_MODRM_REG),
		    in->reg_gpr, in->reg, in->reg_high8);
	compare_gpr(c, "rm", find_operand(c, ZYDIS_OPERAND_ENCODING_MODRM_RM, ZYDIS_OPERAND_ENCODING_MODRM_RM),
		    in->rm_gpr, in->rm, in->rm_high8);
	compare_gpr(c, "vvvv", find_operand(c, ZYDIS_OPERAND_ENCODING_NDSNDD, ZYDIS_OPERAND_ENCODING_NDSNDD),
		    in->vvvv_gpr, in->vvvv, false);
	const ZydisDecodedOperand *o = find_operand(c, ZYDIS_OPERAND_ENCODING_OPCODE, ZYDIS_OPERAND_ENCODING_OPCODE);

	/* F3 90 with REX.B is XCHG (measured), not PAUSE. */
	if (c->z.mnemonic == ZYDIS_MNEMONIC_PAUSE && (in->rex & 1))
		return;
	if (in->opreg_gpr)
		compare_gpr(c, "opreg", o, in->opreg_gpr, in->opreg,
			o && o->reg.value >= ZYDIS_REGISTER_AH && o->reg.value <= ZYDIS_REGISTER_BH);
	else if (o && o->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_number(o->reg.value) >= 0)
		differ(c, " opreg missing");
}

static const ZydisDecodedOperand *memory_operand(const struct ctx *c)
{
	for (unsigned i = 0; i < c->z.operand_count; i++)
		if (c->ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    c->ops[i].visibility != ZYDIS_OPERAND_VISIBILITY_HIDDEN)
			return &c->ops[i];
	return NULL;
}

static bool implicit_memory(const struct ctx *c)
{
	switch (c->in.kind) {
	case INSN_MOVS:
	case INSN_STOS:
	case INSN_LODS:
	case INSN_SCAS:
	case INSN_CMPS:
	case INSN_INS:
	case INSN_OUTS:
	case INSN_XLAT:
	case INSN_MASKMOV: case INSN_CLZERO: case INSN_MONITOR:
		return true;
	default:
		return false;
	}
}

static bool kind_is_xsave(unsigned k) { return k >= INSN_XSAVE && k <= INSN_XRSTORS; }

static void compare_address(struct ctx *c, const ZydisDecodedOperand *o)
{
	const struct insn *in = &c->in;
	int base = gpr_number(o->mem.base), index;
	bool rip = o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP;
	unsigned scale = o->mem.scale;

	/* Zydis 4.0 takes REX.B for a base where there is none, in this one case (the CPU does not). */
	if (c->mode == MODE_64 && in->asz == 4 && in->mod == 0 && in->base < 0 && (in->modrm & 7) == 4 && base == 13)
		return;
	if (in->kind == INSN_VSIB)
		index = ZydisRegisterGetId(o->mem.index);
	else
		index = gpr_number(o->mem.index);
	if (index < 0 || !scale)
		scale = 1;
	if (base != in->base || rip != in->rip_rel || index != in->index || scale != in->scale)
		differ(c, " base %d/%d index %d/%d scale %u/%u rip %d/%d", in->base, base, in->index, index, in->scale,
		       scale, in->rip_rel, rip);
	int64_t disp = o->mem.disp.has_displacement ? o->mem.disp.value : 0;

	if ((disp ^ in->disp) & (int64_t)mask_bytes(in->asz))
		differ(c, " disp %#lx/%#lx", (long)in->disp, (long)disp);
	static const ZydisRegister segs[] = {
		ZYDIS_REGISTER_ES, ZYDIS_REGISTER_CS, ZYDIS_REGISTER_SS,
		ZYDIS_REGISTER_DS, ZYDIS_REGISTER_FS, ZYDIS_REGISTER_GS,
	};
	if (o->mem.type != ZYDIS_MEMOP_TYPE_AGEN && in->mem != MEM_ADDR && segs[in->seg] != o->mem.segment)
		differ(c, " seg %u/%s", in->seg, ZydisRegisterGetString(o->mem.segment));
}

static void compare_memory(struct ctx *c)
{
	const struct insn *in = &c->in;
	const ZydisDecodedOperand *o = memory_operand(c);
	unsigned want, have = in->mem == MEM_READ    ? REG_READ
			      : in->mem == MEM_WRITE ? REG_WRITE
			      : in->mem == MEM_RMW   ? REG_RW
						     : REG_NONE;

	if (implicit_memory(c))
		return;
	if (!o) {
		if (in->mem != MEM_NONE && in->mem != MEM_ADDR)
			differ(c, " mem %u/none", in->mem);
		return;
	}
	compare_address(c, o);
	if (in->kind == INSN_NOP || in->mem == MEM_ADDR)
		return;
	want = o->mem.type == ZYDIS_MEMOP_TYPE_AGEN ? REG_NONE : action_bits(o->actions);
	/* Masked extractions do not suppress faults: a read, and a write of everything. */
	if (in->mem == MEM_RMW && in->enc == ENC_EVEX && in->evex_aaa && !in->mem_masked)
		want |= REG_READ;
	if (have != want && !kind_is_xsave(in->kind) && in->kind != INSN_UD)
		differ(c, " mem action %u/%u", have, want);
	unsigned size = o->size / 8;

	if (c->z.avx.broadcast.mode && !c->z.avx.broadcast.is_static)
		size = o->element_size / 8;
	/* Zydis: the line that is flushed. Ours: the byte that is checked. */
	if (c->z.mnemonic == ZYDIS_MNEMONIC_CLFLUSH || c->z.mnemonic == ZYDIS_MNEMONIC_CLFLUSHOPT ||
	    c->z.mnemonic == ZYDIS_MNEMONIC_CLWB)
		size = 1;
	if (in->mem_size != size && !kind_is_xsave(in->kind) && in->kind != INSN_UD && in->kind != INSN_VSIB)
		differ(c, " mem size %u/%u", in->mem_size, size);
}

/*
 * Byte forms, those that only W widens (Zydis applies 66 and the mode to some; the CPU does not), port I/O (never 64
 * bits) and kinds without such an operand.
 */
static bool osz_is_ours(const struct ctx *c)
{
	if (c->z.operand_width == 8 || c->in.unit >= UNIT_MMX || c->in.enc != ENC_LEGACY)
		return true;
	if (c->z.mnemonic == ZYDIS_MNEMONIC_MOVNTI || c->z.mnemonic == ZYDIS_MNEMONIC_MOVDIRI)
		return true;
	switch (c->in.kind) {
	case INSN_RDFSBASE: case INSN_RDGSBASE: case INSN_WRFSBASE: case INSN_WRGSBASE: case INSN_RDPID:
	case INSN_INS: case INSN_OUTS: case INSN_NOP: case INSN_UD: case INSN_SYSCALL:
	case INSN_STR: case INSN_LTR: case INSN_LLDT: case INSN_VERR: case INSN_VERW:
		return true;
	default:
		return false;
	}
}

static void compare_raw(struct ctx *c)
{
	const struct insn *in = &c->in;
	const ZydisDecodedInstruction *z = &c->z;
	unsigned imm_len = (z->raw.imm[0].size + z->raw.imm[1].size) / 8;

	if (in->len != z->length)
		differ(c, " len %u/%u", in->len, z->length);
	if (in->disp_len != z->raw.disp.size / 8 || (in->disp_len && in->disp_off != z->raw.disp.offset))
		differ(c, " disp at %u+%u/%u+%u", in->disp_off, in->disp_len, z->raw.disp.offset, z->raw.disp.size / 8);
	if (in->imm_len != imm_len || (imm_len && in->imm_off != z->raw.imm[0].offset))
		differ(c, " imm at %u+%u/%u+%u", in->imm_off, in->imm_len, z->raw.imm[0].offset, imm_len);
	if (in->has_modrm != !!(z->attributes & ZYDIS_ATTRIB_HAS_MODRM))
		differ(c, " modrm %d", in->has_modrm);
	else if (in->has_modrm && in->modrm_off != z->raw.modrm.offset)
		differ(c, " modrm at %u/%u", in->modrm_off, z->raw.modrm.offset);
	if (in->op != z->opcode || c->bytes[in->op_off] != in->op || in->map != (unsigned)z->opcode_map)
		differ(c, " opcode %u:%02x/%u:%02x", in->map, in->op, z->opcode_map, z->opcode);
	if (imm_len) {
		uint64_t v = z->raw.imm[0].value.u, mask = mask_bytes(z->raw.imm[0].size / 8);

		if ((v ^ (uint64_t)in->imm) & mask)
			differ(c, " imm %#lx/%#lx", (long)in->imm, (long)v);
	}
	if (in->osz * 8 != z->operand_width && !osz_is_ours(c))
		differ(c, " osz %u/%u", in->osz * 8, z->operand_width);
	if (in->asz * 8 != z->address_width)
		differ(c, " asz %u/%u", in->asz * 8, z->address_width);
	if (in->has_vvvv != (find_operand(c, ZYDIS_OPERAND_ENCODING_NDSNDD, ZYDIS_OPERAND_ENCODING_NDSNDD) != NULL) &&
	    in->kind != INSN_VSIB)
		differ(c, " vvvv %d", in->has_vvvv);
}

/* Kinds that enter an exception or another privilege level: what they do to the flags is the interpreter routine's
 * matter. */
static bool flags_are_ours(const struct ctx *c)
{
	switch (c->in.kind) {
	case INSN_INT:
	case INSN_INT3:
	case INSN_INT1:
	case INSN_INTO:
	case INSN_SYSCALL:
	case INSN_VMCALL:
	case INSN_VMMCALL:
	case INSN_UD:
		return true;
	default:
		return false;
	}
}

static void compare_flags(struct ctx *c)
{
	const struct insn *in = &c->in;
	const ZydisAccessedFlags *f = c->z.cpu_flags;
	unsigned tested = f ? f->tested & FL_ARITH : 0;
	unsigned written = f ? (f->modified | f->set_0 | f->set_1 | f->undefined) & FL_ARITH : 0;

	if (flags_are_ours(c)) {
		if (tested & ~in->flags_read)
			differ(c, " flags read %#x/%#x", in->flags_read, tested);
		return;
	}
	switch (c->z.mnemonic) {
	case ZYDIS_MNEMONIC_VPTEST: case ZYDIS_MNEMONIC_VTESTPS: case ZYDIS_MNEMONIC_VTESTPD:
		written = FL_ARITH; /* the others are cleared, as by PTEST */
		break;
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
	case ZYDIS_MNEMONIC_RCL:
	case ZYDIS_MNEMONIC_RCR:
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR: case ZYDIS_MNEMONIC_SAR: case ZYDIS_MNEMONIC_SHLD: case ZYDIS_MNEMONIC_SHRD:
		if (in->imm_len && !(in->imm & (in->osz == 8 && c->z.operand_width == 64 ? 63 : 31)))
			tested = written = 0; /* a count of 0 */
		break;
	default: break;
	}
	/* Flags that may stay as they were count as read. */
	if ((tested & ~in->flags_read) || (in->flags_read & ~tested & ~in->flags_written))
		differ(c, " flags read %#x/%#x", in->flags_read, tested);
	if (in->flags_written != written)
		differ(c, " flags written %#x/%#x", in->flags_written, written);
}

static bool has_register(const struct ctx *c, ZydisRegisterClass class)
{
	for (unsigned i = 0; i < c->z.operand_count; i++)
		if (c->ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
		    ZydisRegisterGetClass(c->ops[i].reg.value) == class)
			return true;
	return false;
}

/* The state an instruction of the SSE extensions needs: that of its registers. */
static unsigned sse_unit(const struct ctx *c)
{
	switch (c->z.mnemonic) {
	case ZYDIS_MNEMONIC_CVTPS2PI:
	case ZYDIS_MNEMONIC_CVTTPS2PI:
	case ZYDIS_MNEMONIC_CVTPD2PI:
	case ZYDIS_MNEMONIC_CVTTPD2PI:
		return UNIT_SSE;
	case ZYDIS_MNEMONIC_MOVNTI: case ZYDIS_MNEMONIC_CRC32: case ZYDIS_MNEMONIC_POPCNT: case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE: case ZYDIS_MNEMONIC_SFENCE:
		return UNIT_INT;
	case ZYDIS_MNEMONIC_FISTTP:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		return UNIT_X87;
	default:
		return has_register(c, ZYDIS_REGCLASS_MMX) && !has_register(c, ZYDIS_REGCLASS_XMM) ? UNIT_MMX
												   : UNIT_SSE;
	}
}

static void compare_unit(struct ctx *c)
{
	unsigned want;

	switch (c->z.meta.isa_ext) {
	case ZYDIS_ISA_EXT_X87: want = UNIT_X87; break;
	case ZYDIS_ISA_EXT_MMX: want = UNIT_MMX; break;
	case ZYDIS_ISA_EXT_SSE:
	case ZYDIS_ISA_EXT_SSE2:
	case ZYDIS_ISA_EXT_SSE3:
	case ZYDIS_ISA_EXT_SSSE3:
	case ZYDIS_ISA_EXT_SSE4:
	case ZYDIS_ISA_EXT_SSE4A: case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_PCLMULQDQ: case ZYDIS_ISA_EXT_SHA:
		want = sse_unit(c);
		break;
	case ZYDIS_ISA_EXT_AVX:
	case ZYDIS_ISA_EXT_AVX2:
	case ZYDIS_ISA_EXT_AVX2GATHER:
	case ZYDIS_ISA_EXT_F16C:
	case ZYDIS_ISA_EXT_FMA:
	case ZYDIS_ISA_EXT_AVXAES: case ZYDIS_ISA_EXT_AVX_VNNI:
		want = UNIT_AVX;
		break;
	case ZYDIS_ISA_EXT_AVX512EVEX: case ZYDIS_ISA_EXT_AVX512VEX: want = UNIT_AVX512; break;
	case ZYDIS_ISA_EXT_BASE:
	case ZYDIS_ISA_EXT_BMI1:
	case ZYDIS_ISA_EXT_BMI2:
	case ZYDIS_ISA_EXT_LONGMODE:
		want = UNIT_INT;
		break;
	default: return;
	}
	if (c->in.unit != want && c->in.kind != INSN_NOP)
		differ(c, " unit %u/%u (%s)", c->in.unit, want, ZydisISAExtGetString(c->z.meta.isa_ext));
}

static enum compare_result verdict(struct ctx *c)
{
	bool ok = c->res == DECODE_OK;

	if (!ok && !c->zok)
		return CMP_INVALID;
	if (ok != c->zok) {
		if (ok ? may_be_valid(c) : may_be_invalid(c))
			return CMP_ALLOWED;
		differ(c, " validity %d/%d", ok, c->zok);
		return CMP_DIFFERS;
	}
	compare_raw(c);
	compare_memory(c);
	compare_registers(c);
	compare_flags(c);
	compare_unit(c);
	return c->bad ? CMP_DIFFERS : CMP_SAME;
}

enum compare_result zydis_compare(const uint8_t *bytes, unsigned len, enum insn_cpu_mode mode, char *why,
				  size_t why_size)
{
	struct ctx c = {.bytes = bytes, .mode = mode, .why = why, .why_size = why_size};
	ZydisDecoder dec;
	enum compare_result r;

	init_decoder(&dec, mode);
	why[0] = 0;
	c.res = insn_decode(bytes, len, mode, &c.in);
	c.zok = ZYAN_SUCCESS(ZydisDecoderDecodeFull(&dec, bytes, len, &c.z, c.ops));
	r = verdict(&c);
	if (r == CMP_DIFFERS)
		differ(&c, " (%s, %s)", insn_kind_name(c.in.kind), c.zok ? ZydisMnemonicGetString(c.z.mnemonic) : "-");
	return r;
}
