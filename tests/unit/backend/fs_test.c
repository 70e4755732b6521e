/*
 * The 9P server by hand-made messages: what must work beyond what Linux' client asks for, and what must not: leaving the directory by "..", by
 * symbolic links, by names with slashes, by directories that are moved while the guest holds them, or while it looks them up.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "backend/fs/fs.h"

#define NOFID 0xffffffffu
#define SECRET "the secret outside"

enum {
	TSTATFS = 8, TLOPEN = 12, TLCREATE = 14, TSYMLINK = 16, TMKNOD = 18, TREADLINK = 22, TGETATTR = 24, TSETATTR = 26, TXATTRWALK = 30,
	TXATTRCREATE = 32, TREADDIR = 40, TFSYNC = 50, TLOCK = 52, TGETLOCK = 54, TLINK = 70, TMKDIR = 72, TRENAMEAT = 74, TUNLINKAT = 76,
	TVERSION = 100, TATTACH = 104, TWALK = 110, TREAD = 116, TWRITE = 118, TCLUNK = 120,
};

struct rig {
	struct fs *fs;
	char base[64], share[80]; /* share = base/share; secrets are in base */
	uint8_t msg[8192], reply[8192];
	uint32_t n, got;
};

/* ---- a client ---- */

/* Arguments: 1, 2, 4, 8: an integer of so many bytes; s: a string. */
static void put(struct rig *r, const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		if (*fmt == 's') {
			const char *s = va_arg(ap, const char *);
			uint16_t len = (uint16_t)strlen(s);

			memcpy(r->msg + r->n, &len, 2);
			memcpy(r->msg + r->n + 2, s, len);
			r->n += 2 + len;
		} else {
			uint64_t v = *fmt == '8' ? va_arg(ap, uint64_t) : va_arg(ap, unsigned);

			memcpy(r->msg + r->n, &v, (size_t)(*fmt - '0'));
			r->n += (uint32_t)(*fmt - '0');
		}
	}
}

/* 0, or the errno of Rlerror. */
static int call(struct rig *r, uint8_t type, const char *fmt, ...)
{
	va_list ap;

	r->n = FS_HEADER;
	va_start(ap, fmt);
	put(r, fmt, ap);
	va_end(ap);
	put_le32(r->msg, r->n);
	r->msg[4] = type;
	put_le16(r->msg + 5, 7);
	r->got = fs_request(r->fs, r->msg, r->n, r->reply, sizeof(r->reply));
	assert_true(r->got >= FS_HEADER && get_le32(r->reply) == r->got && get_le16(r->reply + 5) == 7);
	if (r->reply[4] == 7)
		return (int)get_le32(r->reply + FS_HEADER);
	assert_int_equal(r->reply[4], type + 1);
	return 0;
}

static int walk1(struct rig *r, unsigned from, unsigned to, const char *name)
{
	return call(r, TWALK, "442s", from, to, 1, name);
}

static void attach(struct rig *r)
{
	assert_int_equal(call(r, TVERSION, "4s", 8192, "9P2000.L"), 0);
	assert_int_equal(call(r, TATTACH, "44ss4", 0, NOFID, "root", "", (unsigned)geteuid()), 0);
}

static void in_base(const struct rig *r, char out[256], const char *name)
{
	snprintf(out, 256, "%s/%s", r->base, name);
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void open_share(struct rig *r, bool readonly)
{
	struct error err;

	r->fs = fs_open(&(struct fs_options){.path = r->share, .readonly = readonly}, &err);
	if (!r->fs)
		fail_msg("%s", err.msg);
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	char path[256];

	strcpy(r->base, "/tmp/doppel-fs.XXXXXX");
	assert_non_null(mkdtemp(r->base));
	snprintf(r->share, sizeof(r->share), "%s/share", r->base);
	assert_int_equal(mkdir(r->share, 0700), 0);
	in_base(r, path, "secret");
	write_file(path, SECRET);
	open_share(r, false);
	attach(r);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;
	char command[128], text[64] = "", path[256];
	FILE *f;

	in_base(r, path, "secret");
	f = fopen(path, "r");
	assert_non_null(f);
	assert_non_null(fgets(text, sizeof(text), f));
	fclose(f);
	assert_string_equal(text, SECRET); /* whatever was tried */
	fs_close(r->fs);
	snprintf(command, sizeof(command), "rm -rf %s", r->base);
	assert_int_equal(system(command), 0);
	free(r);
	return 0;
}

/* ---- escapes ---- */

static void test_names(void **state)
{
	struct rig *r = *state;
	static const char *const bad[] = {"../secret", "a/../../secret", "/etc/passwd", "", "share/../../secret", "./x"};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_not_equal(walk1(r, 0, 1, bad[i]), 0);
		assert_int_equal(call(r, TWALK, "442", 0, 2, 0), 0);
		assert_int_not_equal(call(r, TLCREATE, "4s444", 2, bad[i], O_RDWR | O_CREAT, 0644, 0), 0);
		assert_int_equal(call(r, TCLUNK, "4", 2), 0);
		assert_int_not_equal(call(r, TMKDIR, "4s44", 0, bad[i], 0755, 0), 0);
		assert_int_not_equal(call(r, TSYMLINK, "4ss4", 0, bad[i], "x", 0), 0);
		assert_int_not_equal(call(r, TMKNOD, "4s4444", 0, bad[i], S_IFREG | 0644, 0, 0, 0), 0);
		assert_int_not_equal(call(r, TUNLINKAT, "4s4", 0, bad[i], 0), 0);
		assert_int_not_equal(call(r, TRENAMEAT, "4s4s", 0, bad[i], 0, "here"), 0);
		assert_int_not_equal(call(r, TLINK, "44s", 0, 0, bad[i]), 0);
	}
	assert_int_not_equal(call(r, TUNLINKAT, "4s4", 0, "..", AT_REMOVEDIR), 0);
	assert_int_not_equal(call(r, TRENAMEAT, "4s4s", 0, "..", 0, "up"), 0);
}

static uint64_t qid_path(const struct rig *r, unsigned n)
{
	return get_le64(r->reply + FS_HEADER + 2 + 13 * n + 5);
}

static void test_dot_dot(void **state)
{
	struct rig *r = *state;
	uint64_t root;

	assert_int_equal(call(r, TMKDIR, "4s44", 0, "a", 0755, 0), 0);
	assert_int_equal(call(r, TWALK, "442sss", 0, 1, 3, "a", "..", ".."), 0);
	root = qid_path(r, 1);
	assert_int_equal(qid_path(r, 2), root); /* the root is its own parent */
	assert_int_equal(call(r, TWALK, "442sssss", 0, 2, 5, "..", "..", "..", "..", "a"), 0);
	assert_int_equal(call(r, TWALK, "442ss", 0, 3, 2, "..", "secret"), 0); /* a part is found, no fid made */
	assert_int_equal(get_le16(r->reply + FS_HEADER), 1);
	assert_int_equal(call(r, TGETATTR, "48", 3, UINT64_C(0x7ff)), EBADF);
}

static void test_symlinks(void **state)
{
	struct rig *r = *state;
	static const char *const targets[] = {"../secret", "..", "/", "/proc/self/root", "/proc/self/fd/0", "."};

	for (size_t i = 0; i < ARRAY_LEN(targets); i++) {
		unsigned link = 10 + 10 * (unsigned)i;
		char name[8];

		snprintf(name, sizeof(name), "l%zu", i);
		assert_int_equal(call(r, TSYMLINK, "4ss4", 0, name, targets[i], 0), 0);
		assert_int_equal(walk1(r, 0, link, name), 0);
		assert_int_equal(r->reply[FS_HEADER + 2], 0x02); /* the link itself */
		assert_int_equal(call(r, TREADLINK, "4", link), 0);
		assert_memory_equal(r->reply + FS_HEADER + 2, targets[i], strlen(targets[i]));
		assert_int_not_equal(call(r, TLOPEN, "44", link, O_RDONLY), 0);
		assert_int_not_equal(walk1(r, link, link + 1, "secret"), 0);
		assert_int_not_equal(walk1(r, link, link + 1, ".."), 0);
		assert_int_equal(call(r, TWALK, "442ss", 0, link + 1, 2, name, "secret"), 0);
		assert_int_equal(get_le16(r->reply + FS_HEADER), 1);
		assert_int_not_equal(call(r, TSETATTR, "44444888888", link, 1, 0777, 0, 0, UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0)), 0);
		assert_int_not_equal(call(r, TSETATTR, "44444888888", link, 8, 0, 0, 0, UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0)), 0);
		/* creating "through" it */
		assert_int_equal(call(r, TWALK, "442", 0, link + 2, 0), 0);
		assert_int_not_equal(call(r, TLCREATE, "4s444", link + 2, name, O_RDWR | O_CREAT | O_TRUNC, 0644, 0), 0);
		assert_int_not_equal(call(r, TMKDIR, "4s44", link, "new", 0755, 0), 0);
	}
}

/* The host moves a directory out of the share while the guest holds it: what lies above it stays out of reach. */
static void test_moved_out(void **state)
{
	struct rig *r = *state;
	char from[256], to[256];

	assert_int_equal(call(r, TMKDIR, "4s44", 0, "d", 0755, 0), 0);
	assert_int_equal(walk1(r, 0, 1, "d"), 0);
	assert_int_equal(call(r, TMKDIR, "4s44", 1, "e", 0755, 0), 0);
	assert_int_equal(call(r, TWALK, "442s", 1, 2, 1, "e"), 0);
	in_base(r, from, "share/d");
	in_base(r, to, "moved");
	assert_int_equal(rename(from, to), 0);
	assert_int_equal(walk1(r, 1, 3, ".."), EACCES);
	assert_int_equal(walk1(r, 2, 3, ".."), EACCES);
	assert_int_equal(call(r, TWALK, "442sss", 2, 3, 3, "..", "..", "secret"), EACCES);
	assert_int_equal(rename(to, from), 0);
	assert_int_equal(walk1(r, 2, 3, ".."), 0);
}

struct racer {
	char a[256], b[256], link[256];
	bool stop;
};

/* A directory becomes a link to the outside and back, all the time. */
static void *race(void *arg)
{
	struct racer *c = arg;

	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED)) {
		rename(c->a, c->b);
		rename(c->link, c->a);
		rename(c->a, c->link);
		rename(c->b, c->a);
	}
	return NULL;
}

static void test_rename_race(void **state)
{
	struct rig *r = *state;
	struct racer c = {0};
	unsigned found = 0;
	char path[256];
	pthread_t t;

	in_base(r, c.a, "share/d");
	in_base(r, c.b, "share/real");
	in_base(r, c.link, "share/link");
	assert_int_equal(mkdir(c.a, 0755), 0);
	in_base(r, path, "share/d/secret");
	write_file(path, "inner");
	assert_int_equal(symlink("..", c.link), 0);
	assert_int_equal(pthread_create(&t, NULL, race, &c), 0);
	for (unsigned i = 0; i < 20000; i++) {
		if (call(r, TWALK, "442ss", 0, 1, 2, "d", "secret") || get_le16(r->reply + FS_HEADER) != 2)
			continue;
		found++;
		if (call(r, TLOPEN, "44", 1, O_RDONLY) == 0 && call(r, TREAD, "484", 1, UINT64_C(0), 100) == 0)
			assert_memory_equal(r->reply + FS_HEADER + 4, "inner", 5);
		assert_int_equal(call(r, TCLUNK, "4", 1), 0);
	}
	__atomic_store_n(&c.stop, true, __ATOMIC_RELAXED);
	pthread_join(t, NULL);
	assert_true(found > 10);
}

static void test_special_files(void **state)
{
	struct rig *r = *state;
	char path[256];

	in_base(r, path, "share/fifo");
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(walk1(r, 0, 1, "fifo"), 0);
	assert_int_equal(call(r, TLOPEN, "44", 1, O_RDWR), ENXIO);
	assert_int_equal(call(r, TWALK, "442", 0, 2, 0), 0);
	assert_int_equal(call(r, TLCREATE, "4s444", 2, "fifo", O_RDWR | O_CREAT, 0644, 0), ENXIO);
	assert_int_equal(call(r, TMKNOD, "4s4444", 0, "dev", S_IFCHR | 0644, 1, 3, 0), EPERM);
	assert_int_equal(call(r, TMKNOD, "4s4444", 0, "blk", S_IFBLK | 0644, 8, 0, 0), EPERM);
	assert_int_equal(call(r, TMKNOD, "4s4444", 0, "sock", S_IFSOCK | 0644, 0, 0, 0), 0);
	if (geteuid() == 0) {
		in_base(r, path, "share/null");
		if (mknod(path, S_IFCHR | 0666, 0x103) == 0) {
			assert_int_equal(walk1(r, 0, 3, "null"), 0);
			assert_int_equal(call(r, TLOPEN, "44", 3, O_RDONLY), ENXIO);
		}
	}
}

static void test_closed_file_systems(void **state)
{
	struct error err;

	assert_null(fs_open(&(struct fs_options){.path = "/proc"}, &err));
	assert_null(fs_open(&(struct fs_options){.path = "/sys"}, &err));
	struct rig *r = *state;
	struct fs *mine = r->fs;

	r->fs = fs_open(&(struct fs_options){.path = "/", .readonly = true}, &err);
	assert_non_null(r->fs);
	attach(r);
	assert_int_equal(walk1(r, 0, 1, "proc"), EACCES);
	assert_int_equal(walk1(r, 0, 1, "etc"), 0);
	fs_close(r->fs);
	r->fs = mine;
}

/* ---- rights ---- */

static void test_readonly(void **state)
{
	struct rig *r = *state;
	char path[256];

	in_base(r, path, "share/f");
	write_file(path, "text");
	fs_close(r->fs);
	open_share(r, true);
	attach(r);
	assert_int_equal(walk1(r, 0, 1, "f"), 0);
	assert_int_equal(call(r, TLOPEN, "44", 1, O_RDWR), EROFS);
	assert_int_equal(call(r, TLOPEN, "44", 1, O_RDONLY | O_TRUNC), EROFS);
	assert_int_equal(call(r, TLOPEN, "44", 1, O_RDONLY), 0);
	assert_int_equal(call(r, TREAD, "484", 1, UINT64_C(0), 100), 0);
	assert_memory_equal(r->reply + FS_HEADER, "\4\0\0\0text", 8);
	assert_int_equal(call(r, TWRITE, "484", 1, UINT64_C(0), 0), EROFS);
	assert_int_equal(call(r, TMKDIR, "4s44", 0, "d", 0755, 0), EROFS);
	assert_int_equal(call(r, TUNLINKAT, "4s4", 0, "f", 0), EROFS);
	assert_int_equal(call(r, TRENAMEAT, "4s4s", 0, "f", 0, "g"), EROFS);
	assert_int_equal(call(r, TLINK, "44s", 0, 1, "g"), EROFS);
	assert_int_equal(call(r, TXATTRCREATE, "4s84", 1, "user.a", UINT64_C(1), 0), EROFS);
	assert_int_equal(call(r, TSETATTR, "44444888888", 1, 8, 0, 0, 0, UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0)), EROFS);
	assert_int_equal(access(path, F_OK), 0);
}

static void test_set_id_bits(void **state)
{
	struct rig *r = *state;
	struct stat st;
	char path[256];

	if (geteuid())
		skip();
	assert_int_equal(call(r, TWALK, "442", 0, 1, 0), 0);
	assert_int_equal(call(r, TLCREATE, "4s444", 1, "s", O_RDWR | O_CREAT, 06755, 5), 0);
	in_base(r, path, "share/s");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0755);
	assert_int_equal(st.st_gid, 5);
	assert_int_equal(call(r, TSETATTR, "44444888888", 1, 1, 04777, 0, 0, UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0)), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0777);
}

static void test_xattrs(void **state)
{
	struct rig *r = *state;
	char path[256], got[16];

	in_base(r, path, "share/f");
	write_file(path, "text");
	if (setxattr(path, "user.try", "1", 1, 0))
		skip();
	assert_int_equal(walk1(r, 0, 1, "f"), 0);
	assert_int_equal(call(r, TXATTRWALK, "44s", 1, 2, "security.capability"), EOPNOTSUPP);
	assert_int_equal(call(r, TXATTRWALK, "44s", 1, 2, "trusted.x"), EOPNOTSUPP);
	assert_int_equal(call(r, TXATTRWALK, "44s", 1, 2, "user.try"), 0);
	assert_int_equal(call(r, TREAD, "484", 2, UINT64_C(0), 10), 0);
	assert_memory_equal(r->reply + FS_HEADER, "\1\0\0\0" "1", 5);
	assert_int_equal(call(r, TXATTRCREATE, "4s84", 1, "security.capability", UINT64_C(4), 0), EOPNOTSUPP);
	assert_int_equal(call(r, TXATTRCREATE, "4s84", 1, "user.big", UINT64_C(1) << 40, 0), ENOSPC);
	assert_int_equal(call(r, TXATTRCREATE, "4s84", 1, "user.new", UINT64_C(3), 0), 0);
	assert_int_equal(call(r, TWRITE, "484111", 1, UINT64_C(1) << 60, 3, 'a', 'b', 'c'), ENOSPC);
	assert_int_equal(call(r, TWRITE, "484111", 1, UINT64_C(0), 3, 'a', 'b', 'c'), 0);
	assert_int_equal(call(r, TCLUNK, "4", 1), 0);
	assert_int_equal(getxattr(path, "user.new", got, sizeof(got)), 3);
}

/* ---- the life of fids ---- */

static void test_removed_but_open(void **state)
{
	struct rig *r = *state;
	char path[256];

	assert_int_equal(call(r, TWALK, "442", 0, 1, 0), 0);
	assert_int_equal(call(r, TLCREATE, "4s444", 1, "f", O_RDWR | O_CREAT, 0644, 0), 0);
	assert_int_equal(walk1(r, 0, 2, "f"), 0);
	assert_int_equal(call(r, TUNLINKAT, "4s4", 0, "f", 0), 0);
	in_base(r, path, "share/f");
	write_file(path, "another");
	assert_int_equal(call(r, TWRITE, "48411", 1, UINT64_C(0), 2, 'h', 'i'), 0);
	assert_int_equal(call(r, TLOPEN, "44", 2, O_RDONLY), 0); /* held, not opened before it went */
	assert_int_equal(call(r, TREAD, "484", 2, UINT64_C(0), 10), 0);
	assert_memory_equal(r->reply + FS_HEADER, "\2\0\0\0hi", 6);
	assert_int_equal(call(r, TSETATTR, "44444888888", 2, 8, 0, 0, 0, UINT64_C(1), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0), UINT64_C(0)), 0);
	assert_int_equal(call(r, TREAD, "484", 1, UINT64_C(0), 10), 0);
	assert_memory_equal(r->reply + FS_HEADER, "\1\0\0\0h", 5);
}

static unsigned open_descriptors(void)
{
	unsigned n = 0;

	for (int i = 0; i < 4096; i++)
		n += fcntl(i, F_GETFD) >= 0;
	return n;
}

static void test_fids(void **state)
{
	struct rig *r = *state;
	unsigned before = open_descriptors();
	int error = 0;

	assert_int_equal(call(r, TCLUNK, "4", 99), EBADF);
	assert_int_equal(call(r, TWALK, "442", 99, 1, 0), EBADF);
	assert_int_equal(call(r, TWALK, "442", 0, 1, 0), 0);
	assert_int_equal(call(r, TWALK, "442", 0, 1, 0), EBADF); /* taken */
	assert_int_equal(call(r, TWALK, "442", 0, NOFID, 0), EBADF);
	for (unsigned i = 2; i < 200000 && !error; i++)
		error = call(r, TWALK, "442", 0, i, 0);
	assert_int_equal(error, EMFILE); /* bounded */
	assert_int_equal(call(r, TGETATTR, "48", 5, UINT64_C(0x7ff)), 0);
	attach(r); /* a new session: all are gone */
	assert_int_equal(call(r, TGETATTR, "48", 5, UINT64_C(0x7ff)), EBADF);
	assert_int_equal(open_descriptors(), before);
}

static void test_locks(void **state)
{
	struct rig *r = *state;
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 5};
	char path[256];
	int fd;

	in_base(r, path, "share/f");
	write_file(path, "text");
	assert_int_equal(walk1(r, 0, 1, "f"), 0);
	assert_int_equal(call(r, TLOPEN, "44", 1, O_RDWR), 0);
	assert_int_equal(call(r, TLOCK, "414884", 1, 1, 0, UINT64_C(0), UINT64_C(8), 1), EINVAL); /* no client id */
	assert_int_equal(call(r, TLOCK, "414884s", 1, 1, 0, UINT64_C(0), UINT64_C(8), 1, "guest"), 0);
	assert_int_equal(r->reply[FS_HEADER], 0);
	fd = open(path, O_RDWR);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &l), -1); /* the host sees it */
	assert_int_equal(call(r, TLOCK, "414884s", 1, 2, 0, UINT64_C(0), UINT64_C(0), 1, "guest"), 0);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &l), 0);
	assert_int_equal(call(r, TLOCK, "414884s", 1, 1, 1, UINT64_C(0), UINT64_C(0), 1, "guest"), 0);
	assert_int_equal(r->reply[FS_HEADER], 1); /* blocked: never waits */
	assert_int_equal(call(r, TGETLOCK, "41884s", 1, 1, UINT64_C(0), UINT64_C(0), 1, "guest"), 0);
	assert_int_equal(r->reply[FS_HEADER], 1);
	close(fd);
	assert_int_equal(call(r, TLOCK, "414884s", 1, 1, 1, UINT64_C(0), UINT64_C(0), 1, "guest"), 0);
	assert_int_equal(call(r, TCLUNK, "4", 1), 0);
	fd = open(path, O_RDWR);
	assert_int_equal(fcntl(fd, F_OFD_SETLK, &l), 0); /* gone with the fid */
	close(fd);
}

static void test_directory(void **state)
{
	struct rig *r = *state;
	bool seen[500] = {false};
	uint64_t offset = 0;
	char path[256];

	for (unsigned i = 0; i < 500; i++) {
		snprintf(path, sizeof(path), "%s/%u", r->share, i);
		write_file(path, "");
	}
	assert_int_equal(call(r, TWALK, "442", 0, 1, 0), 0);
	assert_int_equal(call(r, TLOPEN, "44", 1, O_RDONLY), 0);
	assert_int_equal(call(r, TREADDIR, "484", 1, UINT64_C(0), 5), EINVAL);
	for (;;) {
		uint32_t at = FS_HEADER + 4, end;

		assert_int_equal(call(r, TREADDIR, "484", 1, offset, 300), 0);
		end = at + get_le32(r->reply + FS_HEADER);
		assert_true(end == r->got && end - at <= 300);
		if (at == end)
			break;
		while (at < end) {
			uint16_t n = get_le16(r->reply + at + 22);
			char name[32] = "";

			memcpy(name, r->reply + at + 24, n);
			offset = get_le64(r->reply + at + 13);
			at += 24 + n;
			if (name[0] != '.') {
				assert_false(seen[atoi(name)]);
				seen[atoi(name)] = true;
			}
		}
	}
	for (unsigned i = 0; i < 500; i++)
		assert_true(seen[i]);
}

static void test_session(void **state)
{
	struct rig *r = *state;
	uint8_t small[8];

	assert_int_equal(call(r, TVERSION, "4s", 8192, "9P2000.u"), 0);
	assert_memory_equal(r->reply + FS_HEADER + 4, "\7\0unknown", 9);
	assert_int_equal(call(r, TATTACH, "44ss4", 0, NOFID, "root", "", 0), EOPNOTSUPP);
	assert_int_equal(call(r, TVERSION, "4s", 100, "9P2000.L"), EINVAL);
	attach(r);
	assert_int_equal(call(r, TATTACH, "44ss4", 1, 5, "root", "", 0), EINVAL); /* no authentication */
	assert_int_equal(call(r, TATTACH, "44ss4", 1, NOFID, "root", "/etc", 0), ENOENT);
	assert_int_equal(call(r, 200, ""), EOPNOTSUPP);
	assert_int_equal(fs_request(r->fs, r->msg, r->n, small, sizeof(small)), 0);
	assert_int_equal(fs_request(r->fs, r->msg, 3, r->reply, sizeof(r->reply)), 11);
	put_le32(r->msg, 1u << 30);
	assert_int_equal(fs_request(r->fs, r->msg, r->n, r->reply, sizeof(r->reply)), 11);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_names), TEST(test_dot_dot), TEST(test_symlinks), TEST(test_moved_out), TEST(test_rename_race), TEST(test_special_files),
		TEST(test_closed_file_systems), TEST(test_readonly), TEST(test_set_id_bits), TEST(test_xattrs), TEST(test_removed_but_open),
		TEST(test_fids), TEST(test_locks), TEST(test_directory), TEST(test_session),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
