/*
 * The VMM's own stdin and stdout. A terminal on stdin is set raw while we are in the foreground, so that every key
 * reaches the guest; ^] is ours. Input from anything else is passed on untouched.
 *
 * Output must not block. A pipe or terminal is opened a second time where that is allowed, so that O_NONBLOCK does not
 * touch the descriptor that we share with the shell; otherwise the flag is set there and taken back at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "backend/char/chardev_int.h"

#define ESCAPE 0x1d /* ^] */

/* Process-wide by nature: there is one stdin, and a signal handler must be able to restore it. */
static struct {
	atomic_bool open;
	atomic_bool raw;
	atomic_bool flags_changed;
	struct termios saved;
	int saved_flags; /* of STDOUT_FILENO */
} terminal;

void chardev_restore_terminal(void)
{
	int saved_errno = errno;
	sigset_t set, old;

	if (atomic_exchange(&terminal.flags_changed, false))
		fcntl(STDOUT_FILENO, F_SETFL, terminal.saved_flags);
	if (atomic_exchange(&terminal.raw, false)) {
		/* In the background tcsetattr would stop the process. */
		sigemptyset(&set);
		sigaddset(&set, SIGTTOU);
		sigprocmask(SIG_BLOCK, &set, &old);
		tcsetattr(STDIN_FILENO, TCSANOW, &terminal.saved);
		sigprocmask(SIG_SETMASK, &old, NULL);
	}
	errno = saved_errno;
}

static void make_raw(void)
{
	struct termios t;

	if (tcgetattr(STDIN_FILENO, &terminal.saved) < 0)
		return;
	t = terminal.saved;
	t.c_iflag &= ~(tcflag_t)(BRKINT | ICRNL | INLCR | IGNCR | INPCK | ISTRIP | IXON | PARMRK);
	t.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | ISIG);
	t.c_cflag = (t.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
	t.c_cc[VMIN] = 1;
	t.c_cc[VTIME] = 0;
	/* OPOST stays: our own messages end with a bare newline. */
	atomic_store(&terminal.raw, true);
	if (tcsetattr(STDIN_FILENO, TCSANOW, &t) < 0)
		atomic_store(&terminal.raw, false);
	else
		atexit(chardev_restore_terminal);
}

/* The descriptor to write to; -1 when stdout is closed. */
static int nonblocking_stdout(struct chardev *c)
{
	struct stat st;
	int fd;

	if (fstat(STDOUT_FILENO, &st) < 0)
		return -1;
	c->out_socket = S_ISSOCK(st.st_mode);
	if (c->out_socket || !(S_ISFIFO(st.st_mode) || isatty(STDOUT_FILENO)))
		return STDOUT_FILENO;
	fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	terminal.saved_flags = fcntl(STDOUT_FILENO, F_GETFL);
	if (terminal.saved_flags >= 0 && !(terminal.saved_flags & O_NONBLOCK)) {
		atomic_store(&terminal.flags_changed, true);
		fcntl(STDOUT_FILENO, F_SETFL, terminal.saved_flags | O_NONBLOCK);
	}
	return STDOUT_FILENO;
}

static bool stdio_open(struct chardev *c, const char *arg, struct error *err)
{
	int infd = fcntl(STDIN_FILENO, F_GETFD) < 0 ? -1 : STDIN_FILENO, outfd;

	if (atomic_exchange(&terminal.open, true)) {
		error_set(err, "stdio is in use by another device");
		return error_hint(err, "give one of them file:PATH, unix:PATH or null");
	}
	if (infd >= 0 && isatty(infd)) {
		c->lossy_input = true;
		if (tcgetpgrp(infd) == getpgrp())
			make_raw();
		else
			infd = -1; /* a background job must not read the terminal */
	}
	outfd = nonblocking_stdout(c);
	if (chardev_attach(c, infd, outfd, err))
		return true;
	if (outfd > STDERR_FILENO)
		close(outfd);
	chardev_restore_terminal();
	atomic_store(&terminal.open, false);
	return false;
}

static void stdio_close(struct chardev *c)
{
	int outfd = c->outfd;

	pthread_mutex_lock(&c->lock);
	chardev_detach_locked(c);
	pthread_mutex_unlock(&c->lock);
	if (outfd > STDERR_FILENO)
		close(outfd);
	chardev_restore_terminal();
	atomic_store(&terminal.open, false);
}

static size_t stdio_filter(struct chardev *c, uint8_t *buf, size_t n)
{
	uint8_t *hit = c->lossy_input ? memchr(buf, ESCAPE, n) : NULL;

	if (!hit)
		return n;
	if (c->on_escape)
		c->on_escape(c->escape_ctx);
	return (size_t)(hit - buf); /* what was typed after it has no taker */
}

const struct chardev_kind chardev_stdio = {.open = stdio_open, .close = stdio_close, .filter = stdio_filter};
