#include "dev/uart.h"

#include <stdlib.h>

#define FIFO_DEPTH 16
#define CLOCK_HZ UINT64_C(1843200)

/* Register offsets (PC16550D, table II). */
enum {
	REG_DATA, /* RBR read, THR write, DLL with DLAB */
	REG_IER,  /* DLM with DLAB */
	REG_IIR,  /* FCR write */
	REG_LCR,
	REG_MCR,
	REG_LSR,
	REG_MSR,
	REG_SCR,
};

enum {
	IER_RDA = 0x01, IER_THRE = 0x02, IER_LINE = 0x04, IER_MODEM = 0x08,
	IIR_NONE = 0x01, IIR_MODEM = 0x00, IIR_THRE = 0x02, IIR_RDA = 0x04, IIR_LINE = 0x06, IIR_TIMEOUT = 0x0c,
	IIR_FIFO = 0xc0,
	FCR_ENABLE = 0x01, FCR_CLEAR_RX = 0x02, FCR_CLEAR_TX = 0x04, FCR_DMA = 0x08, FCR_TRIGGER = 0xc0,
	LCR_WORD = 0x03, LCR_STOP = 0x04, LCR_PARITY = 0x08, LCR_BREAK = 0x40, LCR_DLAB = 0x80,
	MCR_DTR = 0x01, MCR_RTS = 0x02, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10, MCR_ALL = 0x1f,
	LSR_DR = 0x01, LSR_OE = 0x02, LSR_PE = 0x04, LSR_FE = 0x08, LSR_BI = 0x10, LSR_THRE = 0x20, LSR_TEMT = 0x40,
	LSR_FIFO_ERROR = 0x80, LSR_CHAR_ERRORS = LSR_PE | LSR_FE | LSR_BI, LSR_ERRORS = LSR_CHAR_ERRORS | LSR_OE,
	MSR_DCTS = 0x01, MSR_DDSR = 0x02, MSR_TERI = 0x04, MSR_DDCD = 0x08,
	MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80,
	MSR_PEER = MSR_CTS | MSR_DSR | MSR_DCD, /* what a connected peer asserts */
};

/* All that a guest can see. */
struct uart_state {
	uint16_t divisor;
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scr;
	uint8_t thre_pending; /* THRE interrupt not yet acknowledged */
	uint8_t rx_timeout;   /* character timeout interrupt pending */
	uint8_t rx_head, rx_count;
	uint8_t rx[FIFO_DEPTH];
	uint8_t rx_errors[FIFO_DEPTH]; /* LSR_CHAR_ERRORS of each character, shown when it reaches the top */
};

struct uart {
	struct uart_state s;
	struct bus *bus;
	enum bus_space space;
	uint64_t base;
	struct irq_line irq;
	struct chardev *chr;
	struct timer timeout;
};

static unsigned fifo_depth(const struct uart_state *s)
{
	return s->fcr & FCR_ENABLE ? FIFO_DEPTH : 1;
}

static unsigned fifo_trigger(const struct uart_state *s)
{
	static const uint8_t level[] = {1, 4, 8, 14};

	return s->fcr & FCR_ENABLE ? level[s->fcr >> 6] : 1;
}

/* The pending interrupt of highest priority (table IV). */
static uint8_t interrupt_id(const struct uart_state *s)
{
	if (s->ier & IER_LINE && s->lsr & LSR_ERRORS)
		return IIR_LINE;
	if (s->ier & IER_RDA && s->rx_count >= fifo_trigger(s))
		return IIR_RDA;
	if (s->ier & IER_RDA && s->rx_timeout)
		return IIR_TIMEOUT;
	if (s->ier & IER_THRE && s->thre_pending)
		return IIR_THRE;
	if (s->ier & IER_MODEM && s->msr & (MSR_DCTS | MSR_DDSR | MSR_TERI | MSR_DDCD))
		return IIR_MODEM;
	return IIR_NONE;
}

/*
 * The line follows the chip's INTR pin. A PC gates it with OUT2; later super-I/O chips need not, and guests written for
 * emulators forget OUT2, so it is not gated here.
 */
static void update_irq(struct uart *u)
{
	irq_set(&u->irq, interrupt_id(&u->s) != IIR_NONE);
}

/* ns that one character takes on the wire. */
static int64_t char_time(const struct uart_state *s)
{
	uint64_t divisor = s->divisor ? s->divisor : 65536;
	uint64_t bits = 1 + 5 + (s->lcr & LCR_WORD) + (s->lcr & LCR_PARITY ? 1 : 0) + (s->lcr & LCR_STOP ? 2 : 1);

	return (int64_t)(bits * divisor * 16 * 1000000000 / CLOCK_HZ);
}

/* Four character times without a character in or out raise the timeout interrupt (section 8.4). */
static void restart_timeout(struct uart *u)
{
	struct uart_state *s = &u->s;

	if (s->fcr & FCR_ENABLE && s->rx_count)
		timer_arm(&u->timeout, clock_now() + 4 * char_time(s));
	else
		timer_cancel(&u->timeout);
}

static void on_timeout(void *ctx)
{
	struct uart *u = ctx;

	u->s.rx_timeout = u->s.rx_count != 0;
	update_irq(u);
}

/* LSR bits that depend on the receive FIFO, after a character reached its top or it changed. */
static void update_lsr(struct uart_state *s, bool new_top)
{
	bool errors = false;

	s->lsr &= (uint8_t)~(LSR_DR | LSR_FIFO_ERROR);
	if (s->rx_count)
		s->lsr |= LSR_DR;
	if (new_top && s->rx_count)
		s->lsr |= s->rx_errors[s->rx_head];
	for (unsigned i = 0; i < s->rx_count; i++)
		errors |= s->rx_errors[(s->rx_head + i) % FIFO_DEPTH] != 0;
	if (errors && s->fcr & FCR_ENABLE)
		s->lsr |= LSR_FIFO_ERROR;
}

static void rx_push(struct uart *u, uint8_t byte, uint8_t errors)
{
	struct uart_state *s = &u->s;
	unsigned at;

	if (s->rx_count == fifo_depth(s)) {
		s->lsr |= LSR_OE;
		if (!(s->fcr & FCR_ENABLE)) { /* the new character overwrites RBR; a FIFO keeps the old ones */
			s->rx[s->rx_head] = byte;
			s->lsr |= errors;
		}
		return;
	}
	at = (s->rx_head + s->rx_count) % FIFO_DEPTH;
	s->rx[at] = byte;
	s->rx_errors[at] = errors;
	s->rx_count++;
	update_lsr(s, s->rx_count == 1);
}

static void rx_clear(struct uart *u)
{
	struct uart_state *s = &u->s;

	s->rx_head = s->rx_count = 0;
	s->rx_timeout = 0;
	update_lsr(s, false);
	timer_cancel(&u->timeout);
}

/* Room for the peer's characters: none in loopback mode, where SIN is disconnected. */
static size_t rx_room(const struct uart_state *s)
{
	return s->mcr & MCR_LOOP ? 0 : fifo_depth(s) - s->rx_count;
}

static size_t uart_receive(void *ctx, const uint8_t *buf, size_t len)
{
	struct uart *u = ctx;
	size_t n = min_u64(len, rx_room(&u->s));

	for (size_t i = 0; i < n; i++)
		rx_push(u, buf[i], 0);
	if (n) {
		restart_timeout(u);
		update_irq(u);
	}
	return n;
}

static void want_input(struct uart *u)
{
	if (u->chr && rx_room(&u->s))
		chardev_resume(u->chr);
}

static uint8_t read_rbr(struct uart *u)
{
	struct uart_state *s = &u->s;
	uint8_t v;

	if (!s->rx_count)
		return 0;
	v = s->rx[s->rx_head];
	s->rx_errors[s->rx_head] = 0;
	s->rx_head = (s->rx_head + 1) % FIFO_DEPTH;
	s->rx_count--;
	s->rx_timeout = 0;
	update_lsr(s, true);
	restart_timeout(u);
	update_irq(u);
	want_input(u);
	return v;
}

/* The transmitter is infinitely fast: THR is empty again when the write ends, and the interrupt pulses. */
static void write_thr(struct uart *u, uint8_t v)
{
	struct uart_state *s = &u->s;

	s->thre_pending = 0;
	update_irq(u);
	if (s->mcr & MCR_LOOP) {
		rx_push(u, v & (uint8_t)((1u << (5 + (s->lcr & LCR_WORD))) - 1), 0);
		restart_timeout(u);
	} else if (u->chr) {
		/* All eight bits, whatever the word length: guests without firmware forget to set it. */
		chardev_write(u->chr, &v, 1);
	}
	s->thre_pending = 1;
	update_irq(u);
}

static void write_ier(struct uart *u, uint8_t v)
{
	struct uart_state *s = &u->s;

	v &= IER_RDA | IER_THRE | IER_LINE | IER_MODEM;
	if (v & ~s->ier & IER_THRE)
		s->thre_pending = 1; /* enabling it with THR empty raises it */
	s->ier = v;
	update_irq(u);
}

static void write_fcr(struct uart *u, uint8_t v)
{
	struct uart_state *s = &u->s;
	bool toggled = (v ^ s->fcr) & FCR_ENABLE;

	if (toggled || (v & FCR_ENABLE && v & FCR_CLEAR_RX))
		rx_clear(u);
	/* The other bits are only programmed together with bit 0. */
	s->fcr = v & FCR_ENABLE ? v & (FCR_ENABLE | FCR_DMA | FCR_TRIGGER) : 0;
	update_lsr(s, false);
	update_irq(u);
	want_input(u);
}

/* The modem inputs as the MCR and the peer make them, with the delta bits that the change sets. */
static void update_msr(struct uart *u)
{
	struct uart_state *s = &u->s;
	uint8_t now = u->chr ? MSR_PEER : 0, changed;

	if (s->mcr & MCR_LOOP)
		now = (s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
		      (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
	changed = (now ^ s->msr) & 0xf0;
	if (changed & MSR_CTS)
		s->msr |= MSR_DCTS;
	if (changed & MSR_DSR)
		s->msr |= MSR_DDSR;
	if (changed & MSR_RI && !(now & MSR_RI))
		s->msr |= MSR_TERI; /* the trailing edge only */
	if (changed & MSR_DCD)
		s->msr |= MSR_DDCD;
	s->msr = (s->msr & 0x0f) | now;
}

static void write_mcr(struct uart *u, uint8_t v)
{
	u->s.mcr = v & MCR_ALL;
	update_msr(u);
	update_irq(u);
	want_input(u);
}

static void write_lcr(struct uart *u, uint8_t v)
{
	bool begin_break = v & ~u->s.lcr & LCR_BREAK;

	u->s.lcr = v;
	if (begin_break && u->s.mcr & MCR_LOOP) {
		rx_push(u, 0, LSR_BI | LSR_FE);
		restart_timeout(u);
		update_irq(u);
	}
}

static uint8_t read_iir(struct uart *u)
{
	struct uart_state *s = &u->s;
	uint8_t id = interrupt_id(s);

	if (id == IIR_THRE) {
		s->thre_pending = 0;
		update_irq(u);
	}
	return id | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_lsr(struct uart *u)
{
	struct uart_state *s = &u->s;
	uint8_t v = s->lsr;

	s->lsr &= (uint8_t)~LSR_ERRORS;
	if (s->rx_count)
		s->rx_errors[s->rx_head] = 0;
	update_lsr(s, false);
	update_irq(u);
	return v;
}

static uint8_t read_msr(struct uart *u)
{
	uint8_t v = u->s.msr;

	u->s.msr &= 0xf0;
	update_irq(u);
	return v;
}

static uint64_t uart_read(void *dev, uint64_t off, unsigned size)
{
	struct uart *u = dev;
	const struct uart_state *s = &u->s;
	bool dlab = s->lcr & LCR_DLAB;

	switch (off) {
	case REG_DATA:
		return dlab ? s->divisor & 0xff : read_rbr(u);
	case REG_IER:
		return dlab ? s->divisor >> 8 : s->ier;
	case REG_IIR:
		return read_iir(u);
	case REG_LCR:
		return s->lcr;
	case REG_MCR:
		return s->mcr;
	case REG_LSR:
		return read_lsr(u);
	case REG_MSR:
		return read_msr(u);
	default:
		return s->scr;
	}
}

static void uart_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct uart *u = dev;
	struct uart_state *s = &u->s;
	bool dlab = s->lcr & LCR_DLAB;
	uint8_t v = (uint8_t)value;

	switch (off) {
	case REG_DATA:
		if (dlab)
			s->divisor = (s->divisor & 0xff00) | v;
		else
			write_thr(u, v);
		break;
	case REG_IER:
		if (dlab)
			s->divisor = (uint16_t)((s->divisor & 0x00ff) | v << 8);
		else
			write_ier(u, v);
		break;
	case REG_IIR:
		write_fcr(u, v);
		break;
	case REG_LCR:
		write_lcr(u, v);
		break;
	case REG_MCR:
		write_mcr(u, v);
		break;
	case REG_SCR:
		s->scr = v;
		break;
	default: /* LSR and MSR are for reading */
		break;
	}
}

static const struct bus_ops uart_ops = {.read = uart_read, .write = uart_write, .min_size = 1, .max_size = 1};

/* Master reset (table III). The divisor and the scratch register are undefined by it: 9600 baud and 0 here. */
void uart_reset(struct uart *u)
{
	timer_cancel(&u->timeout);
	u->s = (struct uart_state){.divisor = 12, .lsr = LSR_THRE | LSR_TEMT};
	u->s.msr = u->chr ? MSR_PEER : 0;
	update_irq(u);
	want_input(u);
}

struct uart *uart_new(const struct uart_config *cfg, struct error *err)
{
	struct uart *u = calloc(1, sizeof(*u));

	if (!u) {
		error_set(err, "uart: out of memory");
		return NULL;
	}
	u->bus = cfg->bus;
	u->space = cfg->space;
	u->base = cfg->base;
	u->irq = cfg->irq;
	u->chr = cfg->chr;
	timer_init(&u->timeout, cfg->timers, on_timeout, u);
	if (!bus_map(cfg->bus, cfg->space, cfg->base, UART_LEN, &uart_ops, u, cfg->name, err)) {
		free(u);
		return NULL;
	}
	uart_reset(u);
	if (u->chr)
		chardev_set_client(u->chr, &(struct chardev_client){.receive = uart_receive, .ctx = u});
	return u;
}

void uart_free(struct uart *u)
{
	if (!u)
		return;
	if (u->chr)
		chardev_set_client(u->chr, &(struct chardev_client){0});
	timer_cancel(&u->timeout);
	bus_unmap(u->bus, u->space, u->base);
	free(u);
}
