#include "backend/char/chardev.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "backend/char/chardev_int.h"
#include "base/log.h"
#include "base/timer.h"

#define OUTPUT_DELAY_NS 1000000 /* bytes of one millisecond go out in one write */
#define FLUSH_NS INT64_C(1000000000)

static const struct {
	const char *prefix;
	const struct chardev_kind *kind;
} kinds[] = {
	{"stdio", &chardev_stdio},
	{"null", &chardev_null},
	{"file:", &chardev_file},
	{"unix:", &chardev_unix},
};

void chardev_set_error_locked(struct chardev *c, const char *what, int errnum)
{
	if (atomic_load(&c->has_error))
		return;
	snprintf(c->error, sizeof(c->error), "%s: %s", what, strerror(errnum));
	atomic_store(&c->has_error, true);
	log_warn("character device: %s", c->error);
}

const char *chardev_error(const struct chardev *c)
{
	return atomic_load(&c->has_error) ? c->error : NULL;
}

/* Wake the loop's thread in ns nanoseconds (0: at once). */
static void kick(struct chardev *c, long ns)
{
	struct itimerspec it = {.it_value.tv_nsec = ns ? ns : 1};

	timerfd_settime(c->kickfd, 0, &it, NULL);
}

static void watch_locked(struct chardev *c, bool in_on, bool out_on)
{
	c->in_on = in_on && c->in_watch >= 0;
	c->out_on = out_on && c->outfd >= 0;
	if (c->in_watch >= 0 && c->in_watch == c->outfd) {
		loop_mod(c->loop, c->in_watch, (c->in_on ? LOOP_READ : 0) | (c->out_on ? LOOP_WRITE : 0));
		return;
	}
	if (c->in_watch >= 0)
		loop_mod(c->loop, c->in_watch, c->in_on ? LOOP_READ : 0);
	if (c->outfd >= 0)
		loop_mod(c->loop, c->outfd, c->out_on ? LOOP_WRITE : 0);
}

static void end_input_locked(struct chardev *c)
{
	watch_locked(c, false, c->out_on);
	c->infd = -1;
}

static void output_failed_locked(struct chardev *c, int errnum)
{
	if (c->kind->hangup_locked) {
		/* The loop's thread may be reading from the descriptor: it closes it. */
		c->broken = true;
		kick(c, 0);
		return;
	}
	chardev_set_error_locked(c, "output is lost", errnum);
	c->dropped += c->out_count;
	c->out_count = 0;
}

/* Write what the peer takes without blocking. */
static void flush_locked(struct chardev *c)
{
	bool want;

	while (c->out_count && c->outfd >= 0 && !c->broken) {
		size_t run = min_u64(c->out_count, CHARDEV_OUT_MAX - c->out_head);
		ssize_t n;

		if (c->out_socket)
			n = send(c->outfd, c->out + c->out_head, run, MSG_DONTWAIT | MSG_NOSIGNAL);
		else
			n = write(c->outfd, c->out + c->out_head, run);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			output_failed_locked(c, errno);
			continue;
		}
		c->out_head = (c->out_head + (size_t)n) % CHARDEV_OUT_MAX;
		c->out_count -= (size_t)n;
	}
	want = c->out_count && c->outfd >= 0 && !c->broken;
	if (c->out_on != want)
		watch_locked(c, c->in_on, want);
}

static size_t queue_locked(struct chardev *c, const uint8_t *buf, size_t len)
{
	size_t n = min_u64(len, CHARDEV_OUT_MAX - c->out_count);

	for (size_t done = 0; done < n;) {
		size_t at = (c->out_head + c->out_count) % CHARDEV_OUT_MAX;
		size_t run = min_u64(n - done, CHARDEV_OUT_MAX - at);

		memcpy(c->out + at, buf + done, run);
		c->out_count += run;
		done += run;
	}
	return n;
}

void chardev_write(struct chardev *c, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	if (c->kind == &chardev_null)
		return;
	pthread_mutex_lock(&c->lock);
	while (len) {
		size_t n = queue_locked(c, p, len);

		p += n;
		len -= n;
		if (!len)
			break;
		if (!c->out_on)
			flush_locked(c);
		if (c->out_count == CHARDEV_OUT_MAX)
			break;
	}
	c->dropped += len;
	if (c->out_count && !c->out_on && !c->kicked && c->outfd >= 0) {
		c->kicked = true;
		kick(c, OUTPUT_DELAY_NS);
	}
	pthread_mutex_unlock(&c->lock);
}

/* Hand the buffered input to the client, then ask for more or not. Loop thread. */
static void deliver(struct chardev *c)
{
	size_t taken;

	pthread_mutex_lock(c->machine_lock);
	while (c->in_len) {
		taken = c->client.receive ? c->client.receive(c->client.ctx, c->in, c->in_len) : 0;
		if (taken > c->in_len)
			taken = c->in_len;
		c->in_len -= taken;
		memmove(c->in, c->in + taken, c->in_len);
		if (!taken)
			break;
	}
	c->starved = c->in_len != 0;
	pthread_mutex_unlock(c->machine_lock);

	pthread_mutex_lock(&c->lock);
	if (c->infd >= 0) {
		bool on = c->lossy_input || c->in_len < CHARDEV_IN_MAX;

		if (on != c->in_on)
			watch_locked(c, on, c->out_on);
	}
	pthread_mutex_unlock(&c->lock);
}

static void read_input(struct chardev *c)
{
	uint8_t spill[CHARDEV_IN_MAX];
	bool full = c->in_len == CHARDEV_IN_MAX;
	uint8_t *at = full ? spill : c->in + c->in_len;
	ssize_t n;

	if (full && !c->lossy_input)
		return;
	n = read(c->infd, at, full ? sizeof(spill) : CHARDEV_IN_MAX - c->in_len);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		pthread_mutex_lock(&c->lock);
		if (c->kind->hangup_locked)
			c->kind->hangup_locked(c);
		else
			end_input_locked(c);
		pthread_mutex_unlock(&c->lock);
		return;
	}
	if (c->kind->filter)
		n = (ssize_t)c->kind->filter(c, at, (size_t)n);
	if (full)
		return;
	c->in_len += (size_t)n;
	deliver(c);
}

static void on_event(void *ctx, unsigned events)
{
	struct chardev *c = ctx;

	if (events & LOOP_WRITE) {
		pthread_mutex_lock(&c->lock);
		flush_locked(c);
		pthread_mutex_unlock(&c->lock);
	}
	if (events & LOOP_READ && c->infd >= 0)
		read_input(c);
}

static void on_kick(void *ctx, unsigned events)
{
	struct chardev *c = ctx;
	uint64_t ticks;

	if (read(c->kickfd, &ticks, sizeof(ticks)) < 0)
		return;
	pthread_mutex_lock(&c->lock);
	c->kicked = false;
	if (c->broken)
		c->kind->hangup_locked(c);
	if (!c->out_on)
		flush_locked(c);
	pthread_mutex_unlock(&c->lock);
	if (c->in_len)
		deliver(c);
}

void chardev_resume(struct chardev *c)
{
	if (!c->starved)
		return;
	c->starved = false;
	kick(c, 0);
}

void chardev_set_client(struct chardev *c, const struct chardev_client *client)
{
	c->client = *client;
	chardev_resume(c);
}

/* epoll refuses files and /dev/null, which are always readable: an eventfd that is never read stands in for them. */
static bool watch_input(struct chardev *c, int infd, struct error *err)
{
	c->in_watch = infd;
	c->stand_in = false;
	if (loop_add(c->loop, infd, LOOP_READ, on_event, c, err))
		return true;
	c->stand_in = true;
	c->in_watch = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->in_watch >= 0 && loop_add(c->loop, c->in_watch, LOOP_READ, on_event, c, err))
		return true;
	if (c->in_watch >= 0)
		close(c->in_watch);
	c->in_watch = -1;
	return false;
}

bool chardev_attach(struct chardev *c, int infd, int outfd, struct error *err)
{
	if (infd >= 0 && !watch_input(c, infd, err))
		return false;
	/* Refused for files: they never ask to wait. */
	if (outfd >= 0 && outfd != infd)
		loop_add(c->loop, outfd, 0, on_event, c, NULL);
	c->infd = infd;
	c->outfd = outfd;
	c->broken = false;
	c->in_on = infd >= 0;
	c->out_on = false;
	return true;
}

void chardev_detach_locked(struct chardev *c)
{
	if (c->in_watch >= 0) {
		loop_del(c->loop, c->in_watch);
		if (c->stand_in)
			close(c->in_watch);
	}
	if (c->outfd >= 0)
		loop_del(c->loop, c->outfd);
	c->infd = c->outfd = c->in_watch = -1;
	c->in_on = c->out_on = c->broken = false;
}

static bool find_kind(struct chardev *c, const char *spec, const char **arg, struct error *err)
{
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		size_t len = strlen(kinds[i].prefix);
		bool takes_arg = kinds[i].prefix[len - 1] == ':';

		if (strncmp(spec, kinds[i].prefix, len) || (!takes_arg && spec[len]))
			continue;
		if (takes_arg && !spec[len]) {
			error_set(err, "character device '%s': no path", spec);
			return error_hint(err, "write %sPATH", kinds[i].prefix);
		}
		c->kind = kinds[i].kind;
		*arg = spec + len;
		return true;
	}
	error_set(err, "character device '%s': unknown kind", spec);
	return error_hint(err, "use stdio, null, file:PATH or unix:PATH");
}

static void free_chardev(struct chardev *c)
{
	if (c->kickfd >= 0)
		close(c->kickfd);
	free(c->path);
	pthread_mutex_destroy(&c->lock);
	free(c);
}

struct chardev *chardev_open(const char *spec, struct loop *loop, pthread_mutex_t *lock, void (*on_escape)(void *ctx),
			     void *escape_ctx, struct error *err)
{
	struct chardev *c = calloc(1, sizeof(*c));
	const char *arg = NULL;

	if (!c) {
		error_set(err, "character device: out of memory");
		return NULL;
	}
	c->loop = loop;
	c->machine_lock = lock;
	c->on_escape = on_escape;
	c->escape_ctx = escape_ctx;
	c->infd = c->outfd = c->in_watch = c->listenfd = -1;
	pthread_mutex_init(&c->lock, NULL);
	c->kickfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (c->kickfd < 0) {
		error_set(err, "character device: %s", strerror(errno));
		goto fail;
	}
	if (!find_kind(c, spec, &arg, err) || !loop_add(loop, c->kickfd, LOOP_READ, on_kick, c, err) ||
	    !c->kind->open(c, arg, err))
		goto fail;
	signal(SIGPIPE, SIG_IGN); /* a reader of stdout that goes away is an error of write, not our end */
	return c;
fail:
	loop_del(loop, c->kickfd);
	free_chardev(c);
	return NULL;
}

void chardev_flush(struct chardev *c)
{
	int64_t end = clock_now() + FLUSH_NS;

	pthread_mutex_lock(&c->lock);
	flush_locked(c);
	while (c->out_count && c->outfd >= 0 && !c->broken && clock_now() < end) {
		struct pollfd p = {.fd = c->outfd, .events = POLLOUT};

		poll(&p, 1, (int)((end - clock_now()) / 1000000) + 1);
		flush_locked(c);
	}
	pthread_mutex_unlock(&c->lock);
}

void chardev_close(struct chardev *c)
{
	if (!c)
		return;
	chardev_flush(c);
	/* From here on the loop's thread is out of it. */
	loop_del(c->loop, c->kickfd);
	loop_del(c->loop, c->listenfd);
	loop_del(c->loop, c->in_watch);
	loop_del(c->loop, c->outfd);
	c->kind->close(c);
	free_chardev(c);
}

static bool null_open(struct chardev *c, const char *arg, struct error *err) { return true; }
static void null_close(struct chardev *c) {}

const struct chardev_kind chardev_null = {.open = null_open, .close = null_close};
