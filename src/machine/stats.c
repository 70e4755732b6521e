#include "machine/stats.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	uint64_t pages = 0;

	if (!f)
		return 0;
	if (fscanf(f, "%*u %" SCNu64, &pages) != 1)
		pages = 0;
	fclose(f);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t guest_bytes(const struct machine *m)
{
	struct stat st;

	return fstat(ram_fd(m->ram), &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

static uint64_t process_time(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void machine_stats(struct machine *m, const struct counter_sink *out)
{
	struct bus_counts bus;
	uint64_t resets;

	pthread_mutex_lock(&m->lock);
	bus = *bus_counts(m->bus);
	resets = m->resets;
	pthread_mutex_unlock(&m->lock);
	counter_put(out, "uptime", "ns", false, (uint64_t)(clock_now() - m->started), "time since the machine was made");
	counter_put(out, "time.process", "ns", false, process_time(), "CPU time of the VMM, all threads");
	counter_put(out, "resets", "", false, resets, "times that the machine was reset");
	counter_put(out, "memory.size", "bytes", true, ram_size(m->ram), "RAM that the guest sees");
	counter_put(out, "memory.guest", "bytes", true, guest_bytes(m), "of it, taken from the host");
	counter_put(out, "memory.resident", "bytes", true, resident_bytes(), "resident memory of the VMM, with that of the guest");
	counter_put(out, "bus.reads", "", false, bus.reads, "device reads");
	counter_put(out, "bus.writes", "", false, bus.writes, "device writes");
	counter_put(out, "bus.unclaimed", "", false, bus.unclaimed, "accesses that no device took");
	m->cfg.board->stats(m, out);
	m->engine->ops->stats(m->engine, ENGINE_VM, out);
}

static void print_one(void *ctx, const struct counter *c)
{
	fprintf(ctx, "  %-28s %20" PRIu64 "%s%s\n", c->name, c->value, *c->unit ? " " : "", c->unit);
}

void machine_stats_print(struct machine *m, FILE *out)
{
	struct counter_sink sink = {.put = print_one, .ctx = out};

	fprintf(out, "machine (%s engine):\n", m->engine->ops->name);
	machine_stats(m, &sink);
	for (unsigned i = 0; i < m->cfg.ncpus; i++) {
		fprintf(out, "vCPU %u:\n", i);
		m->engine->ops->stats(m->engine, i, &sink);
	}
	fflush(out);
}
