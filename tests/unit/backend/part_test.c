/*
 * Partition tables made by sfdisk and sgdisk, which are also the judges; then damage: what is listed lies within the
 * disk, and the backup of a GPT serves when its primary copy is gone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/block/part.h"

#define SIZE (64 * MIB)

static char dir[] = "/tmp/doppel-part.XXXXXX";
static char path[64];

static void sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void sh(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd) != 0)
		fail_msg("failed: %s", cmd);
}

static struct part_table *list(struct error *err)
{
	struct block_options o = {.path = path, .format = "raw", .readonly = true};
	struct block *b = block_open(&o, err);
	struct part_table *t;

	assert_non_null(b);
	t = part_list(b, err);
	block_close(b);
	return t;
}

static struct part_table *must_list(void)
{
	struct error err = {0};
	struct part_table *t = list(&err);

	if (!t)
		fail_msg("%s", err.msg);
	return t;
}

/* As `sfdisk -d` says it: "N : start=..., size=..., type=..." in sectors. */
static void compare_with_sfdisk(const struct part_table *t)
{
	char line[512], cmd[128];
	unsigned i = 0;
	FILE *f;

	snprintf(cmd, sizeof(cmd), "sfdisk -q -d %s 2>/dev/null", path);
	f = popen(cmd, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		char *colon = strstr(line, " : start=");
		unsigned long long start, size;
		char type[64], guid[37];
		unsigned n;

		if (!colon)
			continue;
		assert_true(i < t->n);
		assert_int_equal(sscanf(colon, " : start= %llu, size= %llu, type=%63[0-9A-Za-z-]", &start, &size, type),
				 3);
		assert_int_equal(sscanf(line + strlen(path), "%u", &n), 1);
		assert_int_equal(t->parts[i].number, n);
		assert_int_equal(t->parts[i].start, start * 512);
		assert_int_equal(t->parts[i].len, size * 512);
		if (t->scheme == PART_GPT) {
			part_guid_text(t->parts[i].type_guid, guid);
			assert_string_equal(guid, type);
			part_guid_text(t->parts[i].guid, guid);
			assert_non_null(strstr(line, guid));
			if (strspn(t->parts[i].name, "abcdefghijklmnopqrstuvwxyz ") == strlen(t->parts[i].name))
				assert_non_null(strstr(line, t->parts[i].name));
		} else {
			assert_int_equal(t->parts[i].mbr_type, strtoul(type, NULL, 16));
			assert_int_equal(t->parts[i].active, strstr(line, "bootable") != NULL);
		}
		i++;
	}
	assert_int_equal(pclose(f), 0);
	assert_int_equal(i, t->n);
	assert_true(i > 0);
}

static void fresh(void) { sh("rm -f %s; truncate -s %llu %s", path, (unsigned long long)SIZE, path); }

static void test_mbr(void **state)
{
	struct part_table *t;

	fresh();
	sh("printf "
	   "'size=4M,type=83,bootable\\nsize=8M,type=82\\nsize=40M,type=5\\nsize=2M,type=c\\nsize=3M,type=83\\nsize=4M,"
	   "type=8e\\n"
	   "size=1M,type=ef\\n' | sfdisk -q -X dos %s",
	   path);
	t = must_list();
	assert_int_equal(t->scheme, PART_MBR);
	assert_int_equal(t->n, 7);
	assert_int_equal(t->nbad, 0);
	assert_string_equal(part_type_name(t, &t->parts[0]), "Linux filesystem");
	assert_string_equal(part_type_name(t, &t->parts[2]), "extended");
	compare_with_sfdisk(t);
	part_table_free(t);
}

static void test_gpt(void **state)
{
	struct part_table *t;

	fresh();
	sh("printf 'size=4M,type=U,name=\"efi\"\\nsize=8M,type=S\\nsize=9M,type=L,name=\"root fs\"\\n' | sfdisk -q -X "
	   "gpt %s",
	   path);
	t = must_list();
	assert_int_equal(t->scheme, PART_GPT);
	assert_int_equal(t->n, 3);
	assert_false(t->backup);
	assert_string_equal(part_type_name(t, &t->parts[0]), "EFI system");
	assert_string_equal(t->parts[2].name, "root fs");
	compare_with_sfdisk(t);
	part_table_free(t);
	/* numbers with gaps, by another writer */
	sh("sgdisk -d 2 -n 100:0:+1M -t 100:8300 -c 100:h\xc3\xbc"
	   "llo -A 100:set:2 %s > /dev/null",
	   path);
	t = must_list();
	assert_int_equal(t->n, 3);
	assert_int_equal(t->parts[2].number, 100);
	assert_true(t->parts[2].active);
	assert_string_equal(t->parts[2].name, "h\xc3\xbc"
					      "llo");
	compare_with_sfdisk(t);
	part_table_free(t);
}

static void test_backup(void **state)
{
	static const unsigned harm[] = {512 + 8, 512 + 16, 512 + 72, 512 + 88, 1024 + 45, 1024 + 60};
	struct error err = {0};
	struct part_table *t;

	for (size_t i = 0; i < ARRAY_LEN(harm); i++) {
		fresh();
		sh("printf 'size=4M,type=U\\nsize=8M,type=S\\n' | sfdisk -q -X gpt %s", path);
		sh("printf '\\377' | dd of=%s bs=1 seek=%u conv=notrunc status=none", path, harm[i]);
		t = must_list();
		assert_true(t->backup);
		assert_int_equal(t->n, 2);
		part_table_free(t);
	}
	sh("dd if=/dev/zero of=%s bs=512 seek=%llu count=1 conv=notrunc status=none", path,
	   (unsigned long long)SIZE / 512 - 1);
	assert_null(list(&err));
	assert_non_null(strstr(err.msg, "damaged"));
	assert_non_null(strstr(err.msg, "backup"));
}

static void test_none(void **state)
{
	struct part_table *t;

	fresh();
	t = must_list();
	assert_int_equal(t->scheme, PART_NONE);
	part_table_free(t);
	sh("mkfs.fat %s > /dev/null 2>&1 || mke2fs -q -F %s", path, path);
	t = must_list();
	assert_int_equal(t->scheme, PART_NONE);
	part_table_free(t);
	sh("rm -f %s; printf x > %s", path, path);
	t = must_list();
	assert_int_equal(t->scheme, PART_NONE);
	part_table_free(t);
}

static void put(unsigned at, const void *p, size_t n)
{
	FILE *f = fopen(path, "r+b");

	assert_non_null(f);
	assert_int_equal(fseek(f, at, SEEK_SET), 0);
	assert_int_equal(fwrite(p, 1, n, f), n);
	assert_int_equal(fclose(f), 0);
}

static void put_entry(unsigned at, uint8_t type, uint32_t start, uint32_t sectors)
{
	uint8_t e[16] = {0};

	e[4] = type;
	put_le32(e + 8, start);
	put_le32(e + 12, sectors);
	put(at, e, sizeof(e));
}

/* A chain of logical partitions that ends in itself, or outside. */
static void test_chains(void **state)
{
	struct part_table *t;

	fresh();
	put(510, "\x55\xaa", 2);
	put_entry(446, 5, 64, 1000);
	put(64 * 512 + 510, "\x55\xaa", 2);
	put_entry(64 * 512 + 446, 0x83, 1, 1);
	put_entry(64 * 512 + 462, 5, 0, 1000); /* the next link is none */
	t = must_list();
	assert_int_equal(t->n, 2);
	part_table_free(t);
	put(74 * 512 + 510, "\x55\xaa", 2);
	put_entry(74 * 512 + 446, 0x83, 1, 1);
	put_entry(74 * 512 + 462, 5, 10, 1000); /* itself, for ever */
	put_entry(64 * 512 + 462, 5, 10, 1000);
	t = must_list();
	assert_in_range(t->n, 3, PART_MAX);
	assert_true(t->nbad > 0);
	part_table_free(t);
	put_entry(74 * 512 + 462, 5, 0xfffffff0, 1000);
	put_entry(462, 0x83, 0xffffffff, 0xffffffff);
	t = must_list();
	assert_int_equal(t->n, 3);
	assert_int_equal(t->nbad, 2);
	part_table_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mbr),  cmocka_unit_test(test_gpt),    cmocka_unit_test(test_backup),
		cmocka_unit_test(test_none), cmocka_unit_test(test_chains),
	};
	int r;

	setenv("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin", 1);
	if (system("sfdisk --version > /dev/null 2>&1 && sgdisk --version > /dev/null 2>&1")) {
		printf("skipped: no sfdisk and sgdisk here (packages fdisk and gdisk)\n");
		return 77;
	}
	if (!mkdtemp(dir))
		return 1;
	snprintf(path, sizeof(path), "%s/disk.raw", dir);
	r = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	rmdir(dir);
	return r;
}
