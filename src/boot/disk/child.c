/*
 * boot_disk_read: boot_disk_find in a child process that has nothing but a socket to its parent.
 *
 * The two share a buffer. The child asks (struct ask) and the parent answers with 0 or -errno: to read a piece of the disk
 * into the buffer, or to take what the buffer holds as the next piece of an answer. The parent checks each as if it
 * came from the disk's author.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include "boot/disk/disk.h"

#define BUFFER (1 * MIB)
#define LINE (128 * KIB)
#define LINES 16
#define CHILD_MEMORY (256 * MIB)
#define CHILD_CPU_SECONDS 20
#define NO_LINE UINT64_MAX

enum ask_kind { ASK_READ, ASK_KERNEL, ASK_INITRD, ASK_CMDLINE, ASK_TITLE, ASK_MESSAGE, ASK_HINT, ASK_DONE };

struct ask {
	uint32_t kind;
	uint64_t off, len;
};

/* ---- child ------------------------------------------------------------------------------------------------------- */

struct child {
	int fd;
	uint8_t *buffer;
	struct {
		uint64_t line;
		uint8_t data[LINE];
	} cache[LINES];
};

static int ask(struct child *c, enum ask_kind kind, uint64_t off, uint64_t len)
{
	struct ask a = {.kind = kind, .off = off, .len = len};
	int32_t r;

	if (write(c->fd, &a, sizeof(a)) != sizeof(a) || read(c->fd, &r, sizeof(r)) != sizeof(r))
		_exit(1);
	return r;
}

static int child_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	struct child *c = b->state;
	uint64_t done_in = 0;
	unsigned v = 0;

	while (len && v < niov) {
		uint64_t line = off / LINE, n = min_u64(len, LINE - off % LINE);
		unsigned slot = line % LINES;

		if (c->cache[slot].line != line) {
			uint64_t all = min_u64(LINE, b->size - line * LINE);
			int r = ask(c, ASK_READ, line * LINE, all);

			if (r)
				return r;
			memcpy(c->cache[slot].data, c->buffer, all);
			c->cache[slot].line = line;
		}
		n = min_u64(n, iov[v].iov_len - done_in);
		memcpy((uint8_t *)iov[v].iov_base + done_in, c->cache[slot].data + off % LINE, n);
		off += n;
		len -= n;
		done_in += n;
		if (done_in == iov[v].iov_len) {
			v++;
			done_in = 0;
		}
	}
	return 0;
}

static void child_give(struct child *c, enum ask_kind kind, const void *data, uint64_t len)
{
	for (uint64_t at = 0; at < len;) {
		uint64_t n = min_u64(len - at, BUFFER);

		memcpy(c->buffer, (const uint8_t *)data + at, n);
		if (ask(c, kind, 0, n))
			_exit(1);
		at += n;
	}
}

static void limit(int what, uint64_t value)
{
	struct rlimit l = {.rlim_cur = value, .rlim_max = value};

	setrlimit(what, &l);
}

static void child_limits(uint64_t initrd_max)
{
	unsigned long long pages;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f && fscanf(f, "%llu", &pages) == 1)
		limit(RLIMIT_AS, pages * PAGE_SIZE + CHILD_MEMORY + BOOT_DISK_KERNEL_MAX + 2 * initrd_max);
	if (f)
		fclose(f);
	limit(RLIMIT_CPU, CHILD_CPU_SECONDS);
	limit(RLIMIT_CORE, 0);
	limit(RLIMIT_FSIZE, 0);
}

/* Memory, reads and writes of the socket, the end: anything else is EPERM. */
static bool child_filter(int fd)
{
	static const uint16_t allowed[] = {
		SYS_brk, SYS_munmap, SYS_mremap, SYS_madvise, SYS_futex, SYS_exit, SYS_exit_group, SYS_clock_gettime, SYS_gettimeofday,
		SYS_time, SYS_getrandom, SYS_sched_yield};
	const struct sock_filter last[] = {
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 3, 4),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_write, 2, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)fd, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_filter f[64] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	unsigned short n = 4;
	struct sock_fprog prog;

	for (size_t i = 0; i < ARRAY_LEN(allowed); i++) {
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	/* mmap without PROT_EXEC; read and write (0 and 1) of fd. */
	memcpy(f + n, last, sizeof(last));
	n += ARRAY_LEN(last);
	prog = (struct sock_fprog){.len = n, .filter = f};
	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static void child_main(struct child *c, uint64_t size, uint64_t initrd_max) __attribute__((noreturn));
static void child_main(struct child *c, uint64_t size, uint64_t initrd_max)
{
	static const struct block_format format = {.name = "parent", .read = child_read};
	static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGXCPU};
	struct block b = {.format = &format, .state = c, .size = size, .readonly = true};
	struct boot_disk d;
	struct error err = {0};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < ARRAY_LEN(crashes); i++)
		signal(crashes[i], SIG_DFL);
	child_limits(initrd_max);
	if (!child_filter(c->fd)) {
		error_set(&err, "this host has no seccomp, without which a disk is not looked into");
		error_hint(&err, "name the kernel with --kernel");
	} else if (boot_disk_find(&b, initrd_max, &d, &err)) {
		child_give(c, ASK_KERNEL, d.kernel.data, d.kernel.size);
		child_give(c, ASK_INITRD, d.initrd.data, d.initrd.size);
		child_give(c, ASK_CMDLINE, d.cmdline, strlen(d.cmdline));
		child_give(c, ASK_TITLE, d.title, strlen(d.title));
		ask(c, ASK_DONE, 0, 0);
		_exit(0);
	}
	child_give(c, ASK_MESSAGE, err.msg, strlen(err.msg));
	child_give(c, ASK_HINT, err.hint, strlen(err.hint));
	ask(c, ASK_DONE, 1, 0);
	_exit(0);
}

/* ---- parent ------------------------------------------------------------------------------------------------------ */

struct parent {
	struct block *block;
	int fd;
	const uint8_t *buffer; /* the child may change it at any time */
	uint8_t *piece;        /* BUFFER bytes of our own */
	uint64_t initrd_max;
	uint64_t kernel_room, initrd_room;
	struct boot_disk *out;
	struct error said;     /* by the child */
	bool done, ok;
};

static int parent_append(struct parent *p, struct file_data *f, uint64_t *room, uint64_t max, uint64_t len)
{
	if (!range_ok(f->size, len, max))
		return -EFBIG;
	if (f->size + len > *room) {
		uint64_t more = min_u64(max_u64(2 * *room, 32 * BUFFER), max);
		uint8_t *all = realloc(f->data, more);

		if (!all)
			return -ENOMEM;
		f->data = all;
		*room = more;
	}
	memcpy(f->data + f->size, p->buffer, len);
	f->size += len;
	return 0;
}

/* One line for a terminal: printable, whole UTF-8 or not. */
static int parent_text(struct parent *p, char *out, size_t size, uint64_t len)
{
	if (len >= size)
		return -EFBIG;
	memcpy(out, p->buffer, len);
	for (uint64_t i = 0; i < len; i++)
		if ((uint8_t)out[i] < ' ' || out[i] == 127)
			out[i] = '?';
	out[len] = 0;
	return 0;
}

static int parent_answer(struct parent *p, const struct ask *a)
{
	int r;

	if (a->len > BUFFER)
		return -EINVAL;
	switch (a->kind) {
	case ASK_READ:
		/* Not straight into the buffer: what decompresses there may read it again. */
		r = block_read(p->block, a->off, p->piece, a->len);
		if (!r)
			memcpy((uint8_t *)p->buffer, p->piece, a->len);
		return r;
	case ASK_KERNEL: return parent_append(p, &p->out->kernel, &p->kernel_room, BOOT_DISK_KERNEL_MAX, a->len);
	case ASK_INITRD: return parent_append(p, &p->out->initrd, &p->initrd_room, p->initrd_max, a->len);
	case ASK_CMDLINE: return parent_text(p, p->out->cmdline, sizeof(p->out->cmdline), a->len);
	case ASK_TITLE: return parent_text(p, p->out->title, sizeof(p->out->title), a->len);
	case ASK_MESSAGE: return parent_text(p, p->said.msg, sizeof(p->said.msg), a->len);
	case ASK_HINT: return parent_text(p, p->said.hint, sizeof(p->said.hint), a->len);
	case ASK_DONE:
		p->done = true;
		p->ok = !a->off;
		return 0;
	}
	return -EINVAL;
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000) + t.tv_nsec / 1000000;
}

/* 0, or why there is no more to come: -ETIMEDOUT, -EPIPE. */
static int parent_serve(struct parent *p)
{
	int64_t end = now_ms() + BOOT_DISK_SECONDS * 1000;

	while (!p->done) {
		struct pollfd pfd = {.fd = p->fd, .events = POLLIN};
		int64_t left = end - now_ms();
		int n = left > 0 ? poll(&pfd, 1, (int)left) : 0;
		struct ask a;
		int32_t r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -ETIMEDOUT;
		if (recv(p->fd, &a, sizeof(a), 0) != sizeof(a))
			return -EPIPE;
		r = parent_answer(p, &a);
		if (send(p->fd, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r) && !p->done)
			return -EPIPE;
	}
	return 0;
}

static bool parent_conclude(struct parent *p, int r, int status, struct error *err)
{
	if (!r && p->ok && p->out->kernel.size)
		return true;
	if (!r && *p->said.msg)
		*err = p->said;
	else if (r == -ETIMEDOUT || (WIFSIGNALED(status) && (WTERMSIG(status) == SIGXCPU || WTERMSIG(status) == SIGKILL)))
		error_set(err, "looking for its kernel took more than %d seconds: the file system is damaged", BOOT_DISK_SECONDS);
	else
		error_set(err, "looking for its kernel failed: the file system is damaged");
	return *err->hint ? false : error_hint(err, "name the kernel with --kernel");
}

static bool run(struct parent *p, int fds[2], struct error *err)
{
	struct child *c = mmap(NULL, sizeof(*c), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int status = 0, r;
	pid_t pid;

	if (c == MAP_FAILED)
		return error_set(err, "out of memory");
	c->fd = fds[1];
	c->buffer = (uint8_t *)p->buffer;
	for (unsigned i = 0; i < LINES; i++)
		c->cache[i].line = NO_LINE;
	pid = fork();
	if (!pid)
		child_main(c, p->block->size, p->initrd_max);
	munmap(c, sizeof(*c));
	if (pid < 0)
		return error_set(err, "no process to look into the disk: %s", strerror(errno));
	close(fds[1]);
	fds[1] = -1;
	p->fd = fds[0];
	r = parent_serve(p);
	if (r == -ETIMEDOUT || p->done)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return parent_conclude(p, r, status, err);
}

bool boot_disk_read(struct block *b, uint64_t initrd_max, struct boot_disk *out, struct error *err)
{
	struct parent p = {.block = b, .initrd_max = initrd_max, .out = out};
	uint8_t *shared = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fds[2] = {-1, -1};
	struct error why = {0};
	bool ok = false;

	*out = (struct boot_disk){0};
	p.buffer = shared;
	p.piece = malloc(BUFFER);
	if (shared == MAP_FAILED || !p.piece || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds))
		error_set(&why, "out of memory or files: %s", strerror(errno));
	else
		ok = run(&p, fds, &why);
	for (unsigned i = 0; i < 2; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (shared != MAP_FAILED)
		munmap(shared, BUFFER);
	free(p.piece);
	if (ok)
		return true;
	boot_disk_free(out);
	error_set(err, "disk %s: %.400s", b->path ? b->path : "", why.msg);
	return error_hint(err, "%s", why.hint);
}
