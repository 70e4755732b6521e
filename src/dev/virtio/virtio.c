#include "dev/virtio/virtio.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Layout of BAR 0. */
enum {
	BAR = 0, BAR_LEN = 0x8000,
	AREA_COMMON = 0x0000, AREA_ISR = 0x1000, AREA_DEVICE = 0x2000, AREA_NOTIFY = 0x3000, AREA_MSIX = 0x4000,
	AREA_PBA = 0x5000, AREA_LEN = 0x1000,
	NOTIFY_MULTIPLIER = 4,
};

/* Capabilities (4.1.4). */
enum {
	CAP_VENDOR = 0x09,
	CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI = 5,
	CAP_LEN = 16, CAP_NOTIFY_LEN = 20, CAP_PCI_LEN = 20,
	CAP_OFF_LEN = 2, CAP_OFF_TYPE = 3, CAP_OFF_BAR = 4, CAP_OFF_OFFSET = 8, CAP_OFF_LENGTH = 12, CAP_OFF_DATA = 16,
};

/* Common configuration (4.1.4.3). */
enum {
	COMMON_DEVICE_FEATURE_SELECT = 0, COMMON_DEVICE_FEATURE = 4, COMMON_DRIVER_FEATURE_SELECT = 8,
	COMMON_DRIVER_FEATURE = 12, COMMON_CONFIG_VECTOR = 16, COMMON_NUM_QUEUES = 18, COMMON_STATUS = 20,
	COMMON_GENERATION = 21, COMMON_QUEUE_SELECT = 22, COMMON_QUEUE_SIZE = 24, COMMON_QUEUE_VECTOR = 26,
	COMMON_QUEUE_ENABLE = 28, COMMON_QUEUE_NOTIFY_OFF = 30, COMMON_QUEUE_DESC = 32, COMMON_QUEUE_DRIVER = 40,
	COMMON_QUEUE_DEVICE = 48, COMMON_LEN = 56,
};

enum {
	STATUS_ACKNOWLEDGE = 1,
	STATUS_DRIVER = 2,
	STATUS_DRIVER_OK = 4,
	STATUS_FEATURES_OK = 8,
	STATUS_NEEDS_RESET = 64,
	STATUS_FAILED = 128,
	STATUS_BY_DRIVER = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK | STATUS_FAILED,
	ISR_QUEUE = 1,
	ISR_CONFIG = 2,
	NO_VECTOR = 0xffff,
};

/* All that a guest can see, apart from the queues and the PCI function. */
struct virtio_state {
	uint8_t status, isr, generation;
	uint16_t config_vector, queue_select;
	uint32_t device_feature_select, driver_feature_select;
	uint64_t driver_features;
	uint32_t again; /* queues whose kick stopped with work left */
};

struct virtio {
	struct virtio_state s;
	struct virtqueue queues[VIRTIO_QUEUES_MAX];
	const struct virtio_class *class;
	void *dev;
	struct pci_function *pci;
	struct timer again;
	unsigned pci_cap;
};

static uint64_t offered(const struct virtio *v)
{
	return v->class->features | BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_INDIRECT_DESC) | BIT(VIRTIO_F_EVENT_IDX);
}

static unsigned vectors(const struct virtio *v) { return v->class->nqueues + 1; }

/* INTx or MSI-X, never both (4.1.4.5). */
static void interrupt(struct virtio *v, uint16_t vector, uint8_t cause)
{
	if (pci_msix_enabled(v->pci)) {
		pci_msix_notify(v->pci, vector);
		return;
	}
	v->s.isr |= cause;
	pci_set_intx(v->pci, true);
}

void virtio_broken(struct virtio *v)
{
	if (v->s.status & STATUS_NEEDS_RESET)
		return;
	v->s.status |= STATUS_NEEDS_RESET;
	if (v->s.status & STATUS_DRIVER_OK)
		interrupt(v, v->s.config_vector, ISR_CONFIG);
}

static bool usable(const struct virtio *v, unsigned q)
{
	return (v->s.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) == STATUS_DRIVER_OK &&
	       v->queues[q].s.enabled && pci_bus_master(v->pci);
}

bool virtio_pop(struct virtio *v, unsigned q, struct virtqueue_chain *c)
{
	enum virtqueue_result r = usable(v, q) ? virtqueue_pop(&v->queues[q], c) : VIRTQUEUE_EMPTY;

	if (r == VIRTQUEUE_BROKEN)
		virtio_broken(v);
	return r == VIRTQUEUE_CHAIN;
}

void virtio_push(struct virtio *v, unsigned q, const struct virtqueue_chain *c, uint32_t written)
{
	virtqueue_push(&v->queues[q], c, written);
}

bool virtio_waiting(struct virtio *v, unsigned q) { return usable(v, q) && virtqueue_waiting(&v->queues[q]); }

void virtio_suppress(struct virtio *v, unsigned q)
{
	if (usable(v, q))
		virtqueue_suppress(&v->queues[q]);
}

bool virtio_arm(struct virtio *v, unsigned q) { return usable(v, q) && virtqueue_arm(&v->queues[q]); }

unsigned virtio_queue_size(const struct virtio *v, unsigned q) { return v->queues[q].s.size; }

void virtio_put(struct virtio *v, unsigned q, uint16_t head, uint32_t written)
{
	if (v->queues[q].s.enabled)
		virtqueue_put(&v->queues[q], head, written);
}

void virtio_publish(struct virtio *v, unsigned q)
{
	if (v->queues[q].s.enabled)
		virtqueue_publish(&v->queues[q]);
}

uint32_t virtio_write(struct virtio *v, unsigned q, const struct virtqueue_chain *c, uint32_t off, const void *buf,
		      uint32_t len)
{
	return virtqueue_write(&v->queues[q], c, off, buf, len);
}

void virtio_interrupt(struct virtio *v, unsigned q)
{
	if (v->queues[q].s.enabled && virtqueue_wants_interrupt(&v->queues[q]))
		interrupt(v, v->queues[q].s.msix_vector, ISR_QUEUE);
}

void virtio_config_changed(struct virtio *v)
{
	v->s.generation++;
	if (v->s.status & STATUS_DRIVER_OK)
		interrupt(v, v->s.config_vector, ISR_CONFIG);
}

void virtio_again(struct virtio *v, unsigned q)
{
	v->s.again |= (uint32_t)BIT(q);
	timer_arm(&v->again, clock_now());
}

static void kick(struct virtio *v, unsigned q)
{
	if (usable(v, q) && v->class->kick(v->dev, q))
		virtio_again(v, q);
}

static void on_again(void *ctx)
{
	struct virtio *v = ctx;
	uint32_t queues = v->s.again;

	v->s.again = 0;
	for (unsigned q = 0; q < v->class->nqueues; q++)
		if (queues & BIT(q))
			kick(v, q);
}

/* Device reset (2.4): everything but the PCI function. */
static void reset(struct virtio *v)
{
	v->s = (struct virtio_state){.config_vector = NO_VECTOR};
	timer_cancel(&v->again);
	for (unsigned q = 0; q < v->class->nqueues; q++)
		v->queues[q].s = (struct virtqueue_state){.size = v->class->queue_size, .msix_vector = NO_VECTOR};
	pci_set_intx(v->pci, false);
	if (v->class->reset)
		v->class->reset(v->dev);
}

/* 3.1.1: FEATURES_OK sticks only for a set that we offered and VERSION_1, DRIVER_OK only after it. */
static void write_status(struct virtio *v, uint8_t value)
{
	struct virtio_state *s = &v->s;
	uint8_t before = s->status;

	if (!value) {
		reset(v);
		return;
	}
	value &= STATUS_BY_DRIVER;
	if (s->driver_features & ~offered(v) || !(s->driver_features & BIT(VIRTIO_F_VERSION_1)))
		value &= (uint8_t)~STATUS_FEATURES_OK;
	if (!((s->status | value) & STATUS_FEATURES_OK))
		value &= (uint8_t)~STATUS_DRIVER_OK;
	s->status |= value; /* a driver must not clear bits but by reset */
	if (s->status & ~before & STATUS_DRIVER_OK && v->class->started)
		v->class->started(v->dev, s->driver_features);
}

static struct virtqueue *selected(struct virtio *v)
{
	return v->s.queue_select < v->class->nqueues ? &v->queues[v->s.queue_select] : NULL;
}

static uint16_t valid_vector(const struct virtio *v, uint32_t value)
{
	return value < vectors(v) ? (uint16_t)value : NO_VECTOR;
}

static void write_queue_size(struct virtio *v, struct virtqueue *q, uint32_t value)
{
	if (value && value <= v->class->queue_size && !(value & (value - 1)))
		q->s.size = (uint16_t)value;
}

static void write_queue_enable(struct virtio *v, struct virtqueue *q, uint32_t value)
{
	if (value != 1 || !(v->s.status & STATUS_FEATURES_OK))
		return;
	q->s.event_idx = v->s.driver_features & BIT(VIRTIO_F_EVENT_IDX);
	if (!virtqueue_enable(q))
		virtio_broken(v);
}

static void set_half(uint64_t *field, bool high, uint32_t value)
{
	*field = high ? (uint32_t)*field | (uint64_t)value << 32 : (*field & ~UINT64_C(0xffffffff)) | value;
}

/* Fields of the selected queue. All but the vector are frozen once the queue is enabled or the driver is up. */
static void write_queue(struct virtio *v, unsigned off, unsigned size, uint32_t value)
{
	struct virtqueue *q = selected(v);

	if (!q)
		return;
	if (off == COMMON_QUEUE_VECTOR && size == 2) {
		q->s.msix_vector = valid_vector(v, value);
		return;
	}
	if (q->s.enabled || v->s.status & STATUS_DRIVER_OK)
		return;
	if (off == COMMON_QUEUE_SIZE && size == 2)
		write_queue_size(v, q, value);
	else if (off == COMMON_QUEUE_ENABLE && size == 2)
		write_queue_enable(v, q, value);
	else if ((off & ~4u) == COMMON_QUEUE_DESC && size == 4)
		set_half(&q->s.desc, off & 4, value);
	else if ((off & ~4u) == COMMON_QUEUE_DRIVER && size == 4)
		set_half(&q->s.avail, off & 4, value);
	else if ((off & ~4u) == COMMON_QUEUE_DEVICE && size == 4)
		set_half(&q->s.used, off & 4, value);
}

static void write_driver_features(struct virtio *v, uint32_t value)
{
	if (v->s.status & STATUS_FEATURES_OK)
		return;
	if (v->s.driver_feature_select < 2)
		set_half(&v->s.driver_features, v->s.driver_feature_select == 1, value);
}

/* Only accesses of a field's own width count (4.1.3.1); 64-bit fields are written as two halves. */
static void write_common(struct virtio *v, unsigned off, unsigned size, uint32_t value)
{
	struct virtio_state *s = &v->s;

	if (off == COMMON_DEVICE_FEATURE_SELECT && size == 4)
		s->device_feature_select = value;
	else if (off == COMMON_DRIVER_FEATURE_SELECT && size == 4)
		s->driver_feature_select = value;
	else if (off == COMMON_DRIVER_FEATURE && size == 4)
		write_driver_features(v, value);
	else if (off == COMMON_CONFIG_VECTOR && size == 2)
		s->config_vector = valid_vector(v, value);
	else if (off == COMMON_STATUS && size == 1)
		write_status(v, (uint8_t)value);
	else if (off == COMMON_QUEUE_SELECT && size == 2)
		s->queue_select = (uint16_t)value;
	else if (off >= COMMON_QUEUE_SIZE)
		write_queue(v, off, size, value);
}

/* The fields as they lie in memory, for reads of any width. */
static uint32_t read_common(struct virtio *v, unsigned off, unsigned size)
{
	const struct virtio_state *s = &v->s;
	const struct virtqueue *q = selected(v);
	uint8_t b[COMMON_LEN] = {0};
	uint32_t value = 0;

	put_le32(b + COMMON_DEVICE_FEATURE_SELECT, s->device_feature_select);
	if (s->device_feature_select < 2)
		put_le32(b + COMMON_DEVICE_FEATURE, (uint32_t)(offered(v) >> 32 * s->device_feature_select));
	put_le32(b + COMMON_DRIVER_FEATURE_SELECT, s->driver_feature_select);
	if (s->driver_feature_select < 2)
		put_le32(b + COMMON_DRIVER_FEATURE, (uint32_t)(s->driver_features >> 32 * s->driver_feature_select));
	put_le16(b + COMMON_CONFIG_VECTOR, s->config_vector);
	put_le16(b + COMMON_NUM_QUEUES, (uint16_t)v->class->nqueues);
	b[COMMON_STATUS] = s->status;
	b[COMMON_GENERATION] = s->generation;
	put_le16(b + COMMON_QUEUE_SELECT, s->queue_select);
	if (q) {
		put_le16(b + COMMON_QUEUE_SIZE, q->s.size);
		put_le16(b + COMMON_QUEUE_VECTOR, q->s.msix_vector);
		put_le16(b + COMMON_QUEUE_ENABLE, q->s.enabled);
		put_le16(b + COMMON_QUEUE_NOTIFY_OFF, s->queue_select);
		put_le64(b + COMMON_QUEUE_DESC, q->s.desc);
		put_le64(b + COMMON_QUEUE_DRIVER, q->s.avail);
		put_le64(b + COMMON_QUEUE_DEVICE, q->s.used);
	}
	if (range_ok(off, size, COMMON_LEN))
		memcpy(&value, b + off, size);
	return value;
}

static uint32_t read_isr(struct virtio *v)
{
	uint8_t isr = v->s.isr;

	v->s.isr = 0;
	pci_set_intx(v->pci, false);
	return isr;
}

static uint32_t read_device_config(struct virtio *v, unsigned off, unsigned size)
{
	uint8_t config[VIRTIO_CONFIG_MAX] = {0};
	uint32_t value = 0;

	if (!range_ok(off, size, v->class->config_len))
		return 0;
	v->class->config_read(v->dev, config);
	memcpy(&value, config + off, size);
	return value;
}

static uint64_t bar_read(void *dev, unsigned bar, uint64_t off, unsigned size)
{
	struct virtio *v = dev;
	unsigned in_area = (unsigned)off % AREA_LEN;

	switch (off - in_area) {
	case AREA_COMMON:
		return read_common(v, in_area, size);
	case AREA_ISR:
		return in_area == 0 ? read_isr(v) : 0;
	case AREA_DEVICE:
		return read_device_config(v, in_area, size);
	default:
		return 0;
	}
}

static void bar_write(void *dev, unsigned bar, uint64_t off, unsigned size, uint64_t value)
{
	struct virtio *v = dev;
	unsigned in_area = (unsigned)off % AREA_LEN;

	switch (off - in_area) {
	case AREA_COMMON:
		write_common(v, in_area, size, (uint32_t)value);
		break;
	case AREA_DEVICE:
		if (v->class->config_write && range_ok(in_area, size, v->class->config_len))
			v->class->config_write(v->dev, in_area, size, (uint32_t)value);
		break;
	case AREA_NOTIFY: /* the place says which queue */
		if (in_area / NOTIFY_MULTIPLIER < v->class->nqueues)
			kick(v, in_area / NOTIFY_MULTIPLIER);
		break;
	default:
		break;
	}
}

/* Configuration access capability (4.1.4.9): a window into the BAR for who cannot map it. False: no access made. */
static bool window(struct virtio *v, unsigned off, unsigned size, bool write, uint64_t *value)
{
	const uint8_t *cap = pci_config(v->pci) + v->pci_cap;
	unsigned data = v->pci_cap + CAP_OFF_DATA;
	uint32_t at = get_le32(cap + CAP_OFF_OFFSET), len = get_le32(cap + CAP_OFF_LENGTH);

	if (off >= data + 4 || off + size <= data)
		return false;
	if ((len != 1 && len != 2 && len != 4) || at % len)
		return false;
	return pci_bar_access(v->pci, cap[CAP_OFF_BAR], at, len, write, value);
}

static void config_read(void *dev, unsigned off, unsigned size)
{
	struct virtio *v = dev;
	uint64_t value = 0;

	if (window(v, off, size, false, &value))
		put_le32(pci_config(v->pci) + v->pci_cap + CAP_OFF_DATA, (uint32_t)value);
}

static void config_written(void *dev, unsigned off, unsigned size)
{
	struct virtio *v = dev;
	uint64_t value = get_le32(pci_config(v->pci) + v->pci_cap + CAP_OFF_DATA);

	window(v, off, size, true, &value);
}

static void pci_reset(void *dev) { reset(dev); }

static const struct pci_function_ops function_ops = {
	.bar_read = bar_read,
	.bar_write = bar_write,
	.config_read = config_read,
	.config_written = config_written,
	.reset = pci_reset,
};

static unsigned add_cap(struct virtio *v, uint8_t type, unsigned len, uint32_t off, uint32_t length)
{
	unsigned at = pci_add_cap(v->pci, CAP_VENDOR, len);
	uint8_t *cap = pci_config(v->pci) + at;

	cap[CAP_OFF_LEN] = (uint8_t)len;
	cap[CAP_OFF_TYPE] = type;
	cap[CAP_OFF_BAR] = BAR;
	put_le32(cap + CAP_OFF_OFFSET, off);
	put_le32(cap + CAP_OFF_LENGTH, length);
	return at;
}

static void add_caps(struct virtio *v)
{
	unsigned notify;

	add_cap(v, CAP_COMMON, CAP_LEN, AREA_COMMON, COMMON_LEN);
	add_cap(v, CAP_ISR, CAP_LEN, AREA_ISR, 1);
	if (v->class->config_len)
		add_cap(v, CAP_DEVICE, CAP_LEN, AREA_DEVICE, v->class->config_len);
	notify = add_cap(v, CAP_NOTIFY, CAP_NOTIFY_LEN, AREA_NOTIFY, v->class->nqueues * NOTIFY_MULTIPLIER);
	put_le32(pci_config(v->pci) + notify + CAP_LEN, NOTIFY_MULTIPLIER);
	v->pci_cap = add_cap(v, CAP_PCI, CAP_PCI_LEN, 0, 0);
	pci_config_writable(v->pci, v->pci_cap + CAP_OFF_BAR, 1);
	pci_config_writable(v->pci, v->pci_cap + CAP_OFF_OFFSET, 12); /* offset, length, data */
	pci_add_msix(v->pci, BAR, AREA_MSIX, AREA_PBA, vectors(v));
}

struct virtio *virtio_new(const struct virtio_config *cfg, const struct virtio_class *class, void *dev,
			  struct error *err)
{
	struct virtio *v = calloc(1, sizeof(*v));
	struct pci_function_config function = {
		.devfn = cfg->devfn, .vendor = 0x1af4, .device = (uint16_t)(0x1040 + class->id), .revision = 1,
		.subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class_code = class->pci_class, .intx = true,
		.ops = &function_ops, .dev = v, .name = class->name,
	};

	assert(class->nqueues <= VIRTIO_QUEUES_MAX && class->queue_size <= VIRTQUEUE_MAX);
	assert(class->config_len <= VIRTIO_CONFIG_MAX);
	if (!v) {
		error_set(err, "%s: out of memory", class->name);
		return NULL;
	}
	v->class = class;
	v->dev = dev;
	for (unsigned q = 0; q < class->nqueues; q++)
		v->queues[q].ram = cfg->ram;
	timer_init(&v->again, cfg->timers, on_again, v);
	v->pci = pci_function_new(cfg->host, &function, err);
	if (!v->pci) {
		free(v);
		return NULL;
	}
	pci_add_bar(v->pci, BAR, BAR_LEN, true);
	add_caps(v);
	return v;
}

void virtio_free(struct virtio *v)
{
	if (!v)
		return;
	timer_cancel(&v->again);
	pci_function_free(v->pci);
	free(v);
}
