/*
 * VMDK beside qemu-img and qemu-io: random sequences of writes, zeroes and discards by our code are read by theirs, and
 * theirs by ours. A shadow in memory says what must be there.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/block/block.h"

#define SIZE (40 * MIB + 3 * BLOCK_SECTOR)
#define OP_MAX (300 * KIB)

struct shadow {
	char dir[64], path[128], raw[128];
	uint8_t *data;
	uint64_t size;
	uint64_t seed;
};

static const char *const writable[] = {"monolithicSparse", "monolithicSparse,zeroed_grain=on", "monolithicFlat",
				       "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"};

static uint64_t next(struct shadow *s)
{
	s->seed ^= s->seed << 13;
	s->seed ^= s->seed >> 7;
	s->seed ^= s->seed << 17;
	return s->seed;
}

static void begin(struct shadow *s, uint64_t size)
{
	*s = (struct shadow){.size = size, .seed = 88172645463325252u, .dir = "/tmp/doppel-vmdk.XXXXXX"};
	assert_non_null(mkdtemp(s->dir));
	snprintf(s->path, sizeof(s->path), "%s/d.vmdk", s->dir);
	snprintf(s->raw, sizeof(s->raw), "%s/shadow.raw", s->dir);
	s->data = calloc(1, size);
	assert_non_null(s->data);
}

static void run_command(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void run_command(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd) != 0)
		fail_msg("failed: %s", cmd);
}

static void end(struct shadow *s)
{
	free(s->data);
	run_command("rm -rf %s", s->dir);
}

static void write_raw(const struct shadow *s)
{
	FILE *f = fopen(s->raw, "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(s->data, 1, s->size, f), s->size);
	assert_int_equal(fclose(f), 0);
}

static struct block *open_image(const char *path, bool readonly)
{
	struct block_options o = {.path = path, .readonly = readonly};
	struct error err = {0};
	struct block *b = block_open(&o, &err);

	if (!b)
		fail_msg("%s (%s)", err.msg, err.hint);
	return b;
}

static void create(const char *path, uint64_t size, const char *options, const char *backing)
{
	struct block_create c = {.path = path, .size = size, .options = options, .backing = backing};
	struct error err = {0};

	if (!block_create("vmdk", &c, &err))
		fail_msg("%s (%s)", err.msg, err.hint);
}

static void verify(struct shadow *s, struct block *b)
{
	uint8_t *buf = malloc(s->size);

	assert_non_null(buf);
	assert_int_equal(b->size, s->size);
	assert_int_equal(block_read(b, 0, buf, s->size), 0);
	assert_memory_equal(buf, s->data, s->size);
	/* and in odd pieces */
	for (unsigned i = 0; i < 200; i++) {
		uint64_t off = next(s) % s->size, len = 1 + next(s) % min_u64(OP_MAX, s->size - off),
			 cut = next(s) % len;
		struct iovec iov[3] = {{buf, cut}, {buf + cut, 0}, {buf + cut, len - cut}};

		assert_int_equal(block_readv(b, off, iov, 3), 0);
		assert_memory_equal(buf, s->data + off, len);
	}
	free(buf);
}

/* The map covers the disk, names bytes that are there, and calls nothing zero that is not. */
static void verify_map(const struct shadow *s, struct block *b)
{
	uint8_t *buf = malloc(s->size);
	struct block_extent e;

	assert_non_null(buf);
	for (uint64_t off = 0; off < s->size; off += e.len) {
		assert_int_equal(block_map(b, off, s->size - off, &e), 0);
		assert_in_range(e.len, 1, s->size - off);
		memset(buf, 0, e.len);
		if (e.kind == EXTENT_DATA)
			assert_int_equal(pread(e.fd, buf, e.len, (off_t)e.host_off), (ssize_t)e.len);
		if (e.kind != EXTENT_ENCODED)
			assert_memory_equal(buf, s->data + off, e.len);
	}
	free(buf);
}

static void one_op(struct shadow *s, struct block *b, uint8_t *buf)
{
	uint64_t off = next(s) % s->size, len = 1 + next(s) % min_u64(OP_MAX, s->size - off);
	unsigned what = next(s) % 16;

	if (next(s) % 2) { /* whole sectors, often whole grains */
		uint64_t unit = next(s) % 2 ? 64 * KIB : BLOCK_SECTOR;

		off = align_down(off, unit);
		len = min_u64(align_up(len, unit), s->size - off);
	}
	if (what < 2) {
		assert_int_equal(block_write_zeroes(b, off, len, what == 0), 0);
		memset(s->data + off, 0, len);
	} else if (what == 2) {
		assert_int_equal(block_discard(b, off, len), 0);
		assert_int_equal(block_read(b, off, s->data + off, len), 0);
	} else if (what == 3) {
		assert_int_equal(block_flush(b), 0);
	} else {
		for (uint64_t i = 0; i < len; i++)
			buf[i] = (uint8_t)(next(s) >> 24);
		memcpy(s->data + off, buf, len);
		assert_int_equal(block_write(b, off, buf, len), 0);
	}
}

static void random_ops(struct shadow *s, struct block *b, unsigned n)
{
	uint8_t *buf = malloc(OP_MAX + 64 * KIB);

	assert_non_null(buf);
	for (unsigned i = 0; i < n; i++)
		one_op(s, b, buf);
	free(buf);
}

static void judge(struct shadow *s)
{
	write_raw(s);
	run_command("qemu-img compare -q -f raw -F vmdk %s %s", s->raw, s->path);
	run_command("qemu-img check -q -f vmdk %s 2>/dev/null || qemu-img info -f vmdk %s | grep -q Flat || qemu-img "
		    "info -f vmdk %s | "
		    "grep -q 'type: FLAT'",
		    s->path, s->path, s->path);
}

static void check_clean(struct block *b)
{
	struct block_check c = {0};
	struct error err = {0};

	assert_true(b->format->check(b, false, &c, &err));
	assert_int_equal(c.corruptions, 0);
}

static void test_random_writes(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(writable); i++) {
		char options[64];
		struct shadow s;
		struct block *b;

		begin(&s, SIZE);
		s.seed += i;
		snprintf(options, sizeof(options), "subformat=%s", writable[i]);
		create(s.path, s.size, options, NULL);
		for (unsigned round = 0; round < 3; round++) {
			b = open_image(s.path, false);
			random_ops(&s, b, 60);
			verify(&s, b);
			verify_map(&s, b);
			assert_int_equal(block_flush(b), 0);
			check_clean(b);
			block_close(b);
			judge(&s);
		}
		end(&s);
	}
}

/* One write each, by qemu-io, of a pattern byte. */
static void qemu_ops(struct shadow *s, unsigned n)
{
	char script[160];
	FILE *f;

	snprintf(script, sizeof(script), "%s/script", s->dir);
	f = fopen(script, "w");
	assert_non_null(f);
	for (unsigned i = 0; i < n; i++) {
		uint64_t off = align_down(next(s) % s->size, BLOCK_SECTOR);
		uint64_t len = min_u64(align_up(1 + next(s) % OP_MAX, BLOCK_SECTOR), s->size - off);
		unsigned pattern = next(s) % 256;

		if (next(s) % 8 == 0) {
			pattern = 0;
			fprintf(f, "write -z %llu %llu\n", (unsigned long long)off, (unsigned long long)len);
		} else {
			fprintf(f, "write -P %u %llu %llu\n", pattern, (unsigned long long)off,
				(unsigned long long)len);
		}
		memset(s->data + off, (int)pattern, len);
	}
	assert_int_equal(fclose(f), 0);
	run_command("qemu-io -f vmdk %s < %s > %s.out && ! grep -qi failed %s.out", s->path, script, script, script);
}

static void test_qemu_writes(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(writable); i++) {
		struct shadow s;
		struct block *b;

		begin(&s, SIZE);
		run_command("qemu-img create -q -f vmdk -o subformat=%s %s %llu", writable[i], s.path,
			    (unsigned long long)s.size);
		for (unsigned round = 0; round < 2; round++) { /* turn by turn */
			qemu_ops(&s, 40);
			b = open_image(s.path, false);
			verify(&s, b);
			verify_map(&s, b);
			check_clean(b);
			random_ops(&s, b, 30);
			assert_int_equal(block_flush(b), 0);
			verify(&s, b);
			block_close(b);
			judge(&s);
		}
		end(&s);
	}
}

static void fill_patches(struct shadow *s)
{
	for (unsigned i = 0; i < 30; i++) {
		uint64_t off = next(s) % s->size, len = 1 + next(s) % min_u64(OP_MAX, s->size - off);

		for (uint64_t k = 0; k < len; k++)
			s->data[off + k] = next(s) % 4 ? (uint8_t)i : (uint8_t)(next(s) >> 16);
	}
}

static void test_stream_written_by_qemu(void **state)
{
	struct shadow s;
	struct block *b;

	begin(&s, SIZE);
	fill_patches(&s);
	write_raw(&s);
	run_command("qemu-img convert -f raw -O vmdk -o subformat=streamOptimized %s %s", s.raw, s.path);
	b = open_image(s.path, true);
	verify(&s, b);
	verify_map(&s, b);
	check_clean(b);
	block_close(b);
	end(&s);
}

/* In any order; what lies behind is not lost, and the file is whole after each flush. */
static void test_stream_written_by_us(void **state)
{
	struct shadow s;
	struct block *b;
	unsigned order[41], n = 0;

	begin(&s, SIZE);
	fill_patches(&s);
	create(s.path, s.size, "subformat=streamOptimized", NULL);
	run_command("qemu-img info -f vmdk %s > /dev/null", s.path);
	b = open_image(s.path, false);
	for (unsigned i = 0; i < 41; i++)
		order[i] = i;
	for (unsigned i = 0; i < 38; i += 3) { /* as from three threads */
		order[i] = i + 2;
		order[i + 2] = i;
	}
	for (unsigned i = 0; i < 41; i++) {
		uint64_t off = order[i] * MIB, len = min_u64(MIB, s.size - off);

		assert_int_equal(b->format->write_compressed(b, off, len, s.data + off), 0);
		if (i % 16 == 15)
			assert_int_equal(block_flush(b), 0);
		n++;
	}
	assert_int_equal(n, 41);
	assert_int_equal(block_flush(b), 0);
	verify(&s, b);
	block_close(b);
	b = open_image(s.path, true);
	verify(&s, b);
	check_clean(b);
	block_close(b);
	judge(&s);
	end(&s);
}

static void test_stream_is_written_once(void **state)
{
	struct block_options o = {0};
	struct error err = {0};
	struct shadow s;

	begin(&s, 2 * MIB);
	memset(s.data, 7, s.size);
	write_raw(&s);
	run_command("qemu-img convert -f raw -O vmdk -o subformat=streamOptimized %s %s", s.raw, s.path);
	o.path = s.path;
	assert_null(block_open(&o, &err));
	assert_non_null(strstr(err.msg, "only once"));
	end(&s);
}

static void test_parents(void **state)
{
	static const char *const kinds[] = {"subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on"};

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		struct block_options o = {0};
		struct error err = {0};
		struct shadow s;
		struct block *b;
		char parent[160];

		begin(&s, SIZE);
		snprintf(parent, sizeof(parent), "%s/base.vmdk", s.dir);
		create(parent, s.size, NULL, NULL);
		b = open_image(parent, false);
		random_ops(&s, b, 40);
		assert_int_equal(block_flush(b), 0);
		block_close(b);
		create(s.path, s.size, kinds[i], "base.vmdk");
		b = open_image(s.path, false);
		verify(&s, b);
		random_ops(&s, b, 60);
		verify(&s, b);
		verify_map(&s, b);
		assert_int_equal(block_flush(b), 0);
		block_close(b);
		judge(&s);
		/* a parent that has changed is not its parent any more */
		b = open_image(parent, false);
		assert_int_equal(block_write(b, 0, "x", 1), 0);
		block_close(b);
		o.path = s.path;
		assert_null(block_open(&o, &err));
		assert_non_null(strstr(err.msg, "changed"));
		end(&s);
	}
}

static void test_qemu_child(void **state)
{
	struct shadow s;
	struct block *b;

	begin(&s, SIZE);
	fill_patches(&s);
	write_raw(&s);
	run_command("qemu-img convert -f raw -O vmdk %s %s/base.vmdk", s.raw, s.dir);
	run_command("cd %s && qemu-img create -q -f vmdk -b base.vmdk -F vmdk d.vmdk", s.dir);
	qemu_ops(&s, 40);
	b = open_image(s.path, true);
	verify(&s, b);
	verify_map(&s, b);
	block_close(b);
	end(&s);
}

/* More than 2 GiB: several files, writes across their borders. */
static void test_split(void **state)
{
	static const char *const kinds[] = {"twoGbMaxExtentSparse", "twoGbMaxExtentFlat"};

	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		uint64_t border = 2047 * MIB;
		char options[64];
		uint8_t buf[8192], back[8192];
		struct shadow s;
		struct block *b;

		begin(&s, 512);
		snprintf(options, sizeof(options), "subformat=%s", kinds[i]);
		create(s.path, 5 * GIB, options, NULL);
		b = open_image(s.path, false);
		for (unsigned k = 1; k <= 2; k++) {
			memset(buf, (int)k, sizeof(buf));
			assert_int_equal(block_write(b, k * border - 4096, buf, sizeof(buf)), 0);
			assert_int_equal(block_read(b, k * border - 4096, back, sizeof(back)), 0);
			assert_memory_equal(buf, back, sizeof(buf));
		}
		assert_int_equal(block_flush(b), 0);
		block_close(b);
		for (unsigned k = 1; k <= 2; k++)
			run_command(
				"qemu-io -r -f vmdk -c 'read -P %u %llu 8192' %s | grep -q failed && exit 1 || exit 0",
				k, (unsigned long long)(k * border - 4096), s.path);
		end(&s);
	}
}

/* More grain tables than are held in memory: changed ones leave it, and come back as they were. */
static void test_many_tables(void **state)
{
	enum { TABLES = 600, STRIDE = 257 }; /* no common factor: each table comes once a round */
	struct shadow s;
	struct block *b;
	uint32_t v;

	begin(&s, 512);
	create(s.path, TABLES * 32 * MIB, NULL, NULL);
	b = open_image(s.path, false);
	for (uint32_t round = 0; round < 2; round++) {
		for (uint32_t i = 0; i < TABLES; i++) {
			uint64_t off = i * STRIDE % TABLES * 32 * MIB + round * 100 * KIB;

			v = i + round * TABLES;
			assert_int_equal(block_write(b, off, &v, sizeof(v)), 0);
		}
	}
	for (uint32_t round = 0; round < 2; round++) {
		for (uint32_t i = 0; i < TABLES; i++) {
			assert_int_equal(
				block_read(b, i * STRIDE % TABLES * 32 * MIB + round * 100 * KIB, &v, sizeof(v)), 0);
			assert_int_equal(v, i + round * TABLES);
		}
	}
	assert_int_equal(block_flush(b), 0);
	check_clean(b);
	block_close(b);
	run_command("qemu-img check -q -f vmdk %s", s.path);
	run_command("qemu-img map --output=json -f vmdk %s | grep -c '\"data\": true' | grep -qx %u", s.path,
		    2 * TABLES);
	end(&s);
}

/* Threads that write beside each other, sector by sector, into grains that none of them has for itself. */
enum { THREADS = 4 };

struct thread_ctx {
	struct block *b;
	unsigned index;
	uint64_t size, seed;
	int failed;
};

static void *write_beside(void *arg)
{
	struct thread_ctx *t = arg;
	uint8_t buf[BLOCK_SECTOR];

	memset(buf, (int)t->index + 1, sizeof(buf));
	for (unsigned i = 0; i < 4000 && !t->failed; i++) {
		uint64_t sector;

		t->seed = t->seed * 6364136223846793005u + 1442695040888963407u;
		sector = (t->seed >> 33) % (t->size / BLOCK_SECTOR / THREADS) * THREADS + t->index;
		t->failed = block_write(t->b, sector * BLOCK_SECTOR, buf, sizeof(buf));
		if (!t->failed && i % 512 == 0)
			t->failed = block_flush(t->b);
		if (!t->failed)
			t->failed = block_read(t->b, sector * BLOCK_SECTOR, buf, sizeof(buf)) || buf[7] != t->index + 1;
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct thread_ctx ctx[THREADS];
	pthread_t threads[THREADS];
	struct shadow s;
	struct block *b;
	uint64_t seed;

	begin(&s, 8 * MIB);
	create(s.path, s.size, NULL, NULL);
	b = open_image(s.path, false);
	for (unsigned i = 0; i < THREADS; i++) {
		ctx[i] = (struct thread_ctx){b, i, s.size, i + 1, 0};
		assert_int_equal(pthread_create(&threads[i], NULL, write_beside, &ctx[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(ctx[i].failed, 0);
		seed = i + 1;
		for (unsigned k = 0; k < 4000; k++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			memset(s.data + ((seed >> 33) % (s.size / BLOCK_SECTOR / THREADS) * THREADS + i) * BLOCK_SECTOR,
			       (int)i + 1, BLOCK_SECTOR);
		}
	}
	verify(&s, b);
	assert_int_equal(block_flush(b), 0);
	check_clean(b);
	block_close(b);
	judge(&s);
	end(&s);
}

static void refuse(const char *dir, const char *text, const char *word)
{
	struct block_options o = {.readonly = true};
	struct error err = {0};
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/bad.vmdk", dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	assert_int_equal(fclose(f), 0);
	o.path = path;
	assert_null(block_open(&o, &err));
	if (!strstr(err.msg, word) || strchr(err.msg, '\n'))
		fail_msg("wanted '%s' in: %s", word, err.msg);
}

static void test_bad_descriptors(void **state)
{
#define HEAD "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"
	struct shadow s;

	begin(&s, 512);
	run_command("ln -s /etc %s/link; truncate -s 1M %s/small", s.dir, s.dir);
	refuse(s.dir, HEAD "RW 1 FLAT \"/etc/hostname\" 0\n", "outside");
	refuse(s.dir, HEAD "RW 1 FLAT \"../../etc/hostname\" 0\n", "outside");
	refuse(s.dir, HEAD "RW 1 FLAT \"link/hostname\" 0\n", "outside");
	refuse(s.dir, HEAD "RW 1 FLAT \"absent\" 0\n", "No such file");
	refuse(s.dir, HEAD "RW 2049 FLAT \"small\" 0\n", "shorter");
	refuse(s.dir, HEAD "RW 2048 FLAT \"small\" 1\n", "shorter");
	refuse(s.dir, HEAD "RW 18446744073709551615 FLAT \"small\" 0\n", "damaged");
	refuse(s.dir, HEAD "RW 1 SESPARSE \"small\"\n", "not supported");
	refuse(s.dir, HEAD "RW 1 SPARSE \"small\"\n", "VMDK");
	refuse(s.dir, HEAD "RW 0 ZERO\n", "damaged");
	refuse(s.dir, HEAD, "no extents");
	refuse(s.dir, "# Disk DescriptorFile\nRW 1 ZERO\n", "createType");
	refuse(s.dir, "hello", "not a VMDK");
	end(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random_writes),
		cmocka_unit_test(test_qemu_writes),
		cmocka_unit_test(test_stream_written_by_qemu),
		cmocka_unit_test(test_stream_written_by_us),
		cmocka_unit_test(test_stream_is_written_once),
		cmocka_unit_test(test_parents),
		cmocka_unit_test(test_qemu_child),
		cmocka_unit_test(test_split),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_many_tables),
		cmocka_unit_test(test_bad_descriptors),
	};

	if (system("qemu-img --version > /dev/null 2>&1 && qemu-io --version > /dev/null 2>&1")) {
		printf("skipped: no qemu-img and qemu-io here (package qemu-utils)\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
