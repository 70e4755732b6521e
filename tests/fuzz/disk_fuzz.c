/*
 * Hostile disks for boot_disk: configurations made of words that mean something, damaged FAT file systems, and damaged ext4
 * ones (in the child process, where libext2fs may fall: that is told, not a failure).
 *
 * usage: disk_fuzz SECONDS SEED
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "boot/disk/disk_int.h"

#define INITRD_MAX (64 * MIB)
#define SLOW_SECONDS (BOOT_DISK_SECONDS + 5)

struct rng {
	uint64_t s;
};

static uint64_t next(struct rng *r)
{
	r->s ^= r->s << 13;
	r->s ^= r->s >> 7;
	r->s ^= r->s << 17;
	return r->s;
}

static uint64_t below(struct rng *r, uint64_t n) { return next(r) % n; }

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- configurations ---------------------------------------------------------------------------------------------- */

static void make_text(struct rng *r, char *out, size_t len)
{
	static const char *const words[] = {
		"if", "then", "elif", "else", "fi", "[", "]", "{", "}", "menuentry", "submenu", "function", "for", "while", "do", "done",
		"set", "default=", "default=\"1>0\"", "x=$x$x", "x=\"$x $x\"", "$x", "${x}", "${", "'", "\"", "\\", "'a b'", "--id", "--class",
		"linux", "initrd", "/k", "(hd0,gpt1)/k", "(hd0", "search", "--set=root", "--fs-uuid", "--label", "--file", "root", "load_env",
		"source", "$prefix/grub.cfg", "configfile", "blscfg", "-e", "-f", "-a", "-o", "!", "(", ")", "=", "!=", "-eq", "\n", "\n", "\n", ";",
		" ", " ", "\t", "#", "&&", "||", "0", "1", ">", "root=root", "true", "false", "title", "version", "options", "sort-key", "export",
		"next_entry=1\n", "saved_entry=0\n", "default *\n", "menuentry a { linux /k\n initrd /k /k\n}\n", "xx", "\xff", "\x1b",
	};
	size_t n = 0;
	uint64_t many = below(r, 10) ? below(r, 200) : below(r, 20000);

	for (uint64_t i = 0; i < many; i++) {
		const char *w = words[below(r, ARRAY_LEN(words))];

		if (n + strlen(w) + 2 >= len)
			break;
		n += (size_t)sprintf(out + n, "%s%s", w, below(r, 4) ? " " : "");
	}
	out[n] = 0;
}

static int text_read(struct disk_fs *fs, const char *path, uint64_t max, struct file_data *out)
{
	struct rng *r = fs->state;
	char *s = malloc(256 * KIB);

	(void)path;
	if (!s || !below(r, 4)) {
		free(s);
		return below(r, 2) ? -ENOENT : -EIO;
	}
	make_text(r, s, 256 * KIB);
	*out = (struct file_data){(uint8_t *)s, strlen(s)};
	if (out->size <= max)
		return 0;
	file_free(out);
	return -EFBIG;
}

static int text_list(struct disk_fs *fs, const char *path, void (*each)(void *ctx, const char *name), void *ctx)
{
	struct rng *r = fs->state;
	char name[300];

	(void)path;
	for (uint64_t i = below(r, 300); i; i--) {
		snprintf(name, sizeof(name), "%.*s%llu%s", (int)below(r, 200),
			 "e*?[a-]+xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
			 (unsigned long long)below(r, 9), below(r, 5) ? ".conf" : "");
		each(ctx, name);
	}
	return 0;
}

static void fuzz_text(struct rng *r, struct disk_entry *e)
{
	static const struct disk_fs_ops ops = {.name = "text", .read = text_read, .list = text_list};
	struct part_table t = {.scheme = PART_GPT, .n = 1, .parts = {{.number = 1, .len = 1}}};
	struct disk d = {.parts = &t, .nfs = 1};
	struct error err = {0};

	d.fs[0] = (struct disk_fs){.ops = &ops, .state = r, .kind = "text", .uuid = "xx", .label = "root", .part = &t.parts[0]};
	*e = (struct disk_entry){.ninitrd = 0};
	if (!(below(r, 3) ? grub_find : bls_find)(&d, &d.fs[0], e, &err) && e->ninitrd > DISK_INITRD_FILES)
		abort();
}

/* ---- file systems ------------------------------------------------------------------------------------------------ */

struct image {
	uint8_t *clean, *data;
	uint64_t size;
	uint32_t *used; /* chunks of 64 bytes that are not zero */
	uint32_t nused;
};

static int image_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	const struct image *im = b->state;

	for (unsigned i = 0; i < niov && len; i++) {
		uint64_t n = min_u64(len, iov[i].iov_len);

		memcpy(iov[i].iov_base, im->data + off, n);
		off += n;
		len -= n;
	}
	return 0;
}

static bool image_make(struct image *im, const char *command)
{
	char dir[] = "/tmp/disk_fuzz.XXXXXX", line[1024];
	struct error err = {0};
	struct file_data f;
	bool ok;

	if (!mkdtemp(dir))
		return false;
	snprintf(line, sizeof(line),
		 "exec >/dev/null 2>&1; PATH=$PATH:/usr/sbin:/sbin; cd %s && mkdir -p t/boot/grub t/loader/entries &&"
		 " echo 'menuentry a { linux /boot/k; initrd /boot/i; }' >t/boot/grub/grub.cfg &&"
		 " printf 'linux /boot/k\\ninitrd /boot/i\\n' >t/loader/entries/a.conf && echo 'default a' >t/loader/loader.conf &&"
		 " head -c 300000 /dev/urandom >t/boot/k && head -c 90000 /dev/urandom >t/boot/i && ln -s boot/k t/vmlinuz && %s",
		 dir, command);
	ok = !system(line);
	snprintf(line, sizeof(line), "%s/image", dir);
	ok = ok && file_read(&f, line, "image", GIB, &err);
	snprintf(line, sizeof(line), "rm -rf %s", dir);
	if (system(line) || !ok)
		return false;
	*im = (struct image){.clean = f.data, .size = f.size, .data = malloc(f.size), .used = calloc(f.size / 64 + 1, sizeof(uint32_t))};
	for (uint64_t i = 0; i + 64 <= f.size; i += 64)
		for (unsigned k = 0; k < 64; k++)
			if (f.data[i + k]) {
				im->used[im->nused++] = (uint32_t)(i / 64);
				break;
			}
	return im->data && im->used && im->nused;
}

static void image_free(struct image *im)
{
	free(im->clean);
	free(im->data);
	free(im->used);
}

/* Of the kernel's contents most of the chunks are: prefer the front, where the structures are. */
static void damage(struct image *im, struct rng *r)
{
	static const uint8_t odd[] = {0, 1, 0x7f, 0x80, 0xff};

	memcpy(im->data, im->clean, im->size);
	for (uint64_t n = 1 + below(r, 1 + below(r, 40)); n; n--) {
		uint64_t i = below(r, 4) ? below(r, min_u64(im->nused, below(r, 2) ? 64 : 512)) : below(r, im->nused);
		uint64_t at = (uint64_t)im->used[i] * 64 + below(r, 64);

		im->data[at] = below(r, 2) ? (uint8_t)next(r) : odd[below(r, sizeof(odd))];
		if (!below(r, 8))
			memset(im->data + at, (int)next(r), min_u64(4, im->size - at));
	}
}

static bool fuzz_image(struct image *im, struct rng *r, bool child, uint64_t *found, uint64_t *fell)
{
	static const struct block_format format = {.name = "memory", .read = image_read};
	struct block b = {.format = &format, .state = im, .size = im->size, .readonly = true};
	struct error err = {0};
	struct boot_disk d;
	double start = now();
	bool ok;

	damage(im, r);
	ok = (child ? boot_disk_read : boot_disk_find)(&b, INITRD_MAX, &d, &err);
	*found += ok;
	*fell += !ok && strstr(err.msg, "looking for its kernel") != NULL;
	if (ok != (d.kernel.size > 0) || (!ok && !*err.msg)) {
		fprintf(stderr, "disk_fuzz: no kernel and no error\n");
		return false;
	}
	boot_disk_free(&d);
	if (now() - start < SLOW_SECONDS)
		return true;
	fprintf(stderr, "disk_fuzz: it took %.0f s\n", now() - start);
	return false;
}

int main(int argc, char **argv)
{
	uint64_t rounds[3] = {0}, found = 0, fell = 0, nothing = 0;
	struct image fat = {0}, ext = {0};
	struct disk_entry *e = malloc(sizeof(*e));
	struct rng r;
	double end;
	bool ok = true;

	if (argc != 3 || !e) {
		fprintf(stderr, "usage: disk_fuzz SECONDS SEED\n");
		return 2;
	}
	if (!image_make(&fat, "truncate -s 4M image && mkfs.vfat -F 12 image && mcopy -s -i image t/boot t/loader ::/") ||
	    !image_make(&ext, "mke2fs -q -F -t ext4 -d t image 4m")) {
		puts("skipped: no mke2fs, mkfs.vfat or mcopy (tools/setup installs them)");
		return 77;
	}
	r.s = strtoull(argv[2], NULL, 0) * 2 + 1;
	end = now() + atof(argv[1]);
	while (ok && now() < end) {
		uint64_t seed = r.s;

		for (unsigned i = 0; i < 20; i++, rounds[0]++)
			fuzz_text(&r, e);
		for (unsigned i = 0; ok && i < 20; i++, rounds[1]++)
			ok = fuzz_image(&fat, &r, false, &found, &nothing);
		for (unsigned i = 0; ok && i < 5; i++, rounds[2]++)
			ok = fuzz_image(&ext, &r, true, &found, &fell);
		if (!ok)
			fprintf(stderr, "disk_fuzz: state of the generator: %llu\n", (unsigned long long)seed);
	}
	printf("disk_fuzz: %llu configurations, %llu FAT, %llu ext4 (%llu ended the child); %llu still had their kernel\n",
	       (unsigned long long)rounds[0], (unsigned long long)rounds[1], (unsigned long long)rounds[2], (unsigned long long)fell,
	       (unsigned long long)found);
	image_free(&fat);
	image_free(&ext);
	free(e);
	return !ok;
}
