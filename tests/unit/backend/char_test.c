/* The character back ends against real files, sockets, pipes and terminals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "backend/char/chardev.h"
#include "base/bits.h"
#include "base/log.h"
#include "base/timer.h"

struct rig {
	struct loop *loop;
	pthread_t thread;
	pthread_mutex_t lock;
	char dir[64], path[80];
	/* What the client got. */
	uint8_t in[65536];
	size_t nin, room;
	atomic_uint escapes;
};

static void *run(void *ctx)
{
	loop_run(ctx);
	return NULL;
}

static size_t receive(void *ctx, const uint8_t *buf, size_t len)
{
	struct rig *r = ctx;
	size_t n = min_u64(len, r->room - r->nin);

	memcpy(r->in + r->nin, buf, n);
	r->nin += n;
	return n;
}

static void on_escape(void *ctx) { atomic_fetch_add(&((struct rig *)ctx)->escapes, 1); }

static void rig_init(struct rig *r)
{
	memset(r, 0, sizeof(*r));
	r->room = sizeof(r->in);
	pthread_mutex_init(&r->lock, NULL);
	r->loop = loop_new(NULL);
	assert_non_null(r->loop);
	assert_int_equal(pthread_create(&r->thread, NULL, run, r->loop), 0);
	strcpy(r->dir, "/tmp/doppel-char-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	snprintf(r->path, sizeof(r->path), "%s/x", r->dir);
}

static void rig_fini(struct rig *r)
{
	loop_stop(r->loop);
	pthread_join(r->thread, NULL);
	loop_free(r->loop);
	unlink(r->path);
	assert_int_equal(rmdir(r->dir), 0); /* nothing left behind */
}

static int setup(void **state)
{
	static struct rig r;

	rig_init(&r);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	rig_fini(*state);
	return 0;
}

static struct chardev *open_spec(struct rig *r, const char *kind, struct error *err)
{
	char spec[256];
	struct chardev *c;

	snprintf(spec, sizeof(spec), "%s%s", kind, strchr(kind, ':') ? r->path : "");
	c = chardev_open(spec, r->loop, &r->lock, on_escape, r, err);
	if (c)
		chardev_set_client(c, &(struct chardev_client){receive, r});
	return c;
}

static void send_bytes(struct rig *r, struct chardev *c, const void *buf, size_t len)
{
	pthread_mutex_lock(&r->lock);
	chardev_write(c, buf, len);
	pthread_mutex_unlock(&r->lock);
}

/* Wait until the client has n bytes. */
static bool await_input(struct rig *r, size_t n)
{
	int64_t end = clock_now() + 5000000000;
	bool ok = false;

	while (!ok && clock_now() < end) {
		pthread_mutex_lock(&r->lock);
		ok = r->nin >= n;
		pthread_mutex_unlock(&r->lock);
		usleep(1000);
	}
	return ok;
}

static size_t read_for(int fd, void *buf, size_t len, int ms)
{
	size_t done = 0;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	while (done < len && poll(&p, 1, ms) > 0) {
		ssize_t n = read(fd, (char *)buf + done, len - done);

		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return done;
}

static int connect_to(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return fd;
	close(fd);
	return -1;
}

static void test_bad_specs(void **state)
{
	static const char *const bad[] = {"", "stdi", "stdio:x", "nullx", "file:", "unix:", "tcp:1", "file"};
	struct rig *r = *state;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct error err = {0};

		assert_null(chardev_open(bad[i], r->loop, &r->lock, NULL, NULL, &err));
		assert_true(err.msg[0] && err.hint[0]);
	}
}

static void test_null(void **state)
{
	struct rig *r = *state;
	struct chardev *c = open_spec(r, "null", NULL);

	assert_non_null(c);
	send_bytes(r, c, "abc", 3);
	assert_null(chardev_error(c));
	chardev_close(c);
}

static void test_file(void **state)
{
	struct rig *r = *state;
	struct chardev *c = open_spec(r, "file:", NULL);
	struct stat st;
	char big[200000], *back = malloc(300000);
	int fd;

	assert_non_null(c);
	assert_int_equal(stat(r->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	for (size_t i = 0; i < sizeof(big); i++)
		big[i] = (char)(i * 7);
	send_bytes(r, c, "abc", 3);
	send_bytes(r, c, big, sizeof(big)); /* more than the queue: a file loses nothing */
	chardev_close(c);
	fd = open(r->path, O_RDONLY);
	assert_int_equal(read(fd, back, 300000), 3 + sizeof(big));
	assert_memory_equal(back, "abc", 3);
	assert_memory_equal(back + 3, big, sizeof(big));
	close(fd);
	free(back);
	c = open_spec(r, "file:", NULL); /* truncates */
	chardev_close(c);
	assert_int_equal(stat(r->path, &st), 0);
	assert_int_equal(st.st_size, 0);
}

static void test_file_errors(void **state)
{
	struct rig *r = *state;
	struct error err = {0};
	struct chardev *c;

	assert_null(chardev_open("file:/nonexistent/x", r->loop, &r->lock, NULL, NULL, &err));
	assert_non_null(strstr(err.msg, "/nonexistent/x"));
	c = chardev_open("file:/dev/full", r->loop, &r->lock, NULL, NULL, NULL);
	assert_non_null(c);
	assert_null(chardev_error(c));
	for (int i = 0; i < 100; i++)
		send_bytes(r, c, err.msg, sizeof(err.msg));
	usleep(50000);
	assert_non_null(chardev_error(c));
	assert_non_null(strstr(chardev_error(c), "No space left"));
	chardev_close(c);
	assert_int_equal(mkfifo(r->path, 0600), 0); /* nobody reads: an error, not a wait */
	assert_null(open_spec(r, "file:", &err));
}

static void test_unix(void **state)
{
	struct rig *r = *state;
	struct chardev *c = open_spec(r, "unix:", NULL);
	struct stat st;
	char buf[64];
	int fd, second;

	assert_non_null(c);
	assert_int_equal(lstat(r->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	send_bytes(r, c, "early ", 6); /* kept for who comes */
	fd = connect_to(r->path);
	assert_true(fd >= 0);
	assert_int_equal(read_for(fd, buf, 6, 1000), 6);
	assert_memory_equal(buf, "early ", 6);
	send_bytes(r, c, "late", 4);
	assert_int_equal(read_for(fd, buf, 4, 1000), 4);
	assert_memory_equal(buf, "late", 4);
	assert_int_equal(write(fd, "in\x1d", 3), 3); /* no escape here */
	assert_true(await_input(r, 3));
	assert_memory_equal(r->in, "in\x1d", 3);
	second = connect_to(r->path); /* waits until the first leaves */
	assert_true(second >= 0);
	assert_int_equal(write(second, "2", 1), 1);
	usleep(20000);
	assert_int_equal(r->nin, 3);
	close(fd);
	assert_true(await_input(r, 4));
	send_bytes(r, c, "you", 3);
	assert_int_equal(read_for(second, buf, 3, 1000), 3);
	close(second);
	chardev_close(c);
	assert_int_equal(lstat(r->path, &st), -1);
	assert_int_equal(atomic_load(&r->escapes), 0);
}

static void test_unix_names(void **state)
{
	struct rig *r = *state;
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct error err = {0};
	struct chardev *c, *d;
	char spec[256];
	int fd;

	/* A stale socket is replaced. */
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", r->path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	close(fd);
	c = open_spec(r, "unix:", &err);
	assert_non_null(c);
	/* One in use is not. */
	d = open_spec(r, "unix:", &err);
	assert_null(d);
	assert_non_null(strstr(err.msg, "in use"));
	fd = connect_to(r->path);
	assert_true(fd >= 0);
	close(fd);
	/* What took the name meanwhile is not removed. */
	unlink(r->path);
	close(open(r->path, O_CREAT | O_WRONLY, 0600));
	chardev_close(c);
	assert_int_equal(access(r->path, F_OK), 0);
	/* And a file is never replaced. */
	assert_null(open_spec(r, "unix:", &err));
	assert_non_null(strstr(err.msg, "not a socket"));
	snprintf(spec, sizeof(spec), "unix:/tmp/%0150d", 0);
	assert_null(chardev_open(spec, r->loop, &r->lock, NULL, NULL, &err));
	assert_non_null(strstr(err.msg, "too long"));
}

static void test_peer_that_does_not_read(void **state)
{
	struct rig *r = *state;
	struct chardev *c = open_spec(r, "unix:", NULL);
	int fd = connect_to(r->path);
	uint8_t block[1000], *back = malloc(8 * MIB);
	int64_t start;
	size_t got;

	assert_true(fd >= 0);
	usleep(20000);
	start = clock_now();
	for (unsigned i = 0; i < 8000; i++) {
		memset(block, (int)(i & 0xff), sizeof(block));
		send_bytes(r, c, block, sizeof(block));
	}
	assert_true(clock_now() - start < 2000000000); /* never waits */
	got = read_for(fd, back, 8 * MIB, 300);
	assert_in_range(got, 64 * KIB, 4 * MIB);
	for (size_t i = 0; i < got; i++) /* the oldest output, without holes */
		assert_int_equal(back[i], (i / 1000) & 0xff);
	send_bytes(r, c, "again", 5);
	assert_int_equal(read_for(fd, back, 5, 1000), 5);
	assert_memory_equal(back, "again", 5);
	/* A peer that leaves with output pending: the next gets the rest. */
	close(fd);
	send_bytes(r, c, "x", 1);
	chardev_close(c);
	free(back);
}

static void test_input_backpressure(void **state)
{
	struct rig *r = *state;
	struct chardev *c = open_spec(r, "unix:", NULL);
	int fd = connect_to(r->path);
	char buf[20000];

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i % 251);
	r->room = 10;
	assert_int_equal(write(fd, buf, sizeof(buf)), sizeof(buf));
	assert_true(await_input(r, 10));
	usleep(20000);
	assert_int_equal(r->nin, 10);
	while (r->nin < sizeof(buf)) {
		pthread_mutex_lock(&r->lock);
		r->room = min_u64(r->room + 777, sizeof(buf));
		chardev_resume(c);
		pthread_mutex_unlock(&r->lock);
		assert_true(await_input(r, r->room));
	}
	assert_memory_equal(r->in, buf, sizeof(buf));
	close(fd);
	chardev_close(c);
}

/* A child with its own stdio runs fn; stdin and stdout are given. Returns its wait status. */
static pid_t spawn(int in, int out, int (*fn)(struct rig *r))
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		static struct rig r;

		dup2(in, 0);
		dup2(out, 1);
		log_set_level(LOG_ERROR);
		memset(&r, 0, sizeof(r));
		r.room = sizeof(r.in);
		pthread_mutex_init(&r.lock, NULL);
		r.loop = loop_new(NULL);
		if (!r.loop || pthread_create(&r.thread, NULL, run, r.loop))
			_exit(99);
		_exit(fn(&r));
	}
	return pid;
}

static int wait_for(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* Echo what comes in until "." and say so. */
static int child_echo(struct rig *r)
{
	struct chardev *c = open_spec(r, "stdio", NULL);
	int64_t end = clock_now() + 5000000000;
	bool done = false;
	size_t sent = 0;

	if (!c)
		return 98;
	while (!done && clock_now() < end) {
		pthread_mutex_lock(&r->lock);
		done = memchr(r->in, '.', r->nin) != NULL;
		chardev_write(c, r->in + sent, r->nin - sent);
		sent = r->nin;
		pthread_mutex_unlock(&r->lock);
		usleep(1000);
	}
	chardev_close(c);
	return done ? 0 : 97;
}

static void test_stdin_is_a_file(void **state)
{
	struct rig *r = *state;
	int fd = open(r->path, O_CREAT | O_RDWR | O_TRUNC, 0600), p[2];
	char buf[16];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(write(fd, "hello\x1d.", 7), 7);
	lseek(fd, 0, SEEK_SET);
	assert_int_equal(wait_for(spawn(fd, p[1], child_echo)), 0);
	assert_int_equal(read_for(p[0], buf, 7, 1000), 7);
	assert_memory_equal(buf, "hello\x1d.", 7);
	close(fd);
	close(p[0]);
	close(p[1]);
}

/* Nothing ever comes in; output still goes out and the thread does not spin. */
static int child_no_input(struct rig *r)
{
	struct chardev *c = open_spec(r, "stdio", NULL);
	struct timespec cpu;

	if (!c)
		return 98;
	send_bytes(r, c, "out", 3);
	usleep(300000);
	chardev_close(c);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
	return cpu.tv_sec || cpu.tv_nsec > 150000000 || r->nin ? 97 : 0;
}

static void test_stdin_is_dev_null_or_at_its_end(void **state)
{
	int null = open("/dev/null", O_RDONLY), p[2], closed[2];
	char buf[16];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(wait_for(spawn(null, p[1], child_no_input)), 0);
	assert_int_equal(read_for(p[0], buf, 3, 1000), 3);
	assert_int_equal(pipe(closed), 0);
	close(closed[1]);
	assert_int_equal(wait_for(spawn(closed[0], p[1], child_no_input)), 0);
	assert_int_equal(read_for(p[0], buf, 3, 1000), 3);
	close(closed[0]);
	close(null);
	close(p[0]);
	close(p[1]);
}

static int child_flood(struct rig *r)
{
	struct chardev *c = open_spec(r, "stdio", NULL);
	static const char block[1000];
	int64_t start = clock_now();

	if (!c)
		return 98;
	for (int i = 0; i < 2000; i++)
		send_bytes(r, c, block, sizeof(block));
	if (clock_now() - start > 1000000000)
		return 97;
	chardev_close(c); /* gives up after a second */
	return clock_now() - start > 3000000000 ? 96 : 0;
}

static void test_stdout_is_a_full_pipe(void **state)
{
	int null = open("/dev/null", O_RDONLY), p[2];

	assert_int_equal(pipe(p), 0);
	assert_int_equal(wait_for(spawn(null, p[1], child_flood)), 0);
	assert_int_equal(fcntl(p[1], F_GETFL) & O_NONBLOCK, 0); /* ours is as it was */
	close(p[0]);
	p[0] = open("/dev/null", O_RDONLY);
	close(p[1]);
	close(p[0]);
	close(null);
}

static int child_dead_pipe(struct rig *r)
{
	struct chardev *c = open_spec(r, "stdio", NULL);
	const char *e;
	bool ok;

	if (!c)
		return 98;
	for (int i = 0; i < 10; i++) {
		send_bytes(r, c, "x", 1);
		usleep(5000);
	}
	e = chardev_error(c);
	ok = e && strstr(e, "Broken pipe");
	chardev_close(c);
	return ok ? 0 : 97;
}

static void test_stdout_reader_went_away(void **state)
{
	int null = open("/dev/null", O_RDONLY), p[2];

	assert_int_equal(pipe(p), 0);
	close(p[0]);
	assert_int_equal(wait_for(spawn(null, p[1], child_dead_pipe)), 0);
	close(p[1]);
	close(null);
}

/* On a terminal of its own: fn runs as the session's foreground process. */
static pid_t spawn_on_tty(int *master, int (*fn)(struct rig *r))
{
	pid_t pid;

	fflush(NULL);
	pid = forkpty(master, NULL, NULL, NULL);
	if (pid == 0) {
		static struct rig r;

		log_set_level(LOG_ERROR);
		r.room = sizeof(r.in);
		pthread_mutex_init(&r.lock, NULL);
		r.loop = loop_new(NULL);
		if (!r.loop || pthread_create(&r.thread, NULL, run, r.loop))
			_exit(99);
		_exit(fn(&r));
	}
	return pid;
}

static int child_until_escape(struct rig *r)
{
	struct chardev *c = open_spec(r, "stdio", NULL);
	struct termios t;
	int64_t end = clock_now() + 5000000000;
	char report[16];

	if (!c || tcgetattr(0, &t) < 0 || t.c_lflag & (ICANON | ECHO | ISIG))
		return 98;
	if (open_spec(r, "stdio", NULL)) /* there is only one */
		return 95;
	send_bytes(r, c, "ready", 5);
	r->room = 3; /* a guest that takes three keys and then no more: ^] must still work */
	while (!atomic_load(&r->escapes) && clock_now() < end)
		usleep(1000);
	snprintf(report, sizeof(report), "%zu", r->nin);
	send_bytes(r, c, report, 1);
	chardev_close(c);
	if (tcgetattr(0, &t) < 0 || !(t.c_lflag & ICANON) || !(t.c_lflag & ECHO) || !(t.c_lflag & ISIG))
		return 97;
	return atomic_load(&r->escapes) == 1 && memcmp(r->in, "a\x03" "b", 3) == 0 ? 0 : 96;
}

static void test_terminal(void **state)
{
	char buf[64], flood[3000];
	int master;
	pid_t pid = spawn_on_tty(&master, child_until_escape);

	assert_int_equal(read_for(master, buf, 5, 5000), 5);
	assert_memory_equal(buf, "ready", 5);
	memset(flood, 'z', sizeof(flood));
	assert_int_equal(write(master, "a\x03" "b", 3), 3); /* ^C goes to the guest */
	for (int i = 0; i < 8; i++) {
		assert_int_equal(write(master, flood, sizeof(flood)), sizeof(flood));
		usleep(5000);
	}
	assert_int_equal(write(master, "\x1d", 1), 1);
	assert_int_equal(read_for(master, buf, 1, 5000), 1);
	assert_int_equal(buf[0], '3');
	assert_int_equal(wait_for(pid), 0);
	close(master);
}

static void on_term(int sig)
{
	chardev_restore_terminal();
	_exit(0);
}

static int child_killed(struct rig *r)
{
	signal(SIGTERM, on_term);
	if (!open_spec(r, "stdio", NULL))
		return 98;
	if (write(1, "ready", 5) != 5)
		return 97;
	for (;;)
		pause();
}

static void test_terminal_restored_by_signal(void **state)
{
	struct termios t;
	char buf[8];
	int master, slave;
	pid_t pid = spawn_on_tty(&master, child_killed);

	assert_int_equal(read_for(master, buf, 5, 5000), 5);
	slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	assert_int_equal(tcgetattr(slave, &t), 0);
	assert_int_equal(t.c_lflag & ICANON, 0);
	kill(pid, SIGTERM);
	assert_int_equal(wait_for(pid), 0);
	assert_int_equal(tcgetattr(slave, &t), 0);
	assert_int_equal(t.c_lflag & (ICANON | ECHO | ISIG), ICANON | ECHO | ISIG);
	close(slave);
	close(master);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_bad_specs), T(test_null), T(test_file), T(test_file_errors), T(test_unix), T(test_unix_names),
		T(test_peer_that_does_not_read), T(test_input_backpressure), T(test_stdin_is_a_file),
		T(test_stdin_is_dev_null_or_at_its_end), T(test_stdout_is_a_full_pipe), T(test_stdout_reader_went_away),
		T(test_terminal), T(test_terminal_restored_by_signal),
	};

	log_set_level(LOG_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
