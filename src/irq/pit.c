/*
 * The 8254 and port 0x61. Manual: Intel 8254 data sheet; port 0x61 is NMI_SC of the ICH data sheets.
 *
 * Nothing ticks: count and OUT follow from the time since the counting element was loaded. Loading happens with the
 * write (or trigger) and not one CLK later; a count is never seen between two CLKs. Only channel 0 has a timer, for its
 * rising edges of OUT: each is a pulse on gsi 0. Deviation: OUT going high because a control word changes the mode is
 * not signalled.
 */
#include "irq/irqchip_int.h"

#include <string.h>

#define PIT_HZ 1193182u
#define NS_PER_S 1000000000u
#define MODE_NONE 0xff /* no control word yet (KVM's value) */
#define MIN_TICKS ((uint64_t)IRQCHIP_MIN_PERIOD_NS * PIT_HZ / NS_PER_S + 1)

/* read_state, write_state, count_latched: the byte that comes next; LSB to WORD0 are the control word's RW codes. */
enum { RW_LSB = 1, RW_MSB = 2, RW_WORD0 = 3, RW_WORD1 = 4 };

/* KVM's flags word has one bit of port 0x61; bits 2 and 3 (parity check enables) lie above it. */
#define PORT61_ENABLES 0xcu
#define PORT61_SHIFT 8

static uint64_t to_ticks(int64_t ns) { return ns <= 0 ? 0 : mul_div_u64((uint64_t)ns, PIT_HZ, NS_PER_S); }

static int64_t to_ns(uint64_t ticks) { return (int64_t)mul_div_u64(ticks, NS_PER_S, PIT_HZ); }

/* The first ns at which that many ticks have passed. */
static int64_t to_ns_after(uint64_t ticks)
{
	int64_t ns = to_ns(ticks);

	return to_ticks(ns) < ticks ? ns + 1 : ns;
}

/* The number of ticks a count stands for. In BCD 0x10000 is 10000; digits above 9 are undefined by the manual. */
static uint32_t decode(const struct pit_channel *ch, uint32_t raw)
{
	uint32_t n = 0;

	if (!ch->bcd)
		return raw;
	for (int shift = 16; shift >= 0; shift -= 4)
		n = n * 10 + ((raw >> shift) & 0xf);
	return n > 10000 ? 10000 : n;
}

static uint16_t encode(const struct pit_channel *ch, uint32_t n)
{
	if (!ch->bcd)
		return (uint16_t)n;
	return (uint16_t)(n % 10 | n / 10 % 10 << 4 | n / 100 % 10 << 8 | n / 1000 % 10 << 12);
}

static bool periodic(const struct pit_channel *ch) { return ch->mode == 2 || ch->mode == 3; }
static bool triggered(const struct pit_channel *ch) { return ch->mode == 1 || ch->mode == 5; }

/* Ticks of mode 3's high half. */
static uint32_t high_half(uint32_t n) { return (n + 1) / 2; }

static uint64_t elapsed(const struct pit_channel *ch, const struct pit_extra *x, int64_t now)
{
	return x->flags & PIT_PAUSED ? x->ticks : to_ticks(now - ch->count_load_time);
}

static void load(struct pit_channel *ch, struct pit_extra *x, uint32_t count, int64_t at)
{
	ch->count = count;
	ch->count_load_time = at;
	*x = (struct pit_extra){0};
}

/* Modes 2 and 3: take the pending count once the (half) period in which it was written is over. */
static void sync(struct pit_channel *ch, struct pit_extra *x, int64_t now)
{
	uint32_t n = decode(ch, ch->count), ticks = x->ticks;
	int64_t at;

	if (x->flags != PIT_PENDING || !periodic(ch) || elapsed(ch, x, now) < ticks)
		return;
	at = ch->count_load_time + to_ns(ticks);
	if (ch->mode == 3 && ticks % n) /* in the middle: the low half follows */
		at -= to_ns_after(high_half(decode(ch, x->next)));
	load(ch, x, x->next, at);
}

static bool out(const struct pit_channel *ch, const struct pit_extra *x, int64_t now)
{
	uint64_t d = elapsed(ch, x, now);
	uint32_t n = decode(ch, ch->count);

	if (x->flags & PIT_IDLE)
		return ch->mode != 0;
	switch (ch->mode) {
	case 2:
		return (x->flags & PIT_PAUSED) || d % n != n - 1;
	case 3:
		return (x->flags & PIT_PAUSED) || d % n < high_half(n);
	case 4:
	case 5:
		return d != n;
	default:
		return d >= n;
	}
}

static uint16_t counter(const struct pit_channel *ch, const struct pit_extra *x, int64_t now)
{
	uint64_t d = elapsed(ch, x, now);
	uint32_t n = decode(ch, ch->count), wrap = ch->bcd ? 10000 : 0x10000;

	if (x->flags & PIT_IDLE)
		return (uint16_t)ch->count;
	switch (ch->mode) {
	case 2:
		return encode(ch, n - (uint32_t)(d % n));
	case 3: /* down by two; an odd count loads n - 1 and its high half has one tick more */
		d %= n;
		if (d >= high_half(n))
			d -= high_half(n);
		return encode(ch, (n & ~1u) - 2 * (uint32_t)d);
	default:
		return encode(ch, (n + wrap - (uint32_t)(d % wrap)) % wrap);
	}
}

/* The first rising edge of OUT after `after`. */
static int64_t rising_edge(const struct pit_channel *ch, const struct pit_extra *x, int64_t after)
{
	uint64_t n = decode(ch, ch->count), ticks;
	int64_t at;

	if (x->flags & (PIT_IDLE | PIT_PAUSED))
		return TIMER_NEVER;
	switch (ch->mode) {
	case 0:
		ticks = n;
		break;
	case 4:
		ticks = n + 1;
		break;
	case 2:
	case 3:
		/* Too fast for the host: every so many periods. */
		if (n < MIN_TICKS)
			n *= (MIN_TICKS + n - 1) / n;
		ticks = (elapsed(ch, x, after) / n + 1) * n;
		break;
	default:
		return TIMER_NEVER; /* the gate of channel 0 is tied high: no trigger */
	}
	at = ch->count_load_time + to_ns_after(ticks);
	return at > after ? at : TIMER_NEVER;
}

/* Set channel 0's timer: for its next edge, or for the moment when a pending count changes what that is. */
static void arm(struct pit *p, int64_t now)
{
	struct pit_channel *ch = &p->st.ch[0];
	struct pit_extra *x = &p->st.extra[0];
	int64_t at;

	p->edge = at = rising_edge(ch, x, now);
	if (x->flags == PIT_PENDING && periodic(ch)) {
		int64_t change = ch->count_load_time + to_ns_after(x->ticks);

		if (change < at)
			at = change > now ? change : now + 1;
	}
	timer_arm(&p->timer, at);
}

static void fire(void *ctx)
{
	struct pit *p = ctx;
	int64_t now = p->chip->clock();
	bool edge = now >= p->edge;

	sync(&p->st.ch[0], &p->st.extra[0], now);
	arm(p, now);
	if (edge) {
		p->chip->sink.set_gsi(p->chip, 0, true);
		p->chip->sink.set_gsi(p->chip, 0, false);
	}
}

/* --- programming --- */

static void latch_count(struct pit_channel *ch, const struct pit_extra *x, int64_t now)
{
	if (ch->count_latched)
		return;
	ch->latched_count = counter(ch, x, now);
	ch->count_latched = ch->rw_mode;
}

static void latch_status(struct pit_channel *ch, const struct pit_extra *x, int64_t now)
{
	if (ch->status_latched)
		return;
	ch->status = (uint8_t)((out(ch, x, now) ? 0x80 : 0) | (x->flags & (PIT_IDLE | PIT_PENDING) ? 0x40 : 0) |
			       (ch->rw_mode & 3) << 4 | (ch->mode & 7) << 1 | ch->bcd);
	ch->status_latched = 1;
}

static void read_back(struct pit *p, uint8_t v, int64_t now)
{
	for (unsigned i = 0; i < 3; i++) {
		struct pit_channel *ch = &p->st.ch[i];
		struct pit_extra *x = &p->st.extra[i];

		if (!(v & (2u << i)))
			continue;
		sync(ch, x, now);
		if (!(v & 0x20))
			latch_count(ch, x, now);
		if (!(v & 0x10))
			latch_status(ch, x, now);
	}
}

static void control_word(struct pit *p, uint8_t v)
{
	int64_t now = p->chip->clock();
	unsigned n = v >> 6, mode = (v >> 1) & 7;
	struct pit_channel *ch;
	struct pit_extra *x;

	if (n == 3) {
		read_back(p, v, now);
		return;
	}
	ch = &p->st.ch[n];
	x = &p->st.extra[n];
	if (!(v & 0x30)) {
		sync(ch, x, now);
		latch_count(ch, x, now);
		return;
	}
	ch->rw_mode = ch->read_state = ch->write_state = (v >> 4) & 3;
	ch->mode = mode > 5 ? mode & 3 : mode;
	ch->bcd = v & 1;
	ch->count_latched = 0;
	*x = (struct pit_extra){.flags = PIT_IDLE};
	if (n == 0)
		arm(p, now);
}

/* A count written to a counting channel in mode 2 or 3 is loaded at the end of this period, or half period. */
static void set_pending(struct pit_channel *ch, struct pit_extra *x, uint32_t count, int64_t now)
{
	uint32_t n = decode(ch, ch->count);
	uint64_t d;

	sync(ch, x, now);
	if (x->flags & PIT_PENDING) {
		x->next = count;
		return;
	}
	d = elapsed(ch, x, now);
	ch->count_load_time += to_ns(d / n * n);
	x->ticks = ch->mode == 3 && d % n < high_half(n) && n > 1 ? high_half(n) : n;
	x->next = count;
	x->flags = PIT_PENDING;
}

static void write_count(struct pit *p, unsigned i, uint16_t v)
{
	struct pit_channel *ch = &p->st.ch[i];
	struct pit_extra *x = &p->st.extra[i];
	int64_t now = p->chip->clock();
	uint32_t count = v ? v : 0x10000;

	if (triggered(ch)) {
		x->next = count;
		x->flags |= PIT_PENDING;
	} else if (periodic(ch) && !(x->flags & (PIT_IDLE | PIT_PAUSED))) {
		set_pending(ch, x, count, now);
	} else {
		load(ch, x, count, now);
		if (!ch->gate)
			x->flags = PIT_PAUSED;
	}
	if (i == 0)
		arm(p, now);
}

static void write_counter(struct pit *p, unsigned i, uint8_t v)
{
	struct pit_channel *ch = &p->st.ch[i];

	switch (ch->write_state) {
	case RW_LSB:
		write_count(p, i, v);
		return;
	case RW_MSB:
		write_count(p, i, (uint16_t)(v << 8));
		return;
	case RW_WORD0:
		ch->write_latch = v;
		ch->write_state = RW_WORD1;
		if (ch->mode == 0) { /* the first byte stops the count */
			p->st.extra[i] = (struct pit_extra){.flags = PIT_IDLE};
			if (i == 0)
				arm(p, p->chip->clock());
		}
		return;
	case RW_WORD1:
		ch->write_state = RW_WORD0;
		write_count(p, i, (uint16_t)(ch->write_latch | v << 8));
		return;
	}
}

static uint8_t read_counter(struct pit *p, unsigned i)
{
	struct pit_channel *ch = &p->st.ch[i];
	int64_t now = p->chip->clock();
	uint16_t count;

	if (ch->status_latched) {
		ch->status_latched = 0;
		return ch->status;
	}
	if (ch->count_latched) {
		unsigned which = ch->count_latched;

		ch->count_latched = which == RW_WORD0 ? RW_WORD1 : 0;
		return (uint8_t)(which == RW_LSB || which == RW_WORD0 ? ch->latched_count : ch->latched_count >> 8);
	}
	sync(ch, &p->st.extra[i], now);
	count = counter(ch, &p->st.extra[i], now);
	switch (ch->read_state) {
	case RW_MSB:
		return (uint8_t)(count >> 8);
	case RW_WORD0:
		ch->read_state = RW_WORD1;
		return (uint8_t)count;
	case RW_WORD1:
		ch->read_state = RW_WORD0;
		return (uint8_t)(count >> 8);
	}
	return (uint8_t)count;
}

/* Data sheet, "Gate" table. Only channel 2's gate can change. */
static void set_gate(struct pit_channel *ch, struct pit_extra *x, bool gate, int64_t now)
{
	bool rising = gate && !ch->gate, falling = !gate && ch->gate;
	uint64_t d;

	sync(ch, x, now);
	ch->gate = gate;
	if (triggered(ch)) {
		if (rising && (x->flags & PIT_PENDING))
			load(ch, x, x->next, now);
		else if (rising && !(x->flags & PIT_IDLE))
			ch->count_load_time = now;
		return;
	}
	if (x->flags & PIT_IDLE)
		return;
	if (falling) {
		d = elapsed(ch, x, now);
		if (d > 0x40000000) /* long after the terminal count: the same count, in 32 bits */
			d = 200000 + (d - 200000) % (ch->bcd ? 10000 : 0x10000);
		x->ticks = (uint32_t)d;
		x->flags |= PIT_PAUSED;
	} else if (rising && periodic(ch)) {
		load(ch, x, x->flags & PIT_PENDING ? x->next : ch->count, now);
	} else if (rising) {
		ch->count_load_time = now - to_ns_after(x->ticks);
		x->flags &= ~PIT_PAUSED;
	}
}

/* --- ports --- */

static uint64_t pit_read(void *dev, uint64_t off, unsigned size)
{
	return off == 3 ? 0xff : read_counter(dev, (unsigned)off); /* the control word cannot be read */
}

static void pit_write(void *dev, uint64_t off, unsigned size, uint64_t v)
{
	if (off == 3)
		control_word(dev, (uint8_t)v);
	else
		write_counter(dev, (unsigned)off, (uint8_t)v);
}

static uint64_t port61_read(void *dev, uint64_t off, unsigned size)
{
	struct pit *p = dev;
	int64_t now = p->chip->clock();
	struct pit_channel *ch = &p->st.ch[2];

	sync(ch, &p->st.extra[2], now);
	return ch->gate | (p->st.flags & PIT_SPEAKER_ON) | ((p->st.flags >> PORT61_SHIFT) & PORT61_ENABLES) |
	       (uint64_t)(now / 15085 & 1) << 4 /* DRAM refresh */ | (uint64_t)out(ch, &p->st.extra[2], now) << 5;
}

static void port61_write(void *dev, uint64_t off, unsigned size, uint64_t v)
{
	struct pit *p = dev;

	p->st.flags = (v & PIT_SPEAKER_ON) | (uint32_t)(v & PORT61_ENABLES) << PORT61_SHIFT;
	set_gate(&p->st.ch[2], &p->st.extra[2], v & 1, p->chip->clock());
}

static const struct bus_ops pit_ops = {.read = pit_read, .write = pit_write, .max_size = 1};
static const struct bus_ops port61_ops = {.read = port61_read, .write = port61_write, .max_size = 1};

bool pit_setup(struct pit *p, struct error *err)
{
	timer_init(&p->timer, p->chip->cfg.timers, fire, p);
	p->edge = TIMER_NEVER;
	return bus_map(p->chip->bus, BUS_PIO, 0x40, 4, &pit_ops, p, "pit", err) &&
	       bus_map(p->chip->bus, BUS_PIO, 0x61, 1, &port61_ops, p, "port61", err);
}

void pit_reset(struct pit *p)
{
	memset(&p->st, 0, sizeof(p->st));
	for (unsigned i = 0; i < 3; i++) {
		p->st.ch[i].mode = MODE_NONE;
		p->st.ch[i].gate = i != 2;
		load(&p->st.ch[i], &p->st.extra[i], 0x10000, p->chip->clock());
	}
	arm(p, p->chip->clock());
}

/* --- state --- */

void pit_get_state(struct pit *p, struct pit_state *st)
{
	int64_t now = p->chip->clock();

	/* An edge that is due was not seen yet; after loading it would be the past. */
	if (now >= p->edge) {
		timer_cancel(&p->timer);
		fire(p);
	}
	*st = p->st;
}

static bool valid(const struct pit_channel *ch, const struct pit_extra *x)
{
	return ch->count >= 1 && ch->count <= 0x10000 && decode(ch, ch->count) >= 1 && ch->count_latched <= RW_WORD1 &&
	       ch->status_latched <= 1 && ch->read_state <= RW_WORD1 && ch->write_state <= RW_WORD1 &&
	       ch->rw_mode <= 3 && (ch->mode <= 5 || ch->mode == MODE_NONE) && ch->bcd <= 1 && ch->gate <= 1 &&
	       !(x->flags & ~(PIT_IDLE | PIT_PENDING | PIT_PAUSED)) &&
	       (!(x->flags & PIT_PENDING) || (x->next >= 1 && x->next <= 0x10000 && decode(ch, x->next) >= 1));
}

bool pit_set_state(struct pit *p, const struct pit_state *st)
{
	int64_t now = p->chip->clock();

	for (unsigned i = 0; i < 3; i++)
		if (!valid(&st->ch[i], &st->extra[i]))
			return false;
	p->st = *st;
	p->st.ch[0].gate = p->st.ch[1].gate = 1;
	p->st.flags &= PIT_SPEAKER_ON | PORT61_ENABLES << PORT61_SHIFT;
	for (unsigned i = 0; i < 3; i++)
		if (st->ch[i].count_load_time > now || st->ch[i].count_load_time < now - INT64_MAX / 2)
			p->st.ch[i].count_load_time = now;
	arm(p, now);
	return true;
}
