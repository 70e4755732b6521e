/*
 * What boot_disk finds on a raw image, for disk_test.py: title, command line, size and a checksum of kernel and initrd. Once in
 * the child process, once in this one; the two must agree.
 */
#include <stdio.h>
#include <string.h>

#include "boot/disk/disk.h"

static uint32_t fnv(const struct file_data *f)
{
	uint32_t h = 2166136261u;

	for (uint64_t i = 0; i < f->size; i++)
		h = (h ^ f->data[i]) * 16777619u;
	return h;
}

static void print(const struct boot_disk *d, bool ok, const struct error *err, char *out, size_t len)
{
	if (!ok)
		snprintf(out, len, "error %s\nhint %s\n", err->msg, err->hint);
	else
		snprintf(out, len, "title %s\ncmdline %s\nkernel %llu %08x\ninitrd %llu %08x\n", d->title, d->cmdline,
			 (unsigned long long)d->kernel.size, fnv(&d->kernel), (unsigned long long)d->initrd.size, fnv(&d->initrd));
}

int main(int argc, char **argv)
{
	struct block_options o = {.path = argv[1], .format = "raw", .readonly = true};
	static char in_child[8192], here[8192];
	struct error err = {0};
	struct boot_disk d;
	struct block *b;
	bool ok;

	if (argc != 2 || !(b = block_open(&o, &err))) {
		fprintf(stderr, "disk_probe: %s\n", argc == 2 ? err.msg : "usage: disk_probe IMAGE");
		return 2;
	}
	ok = boot_disk_read(b, GIB, &d, &err);
	print(&d, ok, &err, in_child, sizeof(in_child));
	boot_disk_free(&d);
	ok = boot_disk_find(b, GIB, &d, &err);
	print(&d, ok, &err, here, sizeof(here));
	boot_disk_free(&d);
	block_close(b);
	fputs(in_child, stdout);
	if (strcmp(in_child, here) && !strstr(in_child, here + strlen("error "))) {
		printf("but in this process: %s", here);
		return 1;
	}
	return !ok;
}
