#include "engine/soft/translate/decode.h"

#include <string.h>

#include "engine/soft/translate/decode_int.h"

/* Prefixes, opcode, modrm, sib, displacement and immediates at their longest, so that no fetch needs a check. */
#define WINDOW 48

enum prefix_class { PFX_NONE, PFX_REX, PFX_66, PFX_67, PFX_REP, PFX_LOCK, PFX_SEG };

static const uint8_t prefix_class[256] = {
	[0x26] = PFX_SEG, [0x2e] = PFX_SEG, [0x36] = PFX_SEG, [0x3e] = PFX_SEG, [0x64] = PFX_SEG, [0x65] = PFX_SEG,
	[0x40 ... 0x4f] = PFX_REX, [0x66] = PFX_66, [0x67] = PFX_67, [0xf0] = PFX_LOCK, [0xf2 ... 0xf3] = PFX_REP,
};

/* Flags that each pair of conditions (O, B, Z, BE, S, P, L, LE) tests. */
static const uint16_t cc_flags[8] = {
	FL_OF, FL_CF, FL_ZF, FL_CF | FL_ZF, FL_SF, FL_PF, FL_SF | FL_OF, FL_SF | FL_OF | FL_ZF,
};

/* State of one call. `pos` counts the bytes that the verdict depends on, to be judged against avail. */
struct decoder {
	const uint8_t *p;
	unsigned pos;
	enum insn_cpu_mode mode;
	struct insn *in;
	const struct opdesc *d;
	unsigned w;         /* REX.W, VEX.W */
	unsigned x, b;      /* bit 3 for index and base or rm */
	unsigned rm_hi;     /* bit 4 of a vector register in modrm.rm: EVEX.X */
	unsigned index_hi;  /* bit 4 of a VSIB index: EVEX.V' */
	bool evex_reg_hi;   /* EVEX.R' set: modrm.reg is 16-31 */
	bool anypp;         /* the row, or the one that led to its group, holds for any of 66, F3, F2 */
};

const char *insn_kind_name(enum insn_kind k)
{
	static const char *const names[INSN_KIND_COUNT] = {
		"NATIVE", "NOP", "LEA",
#define X(name) #name,
		INSN_KINDS(X)
#undef X
	};
	return k < INSN_KIND_COUNT ? names[k] : "?";
}

static bool scan_prefixes(struct decoder *s)
{
	struct insn *in = s->in;

	for (;;) {
		uint8_t b = s->p[s->pos];
		unsigned class = prefix_class[b];

		if (class == PFX_NONE || (class == PFX_REX && s->mode != MODE_64))
			return true;
		if (++s->pos > INSN_MAX_LEN)
			return false;
		in->rex = 0; /* counts only right before the opcode */
		switch (class) {
		case PFX_REX: in->rex = b; break;
		case PFX_66: in->opsize66 = true; break;
		case PFX_67: in->addr67 = true; break;
		case PFX_REP: in->rep = b; break;
		case PFX_LOCK: in->lock = true; break;
		case PFX_SEG:
			if (b < 0x64 && s->mode == MODE_64)
				break;
			in->seg = b < 0x64 ? (b >> 3) & 3 : SEG_FS + (b & 1);
			in->seg_override = true;
			break;
		}
	}
}

static bool vex_payload(struct decoder *s)
{
	struct insn *in = s->in;
	const uint8_t *p = s->p + s->pos;
	bool long_mode = s->mode == MODE_64;
	uint8_t last;

	if (p[0] == 0xc5) {
		in->enc = ENC_VEX2;
		in->map = 1;
		in->reg = long_mode ? (~p[1] >> 4) & 8 : 0;
		last = p[1] & 0x7f;
		s->pos += 2;
	} else {
		in->enc = ENC_VEX3;
		in->map = p[1] & 0x1f;
		in->reg = long_mode ? (~p[1] >> 4) & 8 : 0;
		s->x = long_mode ? (~p[1] >> 3) & 8 : 0;
		s->b = long_mode ? (~p[1] >> 2) & 8 : 0;
		last = p[2];
		s->pos += 3;
	}
	in->vex_w = last >> 7;
	in->vvvv = (~last >> 3) & 15;
	in->vex_l = (last >> 2) & 1;
	in->pp = last & 3;
	return in->map >= 1 && in->map <= 3;
}

static bool evex_payload(struct decoder *s)
{
	struct insn *in = s->in;
	const uint8_t *p = s->p + s->pos;
	bool long_mode = s->mode == MODE_64;

	s->pos += 4;
	in->enc = ENC_EVEX;
	in->map = p[1] & 7;
	in->vex_w = p[2] >> 7;
	in->vvvv = ((~p[2] >> 3) & 15) | (p[3] & 8 ? 0 : 16);
	in->pp = p[2] & 3;
	in->evex_z = p[3] >> 7;
	in->vex_l = (p[3] >> 5) & 3;
	in->evex_b = (p[3] >> 4) & 1;
	in->evex_aaa = p[3] & 7;
	if (long_mode) {
		s->evex_reg_hi = !(p[1] & 0x10);
		in->reg = ((~p[1] >> 4) & 8) | (s->evex_reg_hi ? 16 : 0);
		s->x = (~p[1] >> 3) & 8;
		s->b = (~p[1] >> 2) & 8;
		s->rm_hi = s->x << 1;
		s->index_hi = in->vvvv & 16;
	}
	return !(p[1] & 8) && (p[2] & 4);
}

/* Decode escapes and VEX-like prefixes, and set s->d to the row of the opcode. */
static bool find_row(struct decoder *s)
{
	static const struct opdesc (*const vex_maps[4])[4] = {NULL, decode_vex_0f, decode_vex_38, decode_vex_3a};
	static const struct opdesc (*const evex_maps[8])[4] = {
		NULL, decode_evex_0f, decode_evex_38, decode_evex_3a, NULL, decode_evex_5, decode_evex_6, NULL,
	};
	static const struct opdesc movsxd = {NAT, E_R(S_4), G_W}; /* 4 bytes are read even with 66 */
	static const struct opdesc nop = {K(NOP)}, pause = {NAT};
	struct insn *in = s->in;
	const uint8_t *p = s->p + s->pos;
	const struct opdesc (*map)[4];

	if (p[0] == 0xc4 || p[0] == 0xc5 || p[0] == 0x62) {
		if (s->mode == MODE_64 || p[1] >= 0xc0) {
			bool ok = p[0] == 0x62 ? evex_payload(s) : vex_payload(s);

			if (!ok || in->rex || in->opsize66 || in->rep || in->lock)
				return false;
			s->w = in->vex_w;
			map = in->enc == ENC_EVEX ? evex_maps[in->map] : vex_maps[in->map];
			if (!map)
				return false;
			in->op_off = s->pos;
			in->op = s->p[s->pos++];
			s->d = &map[in->op][in->pp];
			return true;
		}
	}
	s->w = (in->rex >> 3) & 1;
	in->reg = (in->rex << 1) & 8;
	s->x = (in->rex << 2) & 8;
	s->b = (in->rex << 3) & 8;
	if (p[0] != 0x0f) {
		in->op_off = s->pos++;
		in->op = p[0];
		s->d = &decode_map0[in->op];
		if (s->mode == MODE_64 && in->op == 0x63)
			s->d = &movsxd;
		if (in->op == 0x90 && !s->b)
			s->d = in->rep == 0xf3 ? &pause : &nop;
		return true;
	}
	in->map = p[1] == 0x38 ? 2 : p[1] == 0x3a ? 3 : 1;
	map = in->map == 1 ? decode_map_0f : in->map == 2 ? decode_map_38 : decode_map_3a;
	s->pos += in->map == 1 ? 1 : 2;
	in->op_off = s->pos;
	in->op = s->p[s->pos++];
	in->pp = in->rep == 0xf3 ? 2 : in->rep ? 3 : in->opsize66 ? 1 : 0;
	s->d = &map[in->op][in->pp];
	return true;
}

/* Follow groups to the row that describes the instruction. */
static bool resolve_group(struct decoder *s)
{
	uint8_t modrm = s->p[s->pos];

	s->anypp = s->d->anypp;
	while (s->d->group) {
		unsigned i = s->d->sel == SEL_REG ? (modrm >> 3) & 7 : modrm & 7;

		if (s->pos < s->in->op_off + 2u)
			s->pos = s->in->op_off + 2; /* the verdict depends on modrm */
		s->d = &decode_groups[s->d->group][i + (modrm >= 0xc0 ? 8 : 0)];
		s->anypp |= s->d->anypp;
	}
	return s->d->def;
}

static unsigned operand_size(const struct decoder *s)
{
	const struct insn *in = s->in;
	bool op66 = in->opsize66 && (in->pp != 1 || s->anypp);

	if (s->d->by_w || s->d->unit >= UNIT_MMX || s->d->size == S_Y || s->d->size == S_Y2)
		return s->mode == MODE_64 && (s->w || s->d->force64) ? 8 : 4;
	if (s->mode == MODE_16)
		return op66 ? 4 : 2;
	if (s->mode == MODE_32)
		return op66 ? 2 : 4;
	if (s->w || s->d->force64)
		return 8;
	if (op66)
		return 2;
	return s->d->def64 ? 8 : 4;
}

static unsigned row_size(const struct decoder *s, unsigned code)
{
	static const uint16_t fixed[] = {
		[S_0] = 0, [S_1] = 1, [S_2] = 2, [S_4] = 4, [S_8] = 8, [S_10] = 10, [S_16] = 16, [S_32] = 32,
		[S_64] = 64, [S_512] = 512,
	};
	const struct insn *in = s->in;
	unsigned vl = 16u << (in->vex_l & 3);
	bool w64 = s->w && s->mode == MODE_64;

	if (code < ARRAY_LEN(fixed))
		return fixed[code];
	switch ((enum opdesc_size)code) {
	case S_V: return in->osz;
	case S_V2: return 2 * in->osz;
	case S_FAR: return in->osz + 2;
	case S_DT: return s->mode == MODE_64 ? 10 : 6;
	case S_Y: return w64 ? 8 : 4;
	case S_Y2: return w64 ? 16 : 8;
	case S_E: return s->w ? 8 : 4;
	case S_W21: return s->w ? 2 : 1;
	case S_W82: return s->w ? 8 : 2;
	case S_W41: return s->w ? 4 : 1;
	case S_ENV: return in->osz == 2 ? 14 : 28;
	case S_X87: return in->osz == 2 ? 94 : 108;
	case S_VL: return vl;
	case S_VL2: return vl / 2;
	case S_VL4: return vl / 4;
	case S_VL8: return vl / 8;
	case S_VLW: return s->w ? vl : vl / 2;
	case S_DUP: return vl == 16 ? 8 : vl;
	default: return 0;
	}
}

static void modrm_mem16(struct decoder *s)
{
	static const int8_t bases[8] = {3, 3, 5, 5, 6, 7, 5, 3}, indexes[8] = {6, 7, 6, 7, -1, -1, -1, -1};
	struct insn *in = s->in;
	unsigned rm = in->modrm & 7;

	in->base = bases[rm];
	in->index = indexes[rm];
	in->disp_len = in->mod;
	if (in->mod == 0 && rm == 6) {
		in->base = -1;
		in->disp_len = 2;
	}
}

static void modrm_mem(struct decoder *s)
{
	struct insn *in = s->in;
	unsigned rm = in->modrm & 7;

	in->disp_len = in->mod == 2 ? 4 : in->mod;
	if (rm != 4) {
		if (in->mod == 0 && rm == 5) {
			in->disp_len = 4;
			in->rip_rel = s->mode == MODE_64;
		} else {
			in->base = rm | s->b;
		}
		return;
	}
	uint8_t sib = s->p[s->pos++];
	unsigned index = ((sib >> 3) & 7) | s->x;

	if (s->d->vsib)
		in->index = index | s->index_hi;
	else if (index != 4)
		in->index = index;
	in->scale = in->index < 0 ? 1 : 1 << (sib >> 6);
	if (in->mod == 0 && (sib & 7) == 5)
		in->disp_len = 4;
	else
		in->base = (sib & 7) | s->b;
}

static void decode_disp(struct decoder *s)
{
	struct insn *in = s->in;
	const uint8_t *p = s->p + s->pos;

	if (!in->disp_len)
		return;
	in->disp_off = s->pos;
	s->pos += in->disp_len;
	switch (in->disp_len) {
	case 1: in->disp = (int8_t)p[0]; break;
	case 2: in->disp = (int16_t)get_le16(p); break;
	default: in->disp = (int32_t)get_le32(p); break;
	}
}

/* The memory operand's fields, once mod != 3 is known. False: #UD. */
static bool decode_mem(struct decoder *s)
{
	struct insn *in = s->in;
	const struct opdesc *d = s->d;

	if (in->asz == 2)
		modrm_mem16(s);
	else
		modrm_mem(s);
	decode_disp(s);
	if (!in->seg_override && (in->base == 4 || in->base == 5))
		in->seg = SEG_SS;
	in->mem = d->mem;
	in->mem_size = row_size(s, d->size);
	if (in->enc == ENC_EVEX) {
		static const uint8_t elem[] = {[BC_2] = 2, [BC_4] = 4, [BC_8] = 8};

		if (in->evex_b) {
			if (d->bcast == BC_NO)
				return false;
			in->mem_size = d->bcast == BC_W ? (s->w ? 8 : 4) : elem[d->bcast];
		}
		if (in->disp_len == 1)
			in->disp *= d->disp8 == DISP_SIZE ? in->mem_size
							  : (int)row_size(s, d->disp8 == DISP_E ? S_E : S_W21);
		in->mem_masked = in->evex_aaa && !d->no_suppress;
		if (in->evex_aaa && d->no_suppress && d->mem == MEM_WRITE)
			in->mem = MEM_RMW; /* masked-off elements keep their value */
	} else {
		in->mem_masked = d->masked;
	}
	in->mem_aligned = d->align && in->mem_size >= 16;
	return d->form != FORM_REG && !(d->vsib && (in->asz == 2 || (in->modrm & 7) != 4));
}

/* VEX and EVEX constraints on W, L, vvvv, z, b and aaa. */
static bool vex_ok(const struct decoder *s)
{
	const struct insn *in = s->in;
	const struct opdesc *d = s->d;

	if ((d->w0 && in->vex_w) || (d->w1 && !in->vex_w))
		return false;
	if (in->enc != ENC_EVEX)
		return !d->lens || (d->lens & (1u << in->vex_l));
	if (in->evex_aaa && d->mask == MASK_NO)
		return false;
	if (d->mask == MASK_MUST && !in->evex_aaa)
		return false;
	if (in->evex_z && (d->mask != MASK_ZERO || !in->evex_aaa || (in->mod != 3 && d->mem == MEM_WRITE)))
		return false;
	if (in->evex_b && in->mod == 3)
		return d->round != RC_NO; /* L'L is the rounding mode, the length 512 */
	return in->vex_l != 3 && (!d->lens || (d->lens & (1u << in->vex_l)));
}

/* Gathers: destination, index and (VEX) mask; complex multiplication: destination and both sources. */
static bool distinct(const struct decoder *s)
{
	const struct insn *in = s->in;
	unsigned other = s->d->vsib ? (unsigned)in->index : in->rm;

	if ((s->d->vsib || in->mod == 3) && in->reg == other)
		return false;
	if (s->d->vsib && in->enc == ENC_EVEX)
		return true;
	return in->reg != in->vvvv && !(s->d->vsib && in->vvvv == other);
}

static bool vex_operands(struct decoder *s)
{
	struct insn *in = s->in;
	const struct opdesc *d = s->d;
	bool used = d->vvvv_used || (d->vvvv_reg && in->mod == 3);

	if (!vex_ok(s))
		return false;
	if (!used && (in->vvvv & (d->vsib && s->mode == MODE_64 ? 15 : 31)))
		return false;
	if (s->mode != MODE_64) {
		if (in->vvvv & 16)
			return false;
		in->vvvv &= 7;
	}
	in->has_vvvv = used;
	if (d->vsib)
		in->vvvv &= 15;
	if ((d->kreg || d->reg) && s->evex_reg_hi)
		return false;
	if ((d->kreg && in->reg > 7) || (d->kvvvv && in->vvvv > 7))
		return false;
	if (d->vvvv && in->vvvv > 15)
		return false;
	if (d->distinct && !distinct(s))
		return false;
	in->vvvv_gpr = d->vvvv;
	in->vex_gpr = d->unit == UNIT_INT;
	return true;
}

static void decode_imm(struct decoder *s)
{
	struct insn *in = s->in;
	const uint8_t *p = s->p + s->pos;
	unsigned n = in->osz;

	in->imm_off = s->pos;
	switch ((enum opdesc_imm)s->d->imm) {
	case IMM_NONE: in->imm_off = 0; return;
	case IMM_S8: in->imm = (int8_t)p[0]; in->imm_len = 1; break;
	case IMM_U8: in->imm = p[0]; in->imm_len = 1; break;
	case IMM_U16: in->imm = get_le16(p); in->imm_len = 2; break;
	case IMM_Z:
		in->imm = n == 2 ? (int16_t)get_le16(p) : (int32_t)get_le32(p);
		in->imm_len = n == 2 ? 2 : 4;
		break;
	case IMM_V:
		in->imm = n == 2 ? (int16_t)get_le16(p) : n == 4 ? (int32_t)get_le32(p) : (int64_t)get_le64(p);
		in->imm_len = n;
		break;
	case IMM_ENTER: in->imm = get_le16(p); in->imm2 = p[2]; in->imm_len = 3; break;
	case IMM_FAR:
		in->imm = n == 2 ? get_le16(p) : get_le32(p);
		in->imm2 = get_le16(p + n);
		in->imm_len = n + 2;
		break;
	case IMM_U8U8: in->imm = p[0]; in->imm2 = p[1]; in->imm_len = 2; break;
	case IMM_MOFFS:
		in->imm_off = 0;
		in->disp_off = s->pos;
		in->disp_len = in->asz;
		in->disp = in->asz == 2 ? get_le16(p) : in->asz == 4 ? (int64_t)get_le32(p) : (int64_t)get_le64(p);
		in->mem = s->d->mem;
		in->mem_size = row_size(s, s->d->size);
		s->pos += in->disp_len;
		return;
	}
	s->pos += in->imm_len;
}

/* Conditions, shift counts and segment numbers: what the row alone does not tell. False: #UD. */
static bool decode_details(struct decoder *s)
{
	struct insn *in = s->in;
	bool cond = (in->map == 0 && (in->op & 0xf0) == 0x70) ||
		    (in->map == 1 && in->enc == ENC_LEGACY && ((in->op & 0xf0) == 0x40 || (in->op & 0xe0) == 0x80));

	if (cond) {
		in->cc = in->op & 15;
		in->flags_read = cc_flags[in->cc >> 1];
	}
	if (s->d->shift && !(in->imm & (s->d->size == S_V && in->osz == 8 ? 0x3f : 0x1f)))
		in->flags_read = in->flags_written = 0;
	switch (in->kind) {
	case INSN_CMPS: case INSN_SCAS:
		if (in->rep)
			in->flags_read = in->flags_written; /* a count of 0 leaves them */
		return true;
	case INSN_IN_IMM: case INSN_IN_DX: case INSN_OUT_IMM: case INSN_OUT_DX: case INSN_INS: case INSN_OUTS:
		in->osz = in->osz == 8 ? 4 : in->osz; /* no 64-bit ports */
		return true;
	case INSN_PUSH_SEG: case INSN_POP_SEG: in->seg_reg = (in->op >> 3) & 7; return true;
	case INSN_LOAD_FAR: in->seg_reg = in->map ? in->op & 7 : in->op == 0xc4 ? SEG_ES : SEG_DS; return true;
	case INSN_MOV_RM_SEG: case INSN_MOV_SEG_RM:
		in->seg_reg = (in->modrm >> 3) & 7;
		return in->seg_reg < SEG_COUNT && !(in->kind == INSN_MOV_SEG_RM && in->seg_reg == SEG_CS);
	case INSN_MOV_R_CR:
	case INSN_MOV_CR_R:
		return in->reg < 16 && ((BIT(0) | BIT(2) | BIT(3) | BIT(4) | BIT(8)) & BIT(in->reg));
	case INSN_MOV_R_DR: case INSN_MOV_DR_R: return in->reg < 8;
	case INSN_BT_MEM: /* only a memory operand is a bit string */
		in->kind = in->mod == 3 ? INSN_NATIVE : INSN_BT_MEM;
		return true;
	default: return true;
	}
}

/* False: #UD, after s->pos bytes. */
static bool decode_body(struct decoder *s)
{
	struct insn *in = s->in;
	const struct opdesc *d;

	if (!find_row(s) || !resolve_group(s))
		return false;
	d = s->d;
	s->pos = in->op_off + 1;
	in->kind = d->kind;
	in->unit = d->unit;
	in->x87_wait = d->wait;
	in->flags_read = d->fl_read;
	in->flags_written = d->fl_write;
	in->byte_reg = d->byte;
	in->opreg_gpr = d->opreg;
	in->osz = operand_size(s);
	in->asz = s->mode == MODE_64 ? (in->addr67 ? 4 : 8) : (s->mode == MODE_32) != in->addr67 ? 4 : 2;
	if (in->enc == ENC_LEGACY && s->anypp)
		in->pp = 0;
	in->opreg = (in->op & 7) | s->b;
	if (d->modrm) {
		in->has_modrm = true;
		in->modrm_off = s->pos;
		in->modrm = s->p[s->pos++];
		in->mod = d->form == FORM_MOD_IGNORED ? 3 : in->modrm >> 6;
		in->reg |= (in->modrm >> 3) & 7;
		in->reg_gpr = d->reg;
		if (in->mod == 3) {
			if (d->form == FORM_MEM)
				return false;
			in->rm = (in->modrm & 7) | (d->krm ? 0 : s->b | (d->rm ? 0 : s->rm_hi));
			in->rm_gpr = d->rm;
		} else if (!decode_mem(s)) {
			return false;
		}
	}
	if (in->enc != ENC_LEGACY && !vex_operands(s))
		return false;
	if (s->mode == MODE_64 ? d->not64 : d->only64)
		return false;
	if (d->byte && !in->rex) {
		in->reg_high8 = d->reg8 && in->reg >= 4;
		in->rm_high8 = d->rm8 && in->mod == 3 && in->rm >= 4;
	}
	decode_imm(s);
	return decode_details(s) && (!in->lock || (d->lock && in->mod != 3));
}

enum decode_result insn_decode(const uint8_t *bytes, unsigned avail, enum insn_cpu_mode mode, struct insn *in)
{
	uint8_t window[WINDOW];
	struct decoder s = {.p = bytes, .mode = mode, .in = in};
	bool ok;

	/* In halves: small enough for plain stores, where the whole would become REP STOS, a sixth of the time. */
	memset(in, 0, sizeof(*in) / 2);
	memset((uint8_t *)in + sizeof(*in) / 2, 0, sizeof(*in) - sizeof(*in) / 2);
	in->mode = mode;
	in->base = in->index = -1;
	in->scale = 1;
	in->seg = SEG_DS;
	if (avail < WINDOW) {
		unsigned n = avail < INSN_MAX_LEN ? avail : INSN_MAX_LEN;

		memset(window, 0, sizeof(window));
		for (unsigned i = 0; i < n; i++)
			window[i] = bytes[i];
		s.p = window;
	}
	ok = scan_prefixes(&s) && decode_body(&s);
	in->len = s.pos < INSN_MAX_LEN ? s.pos : INSN_MAX_LEN;
	if (s.pos > avail && avail < INSN_MAX_LEN)
		return DECODE_MORE;
	if (s.pos > INSN_MAX_LEN)
		return DECODE_TOO_LONG;
	return ok ? DECODE_OK : DECODE_INVALID;
}

uint64_t insn_mem_offset(const struct insn *in, const uint64_t gpr[16], uint64_t next_rip)
{
	uint64_t off = (uint64_t)in->disp;

	if (in->rip_rel)
		off += next_rip;
	if (in->base >= 0)
		off += gpr[in->base & 15];
	if (in->index >= 0)
		off += gpr[in->index & 15] * in->scale;
	return off & mask_bytes(in->asz);
}
