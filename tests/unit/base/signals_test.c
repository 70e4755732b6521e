/* Signals for the event loop: each is seen, and those of a CPU's own faults wake nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/signals.h"

#define FAULTS 2000

static sigset_t some(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGTERM);
	return set;
}

static int block(void **state)
{
	sigset_t set = some();

	(void)state;
	return pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static int await(struct signals *s)
{
	struct pollfd p = {.fd = signals_fd(s), .events = POLLIN};

	return poll(&p, 1, 5000) == 1 ? signals_take(s) : -1;
}

static void each_is_seen(void **state)
{
	sigset_t set = some();
	struct signals *s;

	(void)state;
	kill(getpid(), SIGTERM); /* one that was there before */
	s = signals_new(&set, NULL);
	assert_non_null(s);
	assert_int_equal(await(s), SIGTERM);
	for (int i = 0; i < 100; i++) {
		kill(getpid(), SIGUSR1);
		assert_int_equal(await(s), SIGUSR1);
	}
	assert_int_equal(signals_take(s), 0);
	signals_free(s);
}

static void ends_with_some_left(void **state)
{
	sigset_t set = some(), pending;

	(void)state;
	for (int i = 0; i < 50; i++) {
		struct signals *s = signals_new(&set, NULL);

		assert_non_null(s);
		kill(getpid(), SIGUSR1);
		signals_free(s);
	}
	assert_int_equal(sigpending(&pending), 0);
	if (sigismember(&pending, SIGUSR1)) {
		struct signals *s = signals_new(&set, NULL);

		assert_int_equal(await(s), SIGUSR1);
		signals_free(s);
	}
}

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	mprotect((void *)((uintptr_t)info->si_addr & ~UINT64_C(4095)), 4096, PROT_READ | PROT_WRITE);
}

struct watcher {
	struct signals *signals;
	atomic_int tid, done;
};

static void *watch(void *arg)
{
	struct watcher *w = arg;
	struct pollfd p = {.fd = signals_fd(w->signals), .events = POLLIN};

	atomic_store(&w->tid, (int)syscall(SYS_gettid));
	while (!atomic_load(&w->done))
		poll(&p, 1, 20);
	return NULL;
}

static unsigned long sleeps_of(int tid)
{
	char path[64], line[128];
	unsigned long n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/status", tid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "voluntary_ctxt_switches: %lu", &n);
	if (f)
		fclose(f);
	return n;
}

static void faults_wake_nobody(void **state)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, old;
	struct watcher w = {0};
	sigset_t set = some();
	pthread_t thread;
	unsigned long before, after;
	volatile char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)state;
	assert_true(page != MAP_FAILED);
	w.signals = signals_new(&set, NULL);
	assert_non_null(w.signals);
	assert_int_equal(pthread_create(&thread, NULL, watch, &w), 0);
	while (!atomic_load(&w.tid))
		usleep(1000);
	assert_int_equal(sigaction(SIGSEGV, &action, &old), 0);
	before = sleeps_of(atomic_load(&w.tid));
	for (int i = 0; i < FAULTS; i++) {
		mprotect((void *)page, 4096, PROT_READ);
		usleep(10); /* a waking one gets the time to wake */
		*page = 1;
	}
	after = sleeps_of(atomic_load(&w.tid));
	sigaction(SIGSEGV, &old, NULL);
	atomic_store(&w.done, 1);
	pthread_join(thread, NULL);
	signals_free(w.signals);
	munmap((void *)page, 4096);
	assert_in_range(after - before, 0, FAULTS / 4); /* its own timeouts */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(each_is_seen, block),
		cmocka_unit_test_setup(ends_with_some_left, block),
		cmocka_unit_test_setup(faults_wake_nobody, block),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
