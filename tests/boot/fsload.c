/*
 * Random file operations, done alike in two directories of a guest: one shared by the host, one in the guest's own tmpfs, which judges. Results must
 * agree after each operation, whole trees at the end.
 *
 *   fsload SHARED REFERENCE SEED OPERATIONS [mmap]
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define OPEN_MAX_FILES 8
#define SIZE_MAX_FILE (512 * 1024)
#define NAMES 6
#define DEPTH 3

struct pair {
	int fd[2];
	int flags;
};

static const char *roots[2];
static struct pair open_files[OPEN_MAX_FILES];
static uint64_t state;
static unsigned step;
static int with_mmap;
static uint8_t data[SIZE_MAX_FILE], back[2][SIZE_MAX_FILE];
static unsigned long done[32], failed;

static uint32_t rnd(uint32_t n)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(state >> 33) % n;
}

static void die(const char *what, const char *path, long a, long b)
{
	printf("fsload: DIFFERENT at step %u: %s %s: %ld and %ld\n", step, what, path, a, b);
	exit(1);
}

/* A path below the roots: directories d0.., then a name of any kind. */
static void make_path(char out[2][256])
{
	char rel[128] = "";
	uint32_t depth = rnd(DEPTH);

	for (uint32_t i = 0; i < depth; i++)
		snprintf(rel + strlen(rel), sizeof(rel) - strlen(rel), "/n%u", rnd(NAMES));
	snprintf(rel + strlen(rel), sizeof(rel) - strlen(rel), "/%s%u", rnd(4) ? "n" : "a name that is somewhat longer, with spaces ", rnd(NAMES));
	for (int i = 0; i < 2; i++)
		snprintf(out[i], 256, "%s%s", roots[i], rel);
}

static int result(int r) { return r < 0 ? -errno : 0; }

/* Errors that say the same in two ways. */
static int plain(int r) { return r == -EEXIST ? -ENOTEMPTY : r; }

static void same(const char *what, const char *path, int a, int b)
{
	if (plain(a) != plain(b))
		die(what, path, a, b);
	failed += a < 0;
}

static void random_data(size_t n)
{
	uint8_t v = (uint8_t)rnd(255) + 1;

	for (size_t i = 0; i < n; i++)
		data[i] = (uint8_t)(v + i * 7 + (i >> 8));
}

static void do_open(void)
{
	static const int modes[] = {O_RDWR, O_RDWR | O_CREAT, O_RDWR | O_CREAT | O_EXCL, O_RDWR | O_TRUNC, O_RDWR | O_CREAT | O_TRUNC, O_RDONLY, O_RDWR | O_APPEND};
	struct pair *p = &open_files[rnd(OPEN_MAX_FILES)];
	mode_t mode = (mode_t)(0600 | rnd(0200));
	char path[2][256];
	struct stat st;
	int r[2];

	p->flags = modes[rnd(7)];
	make_path(path);
	for (int i = 0; i < 2; i++) {
		if (p->fd[i] >= 0)
			close(p->fd[i]);
		p->fd[i] = open(path[i], p->flags | O_NONBLOCK, mode); /* a FIFO must not make us wait */
		r[i] = result(p->fd[i]);
		if (p->fd[i] >= 0 && fstat(p->fd[i], &st) == 0 && S_ISREG(st.st_mode)) /* Linux' 9p reads less than was asked for where nothing may block */
			fcntl(p->fd[i], F_SETFL, p->flags & O_APPEND);
	}
	same("open", path[0], r[0], r[1]);
}

static struct pair *some_open(void)
{
	struct pair *p = &open_files[rnd(OPEN_MAX_FILES)];

	return p->fd[0] >= 0 ? p : NULL;
}

static void do_write(void)
{
	struct pair *p = some_open();
	size_t n = rnd(8) ? rnd(5000) : rnd(200000);
	off_t at = rnd(SIZE_MAX_FILE - 200000);
	long r[2];

	if (!p)
		return;
	random_data(n);
	for (int i = 0; i < 2; i++) {
		struct stat st;

		if (p->flags & O_APPEND && fstat(p->fd[i], &st) == 0 && st.st_size > SIZE_MAX_FILE - 200000)
			return;
		r[i] = p->flags & O_APPEND ? write(p->fd[i], data, n) : pwrite(p->fd[i], data, n, at);
		if (r[i] < 0)
			r[i] = -errno;
	}
	if (r[0] != r[1])
		die("write", "", r[0], r[1]);
}

static void do_read(void)
{
	struct pair *p = some_open();
	size_t n = rnd(8) ? rnd(5000) : rnd(200000);
	off_t at = rnd(SIZE_MAX_FILE);
	long r[2];

	if (!p)
		return;
	for (int i = 0; i < 2; i++) {
		r[i] = pread(p->fd[i], back[i], n, at);
		if (r[i] < 0)
			r[i] = -errno;
	}
	if (r[0] != r[1] || (r[0] > 0 && memcmp(back[0], back[1], (size_t)r[0])))
		die("read", "", r[0], r[1]);
}

static void do_truncate(void)
{
	struct pair *p = some_open();
	off_t size = rnd(SIZE_MAX_FILE);
	int r[2];

	if (!p)
		return;
	for (int i = 0; i < 2; i++)
		r[i] = result(ftruncate(p->fd[i], size));
	same("ftruncate", "", r[0], r[1]);
}

static void do_stat(void)
{
	struct pair *p = some_open();
	struct stat st[2];

	if (!p)
		return;
	if (fstat(p->fd[0], &st[0]) || fstat(p->fd[1], &st[1]))
		die("fstat", "", errno, 0);
	if ((S_ISREG(st[0].st_mode) && st[0].st_size != st[1].st_size) || st[0].st_mode != st[1].st_mode)
		die("fstat", "", st[0].st_size, st[1].st_size);
}

static void do_sync(void)
{
	struct pair *p = some_open();
	struct stat st;

	if (p && fstat(p->fd[0], &st) == 0 && S_ISREG(st.st_mode) && (rnd(2) ? fsync(p->fd[0]) : fdatasync(p->fd[0])))
		die("fsync", "", errno, 0);
}

static void do_mmap(void)
{
	struct pair *p = some_open();
	struct stat st;
	size_t at, n;

	if (!p || p->flags != O_RDWR || fstat(p->fd[1], &st) || !S_ISREG(st.st_mode) || st.st_size < 1)
		return;
	at = rnd((uint32_t)st.st_size);
	n = rnd((uint32_t)(st.st_size - (off_t)at)) + 1;
	random_data(n);
	for (int i = 0; i < 2; i++) {
		uint8_t *m = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd[i], 0);

		if (m == MAP_FAILED)
			die("mmap", "", errno, i);
		memcpy(m + at, data, n);
		if (msync(m, (size_t)st.st_size, MS_SYNC))
			die("msync", "", errno, i);
		munmap(m, (size_t)st.st_size);
	}
}

static void do_two_paths(int what)
{
	char a[2][256], b[2][256];
	int r[2];

	make_path(a);
	make_path(b);
	for (int i = 0; i < 2; i++)
		r[i] = result(what ? link(a[i], b[i]) : rename(a[i], b[i]));
	same(what ? "link" : "rename", a[0], r[0], r[1]);
}

static void do_path(int what)
{
	static const char *const names[] = {"mkdir", "rmdir", "unlink", "symlink", "chmod", "truncate", "mkfifo", "utimens", "setxattr", "getxattr"};
	mode_t mode = (mode_t)(0600 | rnd(0200));
	struct timespec ts[2] = {{.tv_sec = rnd(2000000000), .tv_nsec = rnd(1000000000)}, {.tv_sec = rnd(2000000000), .tv_nsec = rnd(1000000000)}};
	off_t size = rnd(SIZE_MAX_FILE);
	char path[2][256];
	struct stat st;
	int r[2];

	make_path(path);
	for (int i = 0; i < 2; i++) {
		switch (what) {
		case 0: r[i] = result(mkdir(path[i], mode | 0700)); break;
		case 1: r[i] = result(rmdir(path[i])); break;
		case 2: r[i] = result(unlink(path[i])); break;
		case 3: r[i] = result(symlink("n1/n2", path[i])); break;
		case 4: /* a directory stays open to us */
			r[i] = lstat(path[i], &st) == 0 && S_ISREG(st.st_mode) ? result(chmod(path[i], mode)) : 0;
			break;
		case 5: r[i] = lstat(path[i], &st) == 0 && S_ISREG(st.st_mode) ? result(truncate(path[i], size)) : 0; break;
		case 6: r[i] = result(mkfifo(path[i], mode)); break;
		case 7: r[i] = lstat(path[i], &st) == 0 && S_ISREG(st.st_mode) ? result(utimensat(AT_FDCWD, path[i], ts, 0)) : 0; break;
		default: r[i] = 0;
		}
	}
	same(names[what], path[0], r[0], r[1]);
}

/* What stays visible: nothing of the reference's, as tmpfs has no attributes of users here. */
static void do_xattr(void)
{
	char path[2][256], name[32], value[300], got[300];
	size_t n = rnd(sizeof(value));
	struct stat st;
	ssize_t r;

	make_path(path);
	if (lstat(path[0], &st) || !S_ISREG(st.st_mode))
		return;
	snprintf(name, sizeof(name), "user.x%u", rnd(3));
	memset(value, (int)rnd(256), sizeof(value));
	if (setxattr(path[0], name, value, n, 0)) {
		if (errno == EOPNOTSUPP || errno == ENOSPC)
			return; /* the host's file system has none */
		die("setxattr", path[0], errno, 0);
	}
	r = getxattr(path[0], name, got, sizeof(got));
	if (r != (ssize_t)n || memcmp(value, got, n))
		die("getxattr", path[0], r, (long)n);
	r = listxattr(path[0], got, sizeof(got));
	if (r <= 0 || !memmem(got, (size_t)r, name, strlen(name) + 1))
		die("listxattr", path[0], r, 0);
	if (removexattr(path[0], name) || getxattr(path[0], name, got, sizeof(got)) != -1 || errno != ENODATA)
		die("removexattr", path[0], errno, 0);
}

static void do_lock(void)
{
	struct pair *p = some_open();
	struct flock l = {.l_type = (short)(rnd(3) == 0 ? F_RDLCK : rnd(2) ? F_WRLCK : F_UNLCK), .l_whence = SEEK_SET, .l_start = rnd(1000), .l_len = rnd(1000)};
	struct flock copy = l;
	int r[2];

	if (!p)
		return;
	r[0] = result(fcntl(p->fd[0], F_SETLK, &l));
	r[1] = result(fcntl(p->fd[1], F_SETLK, &copy));
	same("lock", "", r[0], r[1]);
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static void compare_file(const char *a, const char *b)
{
	int fa = open(a, O_RDONLY), fb = open(b, O_RDONLY);
	ssize_t na, nb;

	do {
		na = read(fa, back[0], 65536);
		nb = read(fb, back[1], 65536);
		if (na != nb || na < 0 || memcmp(back[0], back[1], (size_t)na))
			die("content of", a, na, nb);
	} while (na);
	close(fa);
	close(fb);
}

static void compare(const char *a, const char *b, unsigned *files)
{
	struct dirent **la, **lb;
	int na = scandir(a, &la, NULL, by_name), nb = scandir(b, &lb, NULL, by_name);

	if (na != nb || na < 0)
		die("entries of", a, na, nb);
	for (int i = 0; i < na; i++) {
		char pa[512], pb[512], ta[512] = "", tb[512] = "";
		struct stat sa, sb;

		if (strcmp(la[i]->d_name, lb[i]->d_name))
			die("name in", a, i, 0);
		if (strcmp(la[i]->d_name, ".") && strcmp(la[i]->d_name, "..")) {
			snprintf(pa, sizeof(pa), "%s/%s", a, la[i]->d_name);
			snprintf(pb, sizeof(pb), "%s/%s", b, la[i]->d_name);
			if (lstat(pa, &sa) || lstat(pb, &sb))
				die("lstat", pa, errno, 0);
			if (sa.st_mode != sb.st_mode)
				die("mode of", pa, sa.st_mode, sb.st_mode);
			++*files;
			if (S_ISDIR(sa.st_mode)) {
				compare(pa, pb, files);
			} else if (S_ISREG(sa.st_mode)) {
				if (sa.st_nlink != sb.st_nlink || sa.st_size != sb.st_size)
					die("links or size of", pa, sa.st_size, sb.st_size);
				compare_file(pa, pb);
			} else if (S_ISLNK(sa.st_mode) && (readlink(pa, ta, 511) != readlink(pb, tb, 511) || strcmp(ta, tb))) {
				die("link", pa, 0, 0);
			}
		}
		free(la[i]);
		free(lb[i]);
	}
	free(la);
	free(lb);
}

static void one(void)
{
	uint32_t what = rnd(24);

	done[what]++;
	switch (what) {
	case 0 ... 3: do_open(); break;
	case 4 ... 7: do_write(); break;
	case 8 ... 9: do_read(); break;
	case 10: do_truncate(); break;
	case 11: do_stat(); break;
	case 12: do_sync(); break;
	case 13: if (with_mmap) do_mmap(); break;
	case 14: do_two_paths(0); break;
	case 15: do_two_paths(1); break;
	case 16: do_lock(); break;
	case 17: do_xattr(); break;
	case 18 ... 19: do_path(0); break;
	default: do_path((int)rnd(8)); break;
	}
}

/* Many entries, to be read in several pieces while some are removed. */
static void big_directory(void)
{
	char path[300];
	unsigned seen = 0;
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "%s/big", roots[0]);
	if (mkdir(path, 0700))
		die("mkdir", path, errno, 0);
	for (unsigned i = 0; i < 1500; i++) {
		snprintf(path, sizeof(path), "%s/big/file number %u of a directory with many", roots[0], i);
		close(open(path, O_CREAT | O_WRONLY, 0600));
	}
	snprintf(path, sizeof(path), "%s/big", roots[0]);
	d = opendir(path);
	while ((e = readdir(d))) {
		seen += e->d_name[0] == 'f';
		if (e->d_name[0] == 'f' && unlinkat(dirfd(d), e->d_name, 0))
			die("unlink", e->d_name, errno, 0);
	}
	closedir(d);
	if (seen != 1500 || rmdir(path))
		die("entries of a big directory", path, seen, errno);
}

int main(int argc, char **argv)
{
	unsigned operations, files = 0;

	if (argc < 5)
		return 2;
	roots[0] = argv[1];
	roots[1] = argv[2];
	state = strtoull(argv[3], NULL, 0);
	operations = (unsigned)strtoul(argv[4], NULL, 0);
	with_mmap = argc > 5;
	umask(0);
	for (unsigned i = 0; i < OPEN_MAX_FILES; i++)
		open_files[i].fd[0] = open_files[i].fd[1] = -1;
	for (step = 0; step < operations; step++)
		one();
	for (unsigned i = 0; i < OPEN_MAX_FILES; i++)
		for (int k = 0; k < 2; k++)
			if (open_files[i].fd[k] >= 0)
				close(open_files[i].fd[k]);
	compare(roots[0], roots[1], &files);
	big_directory();
	printf("fsload: %u operations agree, %lu of them errors; %u files\n", operations, failed, files);
	return 0;
}
