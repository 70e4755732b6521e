/* Raw disks, snapshot overlays, locks, and the rules of paths and formats. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/block/block.h"
#include "backend/block/iov.h"

#define SIZE (4 * MIB + 512)

static char dir[64];

static char *in_dir(const char *name)
{
	static char paths[4][128];
	static unsigned next;
	char *p = paths[next++ % 4];

	snprintf(p, sizeof(paths[0]), "%s/%s", dir, name);
	return p;
}

static int make_dir(void **state)
{
	strcpy(dir, "/var/tmp/doppel-block-XXXXXX");
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static void put_file(const char *path, const void *head, size_t len, uint64_t size)
{
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, head, len), len);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
}

static struct block *open_ok(struct block_options o)
{
	struct error err = {0};
	struct block *b = block_open(&o, &err);

	if (!b)
		fail_msg("%s", err.msg);
	return b;
}

static void open_fails(struct block_options o, const char *why)
{
	struct error err = {0};

	assert_null(block_open(&o, &err));
	if (!strstr(err.msg, why))
		fail_msg("'%s' does not say '%s'", err.msg, why);
}

/* Random operations on the disk and on an array in memory give the same bytes. */
static void against_model(struct block *b, uint8_t *model, unsigned seed)
{
	uint8_t *buf = malloc(SIZE);

	srand(seed);
	for (unsigned i = 0; i < 2000; i++) {
		uint64_t off = (uint64_t)rand() % SIZE, len = min_u64(1 + (uint64_t)rand() % (i % 8 ? 9000 : 300000), SIZE - off);
		struct iovec iov[3] = {{buf, len / 3}, {buf + len / 3, 0}, {buf + len / 3, len - len / 3}};

		switch (rand() % 5) {
		case 0:
		case 1:
			for (uint64_t j = 0; j < len; j += 7)
				buf[j] = (uint8_t)rand();
			memcpy(model + off, buf, len);
			assert_int_equal(block_writev(b, off, iov, 3), 0);
			break;
		case 2:
			memset(model + off, 0, len);
			assert_int_equal(block_write_zeroes(b, off, len, rand() & 1), 0);
			break;
		default:
			memset(buf, 0xee, len);
			assert_int_equal(block_readv(b, off, iov, 3), 0);
			assert_memory_equal(buf, model + off, len);
			break;
		}
	}
	assert_int_equal(block_read(b, 0, buf, SIZE), 0);
	assert_memory_equal(buf, model, SIZE);
	free(buf);
}

static void raw_model(void **state)
{
	static const enum block_cache caches[] = {BLOCK_CACHE_WRITEBACK, BLOCK_CACHE_NONE, BLOCK_CACHE_UNSAFE};
	uint8_t *model = malloc(SIZE);

	for (unsigned i = 0; i < ARRAY_LEN(caches); i++) {
		struct block *b;

		put_file(in_dir("m.raw"), "", 0, SIZE);
		memset(model, 0, SIZE);
		b = open_ok((struct block_options){.path = in_dir("m.raw"), .cache = caches[i]});
		against_model(b, model, i);
		assert_int_equal(block_flush(b), 0);
		block_close(b);
	}
	free(model);
}

static void snapshot_model(void **state)
{
	uint8_t *model = malloc(SIZE), *file = malloc(SIZE);
	struct block_options o = {.path = in_dir("s.raw"), .snapshot = true};
	struct block *b;

	for (size_t i = 0; i < SIZE; i++)
		model[i] = (uint8_t)(i * 7 + i / 4096);
	memcpy(file, model, SIZE);
	put_file(in_dir("s.raw"), file, SIZE, SIZE);
	b = open_ok(o);
	assert_false(b->readonly);
	against_model(b, model, 5);
	block_close(b);
	b = open_ok((struct block_options){.path = in_dir("s.raw"), .readonly = true});
	assert_int_equal(block_read(b, 0, model, SIZE), 0);
	assert_memory_equal(model, file, SIZE);
	block_close(b);
	free(model);
	free(file);
}

static void ranges(void **state)
{
	struct block_extent e;
	uint8_t buf[512] = {0};
	struct block *b;

	put_file(in_dir("r.raw"), "", 0, SIZE);
	b = open_ok((struct block_options){.path = in_dir("r.raw")});
	assert_int_equal(b->size, SIZE);
	assert_int_equal(block_read(b, SIZE - 511, buf, 512), -EINVAL);
	assert_int_equal(block_read(b, UINT64_MAX - 10, buf, 512), -EINVAL);
	assert_int_equal(block_write(b, SIZE, buf, 512), -EINVAL);
	assert_int_equal(block_write(b, SIZE, buf, 0), 0);
	assert_int_equal(block_discard(b, 1, UINT64_MAX), -EINVAL);
	assert_int_equal(block_write_zeroes(b, SIZE - 1, 2, true), -EINVAL);
	assert_int_equal(block_map(b, SIZE, 1, &e), -EINVAL);
	assert_int_equal(block_map(b, 0, 0, &e), -EINVAL);
	block_close(b);
	b = open_ok((struct block_options){.path = in_dir("r.raw"), .readonly = true});
	assert_int_equal(block_write(b, 0, buf, 512), -EROFS);
	assert_int_equal(block_discard(b, 0, 512), -EROFS);
	assert_int_equal(block_write_zeroes(b, 0, 512, false), -EROFS);
	assert_int_equal(block_flush(b), 0);
	block_close(b);
}

static uint64_t blocks_of(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return (uint64_t)st.st_blocks;
}

static void holes(void **state)
{
	uint8_t *buf = malloc(MIB);
	struct block_extent e;
	struct error err;
	struct block *b;

	memset(buf, 7, MIB);
	assert_true(block_create("raw", &(struct block_create){.path = in_dir("h.raw"), .size = 8 * MIB}, &err));
	assert_false(block_create("raw", &(struct block_create){.path = in_dir("h.raw"), .size = 8 * MIB}, &err));
	assert_int_equal(blocks_of(in_dir("h.raw")), 0);
	b = open_ok((struct block_options){.path = in_dir("h.raw")});
	assert_int_equal(block_write(b, 2 * MIB, buf, MIB), 0);
	assert_int_equal(block_map(b, 0, 8 * MIB, &e), 0);
	assert_int_equal(e.kind, EXTENT_UNALLOCATED);
	assert_int_equal(e.len, 2 * MIB);
	assert_int_equal(block_map(b, 2 * MIB + 4096, 6 * MIB - 4096, &e), 0);
	assert_int_equal(e.kind, EXTENT_DATA);
	assert_int_equal(e.len, MIB - 4096);
	assert_int_equal(e.host_off, 2 * MIB + 4096);
	assert_int_equal(block_map(b, 3 * MIB, 5 * MIB, &e), 0);
	assert_int_equal(e.kind, EXTENT_UNALLOCATED);
	assert_int_equal(e.len, 5 * MIB);

	assert_int_equal(block_discard(b, 2 * MIB, MIB), 0);
	assert_int_equal(blocks_of(in_dir("h.raw")), 0);
	assert_int_equal(block_read(b, 2 * MIB, buf, MIB), 0);
	for (size_t i = 0; i < MIB; i++)
		assert_int_equal(buf[i], 0);

	assert_true(b->format->resize(b, 16 * MIB, &err));
	assert_int_equal(block_write(b, 16 * MIB - 1, "x", 1), 0);
	assert_true(b->format->resize(b, 4096, &err));
	assert_int_equal(block_read(b, 4096, buf, 1), -EINVAL);
	block_close(b);
	free(buf);
}

static void locks(void **state)
{
	char *path = in_dir("l.raw");
	struct block_options w = {.path = path}, r = {.path = path, .readonly = true}, s = {.path = path, .snapshot = true};
	struct block_options info = {.path = path, .readonly = true, .no_lock = true};
	struct block *a, *b, *c;
	pid_t child;
	int status;

	put_file(path, "", 0, SIZE);
	a = open_ok(w);
	open_fails(w, "named twice");
	open_fails(r, "named twice");
	open_fails(s, "named twice");
	block_close(open_ok(info));
	child = fork();
	if (child == 0) {
		struct error err = {0};
		char want[64];

		snprintf(want, sizeof(want), "in use by process %d", (int)getppid());
		_exit(!block_open(&r, &err) && strstr(err.msg, want) ? 0 : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	block_close(a);

	a = open_ok(r);
	b = open_ok(r);
	c = open_ok(s);
	open_fails(w, "named twice");
	block_close(a);
	block_close(b);
	open_fails(w, "named twice");
	block_close(c);
	block_close(open_ok(w));
}

/* QEMU's tools see our locks, and we theirs. */
static void locks_of_qemu(void **state)
{
	char *path = in_dir("q.raw"), cmd[400];
	struct block *b;

	if (system("qemu-io --version >/dev/null 2>&1"))
		skip();
	put_file(path, "", 0, SIZE);
	snprintf(cmd, sizeof(cmd), "qemu-io -f raw -c 'write 0 512' %s >/dev/null 2>&1", path);
	assert_int_equal(system(cmd), 0);
	b = open_ok((struct block_options){.path = path, .readonly = true});
	assert_int_not_equal(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "qemu-io -r -f raw -c 'read 0 512' %s >/dev/null 2>&1", path);
	assert_int_equal(system(cmd), 0);
	block_close(b);
	b = open_ok((struct block_options){.path = path});
	assert_int_not_equal(system(cmd), 0);
	block_close(b);

	snprintf(cmd, sizeof(cmd), "(echo 'write 0 512'; sleep 1) | qemu-io -f raw %s >/dev/null 2>&1 & sleep .4", path);
	assert_int_equal(system(cmd), 0);
	open_fails((struct block_options){.path = path, .readonly = true}, "in use by process");
	open_fails((struct block_options){.path = path}, "in use by process");
	sleep(1);
	block_close(open_ok((struct block_options){.path = path}));
}

static void bad_paths(void **state)
{
	open_fails((struct block_options){.path = in_dir("none.raw")}, "No such file");
	open_fails((struct block_options){.path = dir}, "Is a directory");
	open_fails((struct block_options){.path = dir, .readonly = true}, "not a file or block device");
	open_fails((struct block_options){.path = "/dev/null"}, "not a file or block device");
	assert_int_equal(mkfifo(in_dir("fifo"), 0600), 0);
	open_fails((struct block_options){.path = in_dir("fifo")}, "not a file or block device");
	open_fails((struct block_options){.path = in_dir("fifo"), .readonly = true}, "not a file or block device");
	put_file(in_dir("empty.raw"), "", 0, 0);
	open_fails((struct block_options){.path = in_dir("empty.raw")}, "it is empty");
	open_fails((struct block_options){.path = in_dir("x"), .format = "floppy"}, "unknown disk format 'floppy'");
}

/* A guest may write anything to its raw disk: it stays raw where the user said so, and is refused where only the name says so. */
static void magic_is_not_probed(void **state)
{
	struct error err;
	uint8_t head[512] = "QFI\xfb\0\0\0\3", buf[512];
	struct block *b;

	put_file(in_dir("magic.img"), head, sizeof(head), SIZE);
	b = open_ok((struct block_options){.path = in_dir("magic.img"), .format = "raw"});
	assert_string_equal(b->format->name, "raw");
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	assert_memory_equal(buf, head, 512);
	block_close(b);
	if (!block_format_find("qcow2", &err))
		skip();
	open_fails((struct block_options){.path = in_dir("magic.img")}, "begins like a qcow2 one");
}

static bool backing(const char *image, const char *name, const char *given, struct error *err)
{
	struct block_options o = {.path = image, .backing = given};
	struct block *b = block_open_backing(&o, name, "raw", err);

	if (b) {
		assert_true(b->readonly);
		assert_int_equal(b->size, SIZE);
	}
	block_close(b);
	return b;
}

static void backing_rules(void **state)
{
	char *image = in_dir("sub/i.qcow2"), abs[200];
	struct error err;

	assert_int_equal(mkdir(in_dir("sub"), 0700), 0);
	assert_int_equal(mkdir(in_dir("sub/deep"), 0700), 0);
	assert_int_equal(mkdir(in_dir("sub2"), 0700), 0);
	image = strdup(image);
	put_file(image, "", 0, SIZE);
	put_file(in_dir("out.raw"), "", 0, SIZE);
	put_file(in_dir("sub2/b.raw"), "", 0, SIZE);
	put_file(in_dir("sub/b.raw"), "", 0, SIZE);
	put_file(in_dir("sub/deep/b.raw"), "", 0, SIZE);
	assert_int_equal(symlink("../out.raw", in_dir("sub/link.raw")), 0);
	assert_int_equal(symlink("b.raw", in_dir("sub/inlink.raw")), 0);
	snprintf(abs, sizeof(abs), "%s/sub/b.raw", dir);

	assert_true(backing(image, "b.raw", NULL, &err));
	assert_true(backing(image, "deep/b.raw", NULL, &err));
	assert_true(backing(image, "deep/../b.raw", NULL, &err));
	assert_true(backing(image, "inlink.raw", NULL, &err));
	assert_true(backing(image, abs, NULL, &err));
	assert_false(backing(image, "../out.raw", NULL, &err));
	assert_non_null(strstr(err.msg, "outside"));
	assert_non_null(strstr(err.hint, "backing="));
	assert_false(backing(image, "../sub2/b.raw", NULL, &err));
	assert_false(backing(image, "link.raw", NULL, &err));
	assert_false(backing(image, "/etc/passwd", NULL, &err));
	assert_false(backing(image, "json:{}", NULL, &err));
	assert_false(backing(image, "nbd://x/y", NULL, &err));
	assert_false(backing(image, "", NULL, &err));
	assert_false(backing(image, "gone.raw", NULL, &err));
	assert_true(backing(image, "../out.raw", in_dir("out.raw"), &err));
	free(image);
}

static void vectors(void **state)
{
	char a[4] = "abcd", b[3] = "efg", c[5] = "hijkl", out[16] = {0};
	struct iovec iov[4] = {{a, 4}, {b, 0}, {b, 3}, {c, 5}}, part[4];

	assert_int_equal(iov_len(iov, 4), 12);
	assert_int_equal(iov_slice(iov, 4, 3, 5, part), 3);
	assert_int_equal(iov_len(part, 3), 5);
	assert_ptr_equal(part[0].iov_base, a + 3);
	assert_int_equal(part[2].iov_len, 1);
	iov_to_buf(iov, 4, 2, out, 7);
	assert_string_equal(out, "cdefghi");
	iov_from_buf(iov, 4, 5, "XYZ", 3);
	iov_zero(iov, 4, 11, 1);
	iov_to_buf(iov, 4, 0, out, 12);
	assert_string_equal(out, "abcdeXYZijk");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(vectors),   cmocka_unit_test(raw_model),     cmocka_unit_test(snapshot_model),
		cmocka_unit_test(ranges),    cmocka_unit_test(holes),         cmocka_unit_test(locks),
		cmocka_unit_test(locks_of_qemu), cmocka_unit_test(bad_paths), cmocka_unit_test(magic_is_not_probed),
		cmocka_unit_test(backing_rules),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
