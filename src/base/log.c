#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LINES_PER_SECOND 100

/* Process-wide by nature, as stderr is. */
static struct {
	pthread_mutex_t lock;
	enum log_level max;
	time_t second;
	unsigned lines;
	uint64_t dropped;
} logger = {.lock = PTHREAD_MUTEX_INITIALIZER, .max = LOG_INFO};

static const char *const level_names[] = {"error", "warning", "info", "debug"};

void log_set_level(enum log_level max)
{
	pthread_mutex_lock(&logger.lock);
	logger.max = max;
	pthread_mutex_unlock(&logger.lock);
}

static void put_line(const char *line, size_t len)
{
	/* One write a line, so that lines of threads do not mix; what stderr does not take is lost. */
	if (write(STDERR_FILENO, line, len) < 0)
		return;
}

/* True when a line may be printed now; tells of dropped ones when a new second begins. */
static bool admit_locked(void)
{
	struct timespec ts;
	char line[96];

	clock_gettime(CLOCK_MONOTONIC, &ts);
	if (ts.tv_sec != logger.second) {
		logger.second = ts.tv_sec;
		logger.lines = 0;
		if (logger.dropped) {
			int n = snprintf(line, sizeof(line), "doppel: warning: %llu log lines dropped\n",
					 (unsigned long long)logger.dropped);

			logger.dropped = 0;
			logger.lines++;
			put_line(line, (size_t)n);
		}
	}
	if (logger.lines >= LINES_PER_SECOND) {
		logger.dropped++;
		return false;
	}
	logger.lines++;
	return true;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	int n, m;

	pthread_mutex_lock(&logger.lock);
	if (level <= logger.max && admit_locked()) {
		n = snprintf(line, sizeof(line), "doppel: %s: ", level_names[level]);
		va_start(ap, fmt);
		m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
		va_end(ap);
		if (m > 0)
			n += m;
		if (n > (int)sizeof(line) - 2)
			n = sizeof(line) - 2;
		line[n++] = '\n';
		put_line(line, (size_t)n);
	}
	pthread_mutex_unlock(&logger.lock);
}
