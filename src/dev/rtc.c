/*
 * Flags are brought up to date when somebody looks (sync); a host timer runs only for interrupts that are enabled.
 * The time registers are the CMOS bytes 0-9 themselves, refreshed from the clock while it counts.
 */
#include "dev/rtc.h"

#include <stdlib.h>
#include <time.h>

#define NS INT64_C(1000000000)
#define UIP_NS 244000 /* UIP rises this long before an update */
#define UPDATE_NS 1984000 /* and with a 32 kHz time base the update takes this long more */
#define DAY 86400

enum {
	REG_SEC = 0x00, REG_SEC_ALARM = 0x01, REG_MIN = 0x02, REG_MIN_ALARM = 0x03, REG_HOUR = 0x04,
	REG_HOUR_ALARM = 0x05, REG_WDAY = 0x06, REG_MDAY = 0x07, REG_MONTH = 0x08, REG_YEAR = 0x09,
	REG_A = 0x0a, REG_B = 0x0b, REG_C = 0x0c, REG_D = 0x0d,
	A_UIP = 0x80, A_DIVIDER = 0x70, A_DIVIDER_ON = 0x20, A_RATE = 0x0f,
	B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_SQWE = 0x08, B_BINARY = 0x04, B_24H = 0x02,
	C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10,
	D_VRT = 0x80,
	HOUR_PM = 0x80, ALARM_ANY = 0xc0,
	INDEX_NMI = 0x80,
};

struct rtc_state {
	uint8_t index; /* as written to port 0x70 */
	uint8_t cmos[128];
	int8_t wday_shift; /* guest's day of week less the calendar's, 0-6 */
	int64_t offset;    /* guest time less CLOCK_REALTIME, s: the phase within a second is the host's */
	int64_t seen;      /* guest seconds up to which UF and AF are known */
	int64_t ticks;     /* periods up to which PF is known */
};

struct rtc {
	struct rtc_state s;
	struct bus *bus;
	struct irq_line irq;
	struct timer timer;
};

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

/* Guest seconds since 1970, and the ns since the last of them. */
static int64_t guest_time(const struct rtc *r, int64_t *phase)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	if (phase)
		*phase = ts.tv_nsec;
	return (int64_t)ts.tv_sec + r->s.offset;
}

static bool counting(const struct rtc_state *s)
{
	return !(s->cmos[REG_B] & B_SET) && (s->cmos[REG_A] & A_DIVIDER) == A_DIVIDER_ON;
}

/* ns between periodic interrupts, 0 when off (data sheet, table 5, 32.768 kHz). */
static int64_t period(const struct rtc_state *s)
{
	unsigned rate = s->cmos[REG_A] & A_RATE;

	if (!rate || (s->cmos[REG_A] & A_DIVIDER) != A_DIVIDER_ON)
		return 0;
	if (rate <= 2)
		rate += 7;
	return (NS << (rate - 1)) / 32768;
}

static uint8_t encode(const struct rtc_state *s, unsigned v)
{
	return (uint8_t)(s->cmos[REG_B] & B_BINARY ? v : v / 10 * 16 + v % 10);
}

static unsigned decode(const struct rtc_state *s, uint8_t v)
{
	return s->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10u + (v & 15);
}

static uint8_t encode_hour(const struct rtc_state *s, unsigned h)
{
	if (s->cmos[REG_B] & B_24H)
		return encode(s, h);
	return encode(s, h % 12 ? h % 12 : 12) | (h >= 12 ? HOUR_PM : 0);
}

static unsigned decode_hour(const struct rtc_state *s, uint8_t v)
{
	if (s->cmos[REG_B] & B_24H)
		return decode(s, v);
	return decode(s, v & (uint8_t)~HOUR_PM) % 12 + (v & HOUR_PM ? 12 : 0);
}

/* Clock to time registers. */
static void load_registers(struct rtc_state *s, int64_t seconds)
{
	time_t t = (time_t)seconds;
	struct tm tm;
	unsigned year;

	if (!gmtime_r(&t, &tm))
		return;
	year = (unsigned)(tm.tm_year + 1900) % 10000;
	s->cmos[REG_SEC] = encode(s, (unsigned)tm.tm_sec);
	s->cmos[REG_MIN] = encode(s, (unsigned)tm.tm_min);
	s->cmos[REG_HOUR] = encode_hour(s, (unsigned)tm.tm_hour);
	s->cmos[REG_WDAY] = (uint8_t)((tm.tm_wday + s->wday_shift) % 7 + 1);
	s->cmos[REG_MDAY] = encode(s, (unsigned)tm.tm_mday);
	s->cmos[REG_MONTH] = encode(s, (unsigned)tm.tm_mon + 1);
	s->cmos[REG_YEAR] = encode(s, year % 100);
	s->cmos[RTC_CENTURY] = encode(s, year / 100);
}

/* Time registers to clock; impossible dates (31 February) roll over, as mktime does. */
static void store_registers(struct rtc *r)
{
	struct rtc_state *s = &r->s;
	struct tm tm = {
		.tm_sec = (int)decode(s, s->cmos[REG_SEC]),
		.tm_min = (int)decode(s, s->cmos[REG_MIN]),
		.tm_hour = (int)decode_hour(s, s->cmos[REG_HOUR]),
		.tm_mday = (int)decode(s, s->cmos[REG_MDAY]),
		.tm_mon = (int)decode(s, s->cmos[REG_MONTH]) - 1,
		.tm_year = (int)(decode(s, s->cmos[RTC_CENTURY]) * 100 + decode(s, s->cmos[REG_YEAR])) - 1900,
	};
	int64_t seconds = timegm(&tm);

	s->offset += seconds - guest_time(r, NULL);
	s->wday_shift = (int8_t)(((s->cmos[REG_WDAY] - 1 - tm.tm_wday) % 7 + 7) % 7);
	s->seen = seconds;
}

static bool alarm_field(const struct rtc_state *s, unsigned reg, unsigned now)
{
	uint8_t v = s->cmos[reg];

	if ((v & ALARM_ANY) == ALARM_ANY)
		return true;
	return (reg == REG_HOUR_ALARM ? decode_hour(s, v) : decode(s, v)) == now;
}

/* The first second after t at which the alarm fires; INT64_MAX when it never does. */
static int64_t next_alarm(const struct rtc_state *s, int64_t t)
{
	int64_t end = t + DAY + 1;

	for (t++; t <= end;) {
		unsigned of_day = (unsigned)(t - floor_div(t, DAY) * DAY);

		if (!alarm_field(s, REG_HOUR_ALARM, of_day / 3600))
			t += 3600 - of_day % 3600;
		else if (!alarm_field(s, REG_MIN_ALARM, of_day / 60 % 60))
			t += 60 - of_day % 60;
		else if (!alarm_field(s, REG_SEC_ALARM, of_day % 60))
			t++;
		else
			return t;
	}
	return INT64_MAX;
}

static void update_irq(struct rtc *r)
{
	uint8_t *c = &r->s.cmos[REG_C];

	if (*c & r->s.cmos[REG_B] & (C_PF | C_AF | C_UF))
		*c |= C_IRQF;
	else
		*c &= (uint8_t)~C_IRQF;
	irq_set(&r->irq, *c & C_IRQF);
}

/* Bring flags and time registers up to now. */
static void sync(struct rtc *r)
{
	struct rtc_state *s = &r->s;
	int64_t seconds = guest_time(r, NULL), ticks;

	if (counting(s)) {
		if (seconds > s->seen) {
			s->cmos[REG_C] |= C_UF;
			if (next_alarm(s, s->seen) <= seconds)
				s->cmos[REG_C] |= C_AF;
		}
		s->seen = seconds; /* also when the host's clock was set back */
		load_registers(s, seconds);
	}
	if (period(s)) {
		ticks = clock_now() / period(s);
		if (ticks != s->ticks)
			s->cmos[REG_C] |= C_PF;
		s->ticks = ticks;
	}
	update_irq(r);
}

/* Wake for the next event whose interrupt is enabled and whose flag is not set yet. */
static void arm(struct rtc *r)
{
	const struct rtc_state *s = &r->s;
	uint8_t wanted = s->cmos[REG_B] & (uint8_t)~s->cmos[REG_C] & (B_PIE | B_AIE | B_UIE);
	int64_t deadline = TIMER_NEVER, phase, now = guest_time(r, &phase);

	if (counting(s) && wanted & (B_UIE | B_AIE)) {
		int64_t at = wanted & B_UIE ? s->seen + 1 : next_alarm(s, s->seen);

		if (at != INT64_MAX)
			deadline = clock_now() + (at - now) * NS - phase;
	}
	if (wanted & B_PIE && period(s) && (s->ticks + 1) * period(s) < deadline)
		deadline = (s->ticks + 1) * period(s);
	timer_arm(&r->timer, deadline);
}

static void on_timer(void *ctx)
{
	struct rtc *r = ctx;

	sync(r);
	arm(r);
}

static uint8_t read_a(struct rtc *r)
{
	uint8_t v = r->s.cmos[REG_A] & (uint8_t)~A_UIP;
	int64_t phase;

	/* The last moments before the second changes: the guest must not begin to read then. */
	guest_time(r, &phase);
	if (counting(&r->s) && phase >= NS - UIP_NS - UPDATE_NS)
		v |= A_UIP;
	return v;
}

static uint64_t rtc_read(void *dev, uint64_t off, unsigned size)
{
	struct rtc *r = dev;
	uint8_t index = r->s.index & 0x7f, v;

	if (off == 0)
		return 0xff; /* the index is for writing */
	if (index == REG_A)
		return read_a(r);
	sync(r);
	v = r->s.cmos[index];
	if (index == REG_C) {
		r->s.cmos[REG_C] = 0;
		update_irq(r);
	}
	arm(r);
	return v;
}

static void write_control(struct rtc *r, uint8_t index, uint8_t v)
{
	struct rtc_state *s = &r->s;
	bool was_counting = counting(s);

	if (index == REG_A)
		s->cmos[REG_A] = v & (uint8_t)~A_UIP;
	else
		s->cmos[REG_B] = v & B_SET ? v & (uint8_t)~B_UIE : v; /* SET clears UIE */
	if (!was_counting && counting(s))
		store_registers(r);
	if (index == REG_A && period(s))
		s->ticks = clock_now() / period(s);
}

static void write_register(struct rtc *r, uint8_t index, uint8_t v)
{
	bool is_time = index <= REG_YEAR && (index & 1 ? index >= REG_MDAY : true);

	if (index == REG_A || index == REG_B) {
		write_control(r, index, v);
	} else if (index != REG_C && index != REG_D) {
		r->s.cmos[index] = v;
		if ((is_time || index == RTC_CENTURY) && counting(&r->s))
			store_registers(r);
	}
}

static void rtc_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct rtc *r = dev;

	if (off == 0) {
		r->s.index = (uint8_t)value;
		return;
	}
	sync(r);
	write_register(r, r->s.index & 0x7f, (uint8_t)value);
	update_irq(r);
	arm(r);
}

static const struct bus_ops rtc_ops = {rtc_read, rtc_write, 1, 1};

bool rtc_nmi_masked(const struct rtc *r) { return r->s.index & INDEX_NMI; }

void rtc_reset(struct rtc *r)
{
	sync(r);
	r->s.index = 0;
	r->s.cmos[REG_B] &= (uint8_t)~(B_PIE | B_AIE | B_UIE | B_SQWE);
	r->s.cmos[REG_C] = 0;
	update_irq(r);
	arm(r);
}

/* What firmware would have left in the RAM. */
static void fill_cmos(uint8_t *cmos, uint64_t below_4g, uint64_t above_4g)
{
	uint64_t ext_kib = below_4g > MIB ? (below_4g - MIB) / KIB : 0;
	uint64_t ext_64k = below_4g > 16 * MIB ? (below_4g - 16 * MIB) / (64 * KIB) : 0;
	uint64_t high_64k = min_u64(above_4g / (64 * KIB), 0xffffff);
	unsigned sum = 0;

	cmos[REG_A] = A_DIVIDER_ON | 6;
	cmos[REG_B] = B_24H;
	cmos[REG_D] = D_VRT;
	cmos[0x14] = 0x06; /* equipment: FPU, mouse port */
	put_le16(cmos + 0x15, 640);
	put_le16(cmos + 0x17, (uint16_t)min_u64(ext_kib, 0xffff));
	put_le16(cmos + 0x30, (uint16_t)min_u64(ext_kib, 0xffff));
	put_le16(cmos + 0x34, (uint16_t)min_u64(ext_64k, 0xffff));
	put_le16(cmos + 0x5b, (uint16_t)high_64k);
	cmos[0x5d] = (uint8_t)(high_64k >> 16);
	for (unsigned i = 0x10; i <= 0x2d; i++)
		sum += cmos[i];
	cmos[0x2e] = (uint8_t)(sum >> 8);
	cmos[0x2f] = (uint8_t)sum;
}

struct rtc *rtc_new(const struct rtc_config *cfg, struct error *err)
{
	struct rtc *r = calloc(1, sizeof(*r));

	if (!r) {
		error_set(err, "rtc: out of memory");
		return NULL;
	}
	r->bus = cfg->bus;
	r->irq = cfg->irq;
	timer_init(&r->timer, cfg->timers, on_timer, r);
	fill_cmos(r->s.cmos, cfg->ram_below_4g, cfg->ram_above_4g);
	r->s.seen = guest_time(r, NULL);
	r->s.ticks = clock_now() / period(&r->s);
	if (!bus_map(cfg->bus, BUS_PIO, RTC_PORT, 2, &rtc_ops, r, "rtc", err)) {
		free(r);
		return NULL;
	}
	rtc_reset(r);
	return r;
}

void rtc_free(struct rtc *r)
{
	if (!r)
		return;
	timer_cancel(&r->timer);
	bus_unmap(r->bus, BUS_PIO, RTC_PORT);
	free(r);
}
