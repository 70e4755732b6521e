/* The event loop and the log's rate limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/timer.h"

struct rig {
	struct loop *loop;
	pthread_t thread;
	int sv[2]; /* the loop watches sv[0] */
	atomic_uint calls, last, inside;
	unsigned sleep_us;
};

static void *run(void *ctx)
{
	loop_run(ctx);
	return NULL;
}

static void on_event(void *ctx, unsigned events)
{
	struct rig *r = ctx;
	char buf[16];

	atomic_store(&r->inside, 1);
	atomic_store(&r->last, events);
	atomic_fetch_add(&r->calls, 1);
	if (events & LOOP_READ)
		while (recv(r->sv[0], buf, sizeof(buf), MSG_DONTWAIT) > 0)
			;
	usleep(r->sleep_us);
	atomic_store(&r->inside, 0);
}

static int setup(void **state)
{
	static struct rig r;

	memset(&r, 0, sizeof(r));
	r.loop = loop_new(NULL);
	assert_non_null(r.loop);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, r.sv), 0);
	assert_int_equal(pthread_create(&r.thread, NULL, run, r.loop), 0);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	loop_stop(r->loop);
	pthread_join(r->thread, NULL);
	loop_free(r->loop);
	close(r->sv[0]);
	close(r->sv[1]);
	return 0;
}

static bool await_calls(struct rig *r, unsigned n)
{
	for (int i = 0; i < 5000 && atomic_load(&r->calls) < n; i++)
		usleep(1000);
	return atomic_load(&r->calls) >= n;
}

static void test_read_write_pause(void **state)
{
	struct rig *r = *state;

	assert_true(loop_add(r->loop, r->sv[0], LOOP_READ, on_event, r, NULL));
	assert_int_equal(write(r->sv[1], "x", 1), 1);
	assert_true(await_calls(r, 1));
	assert_int_equal(atomic_load(&r->last), LOOP_READ);
	assert_true(loop_mod(r->loop, r->sv[0], 0));
	assert_int_equal(write(r->sv[1], "x", 1), 1);
	usleep(20000);
	assert_int_equal(atomic_load(&r->calls), 1);
	assert_true(loop_mod(r->loop, r->sv[0], LOOP_READ)); /* level-triggered: it is still there */
	assert_true(await_calls(r, 2));
	assert_true(loop_mod(r->loop, r->sv[0], LOOP_WRITE));
	assert_true(await_calls(r, 5));
	assert_int_equal(atomic_load(&r->last), LOOP_WRITE);
	loop_del(r->loop, r->sv[0]);
	assert_false(loop_mod(r->loop, r->sv[0], LOOP_READ));
}

static void test_hang_up(void **state)
{
	struct rig *r = *state;
	unsigned calls;

	assert_true(loop_add(r->loop, r->sv[0], 0, on_event, r, NULL));
	shutdown(r->sv[1], SHUT_RDWR);
	usleep(20000);
	assert_int_equal(atomic_load(&r->calls), 0); /* paused: hang-ups too */
	assert_true(loop_mod(r->loop, r->sv[0], LOOP_READ));
	assert_true(await_calls(r, 1));
	assert_int_equal(atomic_load(&r->last), LOOP_READ);
	loop_del(r->loop, r->sv[0]);
	calls = atomic_load(&r->calls);
	usleep(20000);
	assert_int_equal(atomic_load(&r->calls), calls);
}

static void test_refused(void **state)
{
	struct rig *r = *state;
	struct error err = {0};
	int fd = open("/dev/null", O_RDONLY);

	assert_true(loop_add(r->loop, r->sv[0], LOOP_READ, on_event, r, NULL));
	assert_false(loop_add(r->loop, r->sv[0], LOOP_READ, on_event, r, &err));
	assert_true(err.msg[0]);
	assert_false(loop_add(r->loop, fd, LOOP_READ, on_event, r, &err)); /* EPERM of epoll */
	assert_false(loop_add(r->loop, -1, LOOP_READ, on_event, r, &err));
	assert_false(loop_mod(r->loop, fd, LOOP_READ));
	loop_del(r->loop, fd);
	loop_del(r->loop, -1);
	close(fd);
}

static void test_del_waits_for_the_callback(void **state)
{
	struct rig *r = *state;

	r->sleep_us = 20000;
	for (int i = 0; i < 5; i++) {
		unsigned before = atomic_load(&r->calls);

		assert_true(loop_add(r->loop, r->sv[0], LOOP_READ, on_event, r, NULL));
		assert_int_equal(write(r->sv[1], "x", 1), 1);
		assert_true(await_calls(r, before + 1));
		loop_del(r->loop, r->sv[0]);
		assert_int_equal(atomic_load(&r->inside), 0);
	}
}

static struct loop *stopped_by_signal;

static void on_signal(int sig) { loop_stop(stopped_by_signal); }

static void test_stop_from_a_signal_handler(void **state)
{
	struct loop *l = loop_new(NULL);
	pthread_t thread;

	stopped_by_signal = l;
	signal(SIGUSR1, on_signal);
	assert_int_equal(pthread_create(&thread, NULL, run, l), 0);
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	loop_run(l); /* stays stopped */
	loop_free(l);
	signal(SIGUSR1, SIG_DFL);
}

/* Lines on stderr while fn runs. */
static unsigned count_lines(void (*fn)(void), char *last, size_t len)
{
	int saved = dup(2), p[2];
	static char buf[1 << 16];
	unsigned lines = 0;
	ssize_t n;

	assert_int_equal(pipe(p), 0);
	dup2(p[1], 2);
	close(p[1]);
	fn();
	dup2(saved, 2);
	close(saved);
	n = read(p[0], buf, sizeof(buf) - 1);
	close(p[0]);
	if (n < 0)
		n = 0;
	buf[n] = '\0';
	for (char *s = buf; (s = strchr(s, '\n')); s++)
		lines++;
	snprintf(last, len, "%.*s", (int)strcspn(buf, "\n"), buf);
	return lines;
}

static void flood(void)
{
	for (int i = 0; i < 5000; i++)
		log_warn("line %d", i);
}

static void one(void) { log_error("after"); }
static void quiet(void) { log_debug("hidden %s", "text"); }

static void longest(void)
{
	static char text[5000];

	memset(text, 'x', sizeof(text) - 1);
	log_info("%s", text);
}

static void test_log_is_limited(void **state)
{
	char first[256];

	assert_in_range(count_lines(flood, first, sizeof(first)), 100, 201); /* one second may end meanwhile */
	assert_string_equal(first, "doppel: warning: line 0");
	sleep(1);
	assert_int_equal(count_lines(one, first, sizeof(first)), 2);
	assert_non_null(strstr(first, "log lines dropped"));
	assert_int_equal(count_lines(quiet, first, sizeof(first)), 0);
	assert_int_equal(count_lines(longest, first, sizeof(first)), 1);
	log_set_level(LOG_ERROR);
	assert_int_equal(count_lines(longest, first, sizeof(first)), 0);
	log_set_level(LOG_INFO);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_read_write_pause), T(test_hang_up), T(test_refused), T(test_del_waits_for_the_callback),
		cmocka_unit_test(test_stop_from_a_signal_handler), cmocka_unit_test(test_log_is_limited),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
