#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/ram.h"

static struct ram *make(uint64_t size)
{
	struct error err;
	struct ram *r = ram_new(size, &err);

	assert_non_null(r);
	return r;
}

static void test_sizes(void **state)
{
	const uint64_t bad[] = {
		0, 1, 4096, MIB - PAGE_SIZE, MIB + 1, 64 * MIB + 2048, 16 * 1024 * GIB + PAGE_SIZE, UINT64_MAX};

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		struct error err = {{0}, {0}};

		assert_null(ram_new(bad[i], &err));
		assert_true(err.msg[0] && err.hint[0]);
		assert_null(strchr(err.msg, '\n'));
	}
	ram_free(make(MIB));
	ram_free(NULL);
}

static void test_one_region(void **state)
{
	struct ram *r = make(64 * MIB);
	const struct ram_region *g;
	uint64_t off;

	(void)state;
	assert_int_equal(ram_regions(r, &g), 1);
	assert_int_equal(g[0].gpa, 0);
	assert_int_equal(g[0].size, 64 * MIB);
	assert_int_equal(ram_size(r), 64 * MIB);
	assert_ptr_equal(ram_ptr(r, 0, 64 * MIB), ram_view(r));
	assert_null(ram_ptr(r, 0, 64 * MIB + 1));
	assert_null(ram_ptr(r, 64 * MIB - 1, 2));
	assert_null(ram_ptr(r, 64 * MIB, 1));
	assert_null(ram_ptr(r, 0, 0));
	assert_null(ram_ptr(r, UINT64_MAX, 2));
	assert_null(ram_ptr(r, 1, UINT64_MAX));
	assert_null(ram_ptr(r, RAM_HIGH_BASE, 1));
	assert_true(ram_offset(r, 0x1fff, &off));
	assert_int_equal(off, 0x1000);
	assert_false(ram_offset(r, 64 * MIB, &off));
	ram_free(r);
}

static void test_two_regions(void **state)
{
	struct ram *r = make(5 * GIB);
	const struct ram_region *g;
	uint64_t off;

	(void)state;
	assert_int_equal(ram_regions(r, &g), 2);
	assert_int_equal(g[0].size, RAM_LOW_MAX);
	assert_int_equal(g[1].gpa, RAM_HIGH_BASE);
	assert_int_equal(g[1].size, 2 * GIB);
	assert_int_equal(g[1].offset, RAM_LOW_MAX);
	assert_null(ram_ptr(r, RAM_LOW_MAX - 1, 2)); /* the regions touch in the memfd, not in the guest */
	assert_null(ram_ptr(r, RAM_LOW_MAX, 1));
	assert_null(ram_ptr(r, RAM_HIGH_BASE - 1, 2));
	assert_ptr_equal(ram_ptr(r, RAM_HIGH_BASE, 1), (uint8_t *)ram_view(r) + RAM_LOW_MAX);
	assert_non_null(ram_ptr(r, 6 * GIB - 1, 1));
	assert_null(ram_ptr(r, 6 * GIB, 1));
	for (uint64_t i = 0; i < 5 * GIB; i += 256 * MIB) {
		assert_true(ram_offset(r, ram_gpa(r, i), &off));
		assert_int_equal(off, i);
	}
	ram_free(r);
}

static void test_read_write(void **state)
{
	struct ram *r = make(4 * GIB);
	uint64_t v = 0x1122334455667788, got = 0;

	(void)state;
	assert_true(ram_write(r, RAM_HIGH_BASE + 5, &v, 8));
	assert_true(ram_read(r, RAM_HIGH_BASE + 5, &got, 8));
	assert_int_equal(got, v);
	assert_true(pread(ram_fd(r), &got, 1, (off_t)RAM_LOW_MAX + 5) == 1);
	assert_int_equal(got & 0xff, 0x88);
	assert_false(ram_write(r, RAM_LOW_MAX - 4, &v, 8));
	assert_false(ram_read(r, UINT64_MAX - 3, &got, 8));
	got = 1;
	assert_true(ram_read(r, RAM_LOW_MAX - 4, &got, 4)); /* the refused write left nothing behind */
	assert_int_equal(got, 0);
	assert_true(ram_write(r, UINT64_MAX, NULL, 0));
	assert_true(fcntl(ram_fd(r), F_GETFD) & FD_CLOEXEC);
	ram_free(r);
}

struct seen {
	unsigned calls;
	gpa_t gpa[4];
	uint64_t len[4];
};

static void on_write(void *ctx, gpa_t gpa, uint64_t len)
{
	struct seen *s = ctx;

	assert_true(s->calls < 4);
	s->gpa[s->calls] = gpa;
	s->len[s->calls++] = len;
}

static void test_watcher(void **state)
{
	struct ram *r = make(4 * GIB);
	struct seen s = {0};
	uint8_t b[2] = {1, 2};

	(void)state;
	ram_watch_map(r)[1] = 1;
	ram_wrote(r, 0x1000, 1); /* nobody listens */
	ram_set_watcher(r, on_write, &s);
	assert_true(ram_write(r, 0x800, b, 2));
	assert_true(ram_write(r, 0x2000, b, 2));
	assert_int_equal(s.calls, 0);
	assert_true(ram_write(r, 0xfff, b, 2)); /* the second byte is in the watched page */
	assert_int_equal(s.calls, 1);
	assert_int_equal(s.gpa[0], 0xfff);
	assert_int_equal(s.len[0], 2);
	ram_watch_map(r)[RAM_LOW_MAX >> PAGE_SHIFT] = 1;
	ram_wrote(r, 0x1800, UINT64_MAX); /* clipped to RAM, once a region */
	assert_int_equal(s.calls, 3);
	assert_int_equal(s.gpa[1], 0x1800);
	assert_int_equal(s.len[1], RAM_LOW_MAX - 0x1800);
	assert_int_equal(s.gpa[2], RAM_HIGH_BASE);
	assert_int_equal(s.len[2], GIB);
	ram_wrote(r, RAM_LOW_MAX, GIB);
	ram_wrote(r, 64 * GIB, 1);
	ram_wrote(r, 0x1000, 0);
	assert_int_equal(s.calls, 3);
	ram_free(r);
}

static void test_zero(void **state)
{
	const uint64_t from[] = {0x1234, RAM_HIGH_BASE + 5}, len[] = {100, 5 * MIB + 3};
	struct ram *r = make(4 * GIB);

	(void)state;
	for (unsigned i = 0; i < 2; i++)
		for (unsigned j = 0; j < 2; j++) {
			uint8_t *p = ram_ptr(r, from[i] - 1, len[j] + 2);

			memset(p, 0xee, len[j] + 2);
			assert_true(ram_zero(r, from[i], len[j]));
			assert_true(p[0] == 0xee && p[1 + len[j]] == 0xee);
			for (uint64_t k = 1; k <= len[j]; k++)
				assert_int_equal(p[k], 0);
		}
	assert_false(ram_zero(r, RAM_LOW_MAX - 1, 2));
	assert_true(ram_zero(r, RAM_LOW_MAX, 0));
	ram_free(r);
}

/* More than any host of this test has: nothing is taken before it is touched. */
static void test_sparse(void **state)
{
	struct ram *r = make(1024 * GIB);
	struct stat st;

	(void)state;
	assert_true(ram_write(r, 900 * GIB, "x", 1));
	assert_int_equal(fstat(ram_fd(r), &st), 0);
	assert_int_equal(st.st_size, 1024 * GIB);
	assert_true((uint64_t)st.st_blocks * 512 <= 2 * MIB);
	ram_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),	    cmocka_unit_test(test_one_region),
		cmocka_unit_test(test_two_regions), cmocka_unit_test(test_read_write),
		cmocka_unit_test(test_watcher),	    cmocka_unit_test(test_sparse),
		cmocka_unit_test(test_zero),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
