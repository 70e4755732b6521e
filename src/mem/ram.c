#include "mem/ram.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_SIZE_MIN (1 * MIB)
#define RAM_SIZE_MAX (16 * 1024 * GIB)

struct ram {
	uint64_t size;
	int fd;
	uint8_t *view;
	uint8_t *watch; /* one byte per page */
	unsigned count;
	struct ram_region region[2];
	void (*watcher)(void *ctx, gpa_t gpa, uint64_t len);
	void *watcher_ctx;
};

static void lay_out(struct ram *r)
{
	uint64_t low = min_u64(r->size, RAM_LOW_MAX);

	r->region[0] = (struct ram_region){.gpa = 0, .size = low, .offset = 0};
	r->region[1] = (struct ram_region){.gpa = RAM_HIGH_BASE, .size = r->size - low, .offset = low};
	r->count = r->size > low ? 2 : 1;
}

/* Nothing is reserved: a page exists, on the host, from the guest's first write to it. */
static bool map(struct ram *r, struct error *err)
{
	const char *what = "memfd_create";
	void *p;

	r->fd = memfd_create("doppel-ram", MFD_CLOEXEC);
	if (r->fd < 0)
		goto fail;
	what = "ftruncate";
	if (ftruncate(r->fd, (off_t)r->size) < 0)
		goto fail;
	what = "mmap";
	p = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fd, 0);
	if (p == MAP_FAILED)
		goto fail;
	r->view = p;
	madvise(r->view, r->size, MADV_DONTDUMP);
	p = mmap(NULL, r->size >> PAGE_SHIFT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		 0);
	if (p == MAP_FAILED)
		goto fail;
	r->watch = p;
	return true;
fail:
	error_set(err, "cannot set up %llu MiB of guest memory: %s: %s", (unsigned long long)(r->size / MIB), what,
		  strerror(errno));
	return error_hint(err, "give the guest less with -m, or raise the limits on address space and file size "
			       "(ulimit -v, ulimit -f)");
}

struct ram *ram_new(uint64_t size, struct error *err)
{
	struct ram *r;

	if (size < RAM_SIZE_MIN || size > RAM_SIZE_MAX || size % PAGE_SIZE) {
		error_set(err, "guest memory of %llu bytes is not possible", (unsigned long long)size);
		error_hint(err, "give a multiple of 4 KiB, 1 MiB to 16 TiB, for example -m 512M");
		return NULL;
	}
	r = calloc(1, sizeof(*r));
	if (!r) {
		error_set(err, "out of memory");
		return NULL;
	}
	r->size = size;
	r->fd = -1;
	lay_out(r);
	if (!map(r, err)) {
		ram_free(r);
		return NULL;
	}
	return r;
}

void ram_free(struct ram *r)
{
	if (!r)
		return;
	if (r->watch)
		munmap(r->watch, r->size >> PAGE_SHIFT);
	if (r->view)
		munmap(r->view, r->size);
	if (r->fd >= 0)
		close(r->fd);
	free(r);
}

uint64_t ram_size(const struct ram *r) { return r->size; }
int ram_fd(const struct ram *r) { return r->fd; }
void *ram_view(const struct ram *r) { return r->view; }
uint8_t *ram_watch_map(struct ram *r) { return r->watch; }

unsigned ram_regions(const struct ram *r, const struct ram_region **out)
{
	*out = r->region;
	return r->count;
}

/* The memfd offset of [gpa, gpa + len), which lies in one region: the two are never adjacent. */
static bool find(const struct ram *r, gpa_t gpa, uint64_t len, uint64_t *offset)
{
	for (unsigned i = 0; i < r->count; i++) {
		const struct ram_region *g = &r->region[i];

		if (gpa >= g->gpa && range_ok(gpa - g->gpa, len, g->size)) {
			*offset = g->offset + (gpa - g->gpa);
			return true;
		}
	}
	return false;
}

void *ram_ptr(const struct ram *r, gpa_t gpa, uint64_t len)
{
	uint64_t offset;

	return len && find(r, gpa, len, &offset) ? r->view + offset : NULL;
}

bool ram_offset(const struct ram *r, gpa_t gpa, uint64_t *offset)
{
	return find(r, align_down(gpa, PAGE_SIZE), PAGE_SIZE, offset);
}

gpa_t ram_gpa(const struct ram *r, uint64_t offset)
{
	return offset < RAM_LOW_MAX ? offset : RAM_HIGH_BASE + (offset - RAM_LOW_MAX);
}

bool ram_read(const struct ram *r, gpa_t gpa, void *buf, uint64_t len)
{
	const void *p = ram_ptr(r, gpa, len);

	if (p)
		memcpy(buf, p, len);
	return p || !len;
}

bool ram_write(struct ram *r, gpa_t gpa, const void *buf, uint64_t len)
{
	void *p = ram_ptr(r, gpa, len);

	if (p) {
		memcpy(p, buf, len);
		ram_wrote(r, gpa, len);
	}
	return p || !len;
}

bool ram_zero(struct ram *r, gpa_t gpa, uint64_t len)
{
	uint64_t offset, first, last;

	if (!len)
		return true;
	if (!find(r, gpa, len, &offset))
		return false;
	first = align_up(offset, PAGE_SIZE);
	last = align_down(offset + len, PAGE_SIZE);
	if (last >= first + MIB &&
	    fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first, (off_t)(last - first)) == 0) {
		memset(r->view + offset, 0, first - offset);
		memset(r->view + last, 0, offset + len - last);
	} else {
		memset(r->view + offset, 0, len);
	}
	ram_wrote(r, gpa, len);
	return true;
}

static bool watched(const struct ram *r, uint64_t offset, uint64_t len)
{
	for (uint64_t page = offset >> PAGE_SHIFT; page <= (offset + len - 1) >> PAGE_SHIFT; page++)
		if (__atomic_load_n(&r->watch[page], __ATOMIC_RELAXED))
			return true;
	return false;
}

void ram_wrote(struct ram *r, gpa_t gpa, uint64_t len)
{
	if (!r->watcher)
		return;
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* the engine watches a page before it reads it */
	for (unsigned i = 0; i < r->count; i++) {
		const struct ram_region *g = &r->region[i];
		gpa_t from = max_u64(gpa, g->gpa);
		gpa_t to = min_u64(len > UINT64_MAX - gpa ? UINT64_MAX : gpa + len, g->gpa + g->size);

		if (from < to && watched(r, g->offset + (from - g->gpa), to - from))
			r->watcher(r->watcher_ctx, from, to - from);
	}
}

void ram_set_watcher(struct ram *r, void (*fn)(void *ctx, gpa_t gpa, uint64_t len), void *ctx)
{
	r->watcher = fn;
	r->watcher_ctx = ctx;
}
