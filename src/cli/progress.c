#include "cli/progress.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BAR 30u

static void end_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
	sigaddset(set, SIGQUIT);
}

static double seconds_between(const struct timespec *a, const struct timespec *b)
{
	return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_nsec - a->tv_nsec) / 1e9;
}

void progress_begin(struct progress *p, const char *what)
{
	sigset_t set;

	*p = (struct progress){.what = what, .terminal = isatty(STDERR_FILENO)};
	clock_gettime(CLOCK_MONOTONIC, &p->start);
	end_signals(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

const char *size_text(uint64_t bytes, char out[32])
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 1024 && u + 1 < ARRAY_LEN(units)) {
		v /= 1024;
		u++;
	}
	if (u == 0 || v == (double)(uint64_t)v)
		snprintf(out, 32, "%.0f %s", v, units[u]);
	else
		snprintf(out, 32, "%.*f %s", v < 10 ? 2 : v < 100 ? 1 : 0, v, units[u]);
	return out;
}

void progress_show(void *progress, uint64_t done, uint64_t total)
{
	struct progress *p = progress;
	char bar[BAR + 1], speed[32];
	struct timespec now;
	double passed, left;
	unsigned full;

	clock_gettime(CLOCK_MONOTONIC, &now);
	passed = seconds_between(&p->start, &now);
	if (!p->terminal || !total || passed < 0.5 || (p->shown && seconds_between(&p->last, &now) < 0.1))
		return;
	p->last = now;
	p->shown = true;
	full = (unsigned)mul_div_u64(done, BAR, total);
	for (unsigned i = 0; i < BAR; i++)
		bar[i] = i < full ? '#' : '.';
	bar[BAR] = 0;
	left = done ? passed * (double)(total - done) / (double)done : 0;
	fprintf(stderr, "\r\033[K%s [%s] %3u%%  %s/s  %u:%02u left", p->what, bar,
		(unsigned)mul_div_u64(done, 100, total), size_text((uint64_t)((double)done / passed), speed),
		(unsigned)(left / 60), (unsigned)left % 60);
	fflush(stderr);
}

bool progress_stop(void *progress)
{
	struct progress *p = progress;
	struct timespec now = {0};
	sigset_t set;
	int sig;

	end_signals(&set);
	sig = sigtimedwait(&set, NULL, &now);
	if (sig > 0)
		p->signal = sig;
	return p->signal != 0;
}

void progress_end(struct progress *p)
{
	if (p->shown)
		fprintf(stderr, "\r\033[K");
	p->shown = false;
}
