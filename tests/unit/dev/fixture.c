#include "fixture.h"

#include <string.h>
#include <time.h>

static void set_gsi(void *ctx, unsigned gsi, bool level)
{
	struct fixture *f = ctx;

	assert_in_range(gsi, 0, 31);
	if (level && !f->level[gsi])
		f->edges[gsi]++;
	f->level[gsi] = level;
}

static bool msi(void *ctx, uint64_t addr, uint32_t data)
{
	struct fixture *f = ctx;

	f->msi[f->nmsi++ % 64] = (struct fake_msi){addr, data};
	return true;
}

void fixture_init(struct fixture *f)
{
	memset(f, 0, sizeof(*f));
	f->bus = bus_new();
	assert_non_null(f->bus);
	timer_queue_init(&f->timers);
	f->sink = (struct irq_sink){set_gsi, msi, f};
}

void fixture_fini(struct fixture *f)
{
	assert_null(f->timers.first); /* a freed device left no timer behind */
	bus_free(f->bus);
}

struct irq_line fixture_line(struct fixture *f, unsigned gsi) { return (struct irq_line){&f->sink, gsi}; }

void fixture_sleep(struct fixture *f, int64_t ns)
{
	struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	nanosleep(&ts, NULL);
	timer_queue_run(&f->timers, clock_now());
}

void chardev_set_client(struct chardev *c, const struct chardev_client *client) { c->client = *client; }
void chardev_resume(struct chardev *c) { c->resumed++; }

void chardev_write(struct chardev *c, const void *buf, size_t len)
{
	size_t n = min_u64(len, sizeof(c->out) - c->nout);

	memcpy(c->out + c->nout, buf, n);
	c->nout += n;
}
