#include "machine/machine.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "engine/kvm/kvm.h"
#include "engine/soft/complete.h"
#include "machine/stats.h"

#define JOIN_SECONDS 3

/* ---- stop and reset ---- */

static void kick_all(struct machine *m)
{
	for (unsigned i = 0; i < m->cfg.ncpus; i++)
		m->engine->ops->kick(m->engine, i);
}

void machine_stop(struct machine *m, enum machine_stop_reason reason, uint32_t value)
{
	if (m->stop.reason != STOP_NONE)
		return;
	m->stop = (struct machine_stop){.reason = reason, .value = value};
	pthread_cond_broadcast(&m->resume);
	kick_all(m);
	loop_stop(m->loop);
}

void machine_reset_request(struct machine *m)
{
	if (m->cfg.no_reboot) {
		machine_stop(m, STOP_RESET, 0);
		return;
	}
	m->reset_pending = true;
	kick_all(m);
}

const struct error *machine_error(const struct machine *m)
{
	return &m->error;
}

/* Every other vCPU thread waits. The engine takes the lock itself where it needs it. */
static void do_reset(struct machine *m)
{
	struct error err;
	bool ok;

	m->cfg.board->reset(m);
	pthread_mutex_unlock(&m->lock);
	m->engine->ops->reset(m->engine);
	ok = m->cfg.board->load(m, &err);
	pthread_mutex_lock(&m->lock);
	if (!ok) {
		m->error = err;
		machine_stop(m, STOP_ERROR, 0);
	}
	m->reset_pending = false;
	m->parked = 0;
	m->resets++;
	pthread_cond_broadcast(&m->resume);
}

/* Wait until the vCPU may run; false when the machine stops. The last vCPU to come does the reset. */
static bool may_run(struct machine *m)
{
	while (m->stop.reason == STOP_NONE && m->reset_pending) {
		uint64_t resets = m->resets;

		if (++m->parked == m->cfg.ncpus) {
			do_reset(m);
			break;
		}
		while (m->resets == resets && m->stop.reason == STOP_NONE)
			pthread_cond_wait(&m->resume, &m->lock);
	}
	return m->stop.reason == STOP_NONE;
}

static void *vcpu_main(void *arg)
{
	struct machine_vcpu *v = arg;
	struct machine *m = v->machine;

	pthread_mutex_lock(&m->lock);
	while (may_run(m)) {
		enum engine_exit why;

		pthread_mutex_unlock(&m->lock);
		why = m->engine->ops->run(m->engine, v->index);
		pthread_mutex_lock(&m->lock);
		if (why == EXIT_TRIPLE_FAULT)
			machine_stop(m, STOP_TRIPLE_FAULT, v->index);
		else if (why == EXIT_ERROR)
			machine_stop(m, STOP_ENGINE, v->index);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

/* ---- the event loop's own sources ---- */

static void on_signal(void *ctx, unsigned events)
{
	struct machine *m = ctx;
	int signal = signals_take(m->signals);

	if (!signal)
		return;
	if (signal == SIGUSR1 || signal == SIGCONT) {
		if (signal == SIGUSR1)
			machine_stats_print(m, stderr);
		else
			m->cfg.board->resume(m);
		return;
	}
	pthread_mutex_lock(&m->lock);
	machine_stop(m, STOP_SIGNAL, (uint32_t)signal);
	pthread_mutex_unlock(&m->lock);
}

static void on_timers_due(void *ctx, unsigned events)
{
	struct machine *m = ctx;
	uint64_t expirations;

	if (read(m->timer_fd, &expirations, sizeof(expirations)) != sizeof(expirations))
		return;
	pthread_mutex_lock(&m->lock);
	timer_queue_run(&m->timers, clock_now());
	pthread_mutex_unlock(&m->lock);
}

static void on_deadline_changed(void *ctx, int64_t deadline)
{
	struct machine *m = ctx;
	struct itimerspec t = {0}; /* all zero: disarmed */

	if (deadline != TIMER_NEVER) {
		deadline = deadline < 1 ? 1 : deadline;
		t.it_value.tv_sec = deadline / 1000000000;
		t.it_value.tv_nsec = deadline % 1000000000;
	}
	timerfd_settime(m->timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

static bool add_signals(struct machine *m, struct error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGCONT);
	m->signals = signals_new(&set, err);
	return m->signals && loop_add(m->loop, signals_fd(m->signals), LOOP_READ, on_signal, m, err);
}

static bool add_timers(struct machine *m, struct error *err)
{
	timer_queue_init(&m->timers);
	if (m->cfg.engine != &engine_kvm)
		return true; /* vCPU 0's thread drives them */
	m->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (m->timer_fd < 0)
		return error_set(err, "timerfd_create: %s", strerror(errno));
	timer_queue_set_notify(&m->timers, on_deadline_changed, m);
	return loop_add(m->loop, m->timer_fd, LOOP_READ, on_timers_due, m, err);
}

/* ---- life ---- */

/* Where the host cannot run the soft engine, kvm goes without it. */
static void add_completer(struct machine *m, const struct engine_config *ec)
{
	struct error ignored;

	if (m->cfg.engine != &engine_kvm)
		return;
	m->completer = completer_new(ec, &ignored);
	if (m->completer)
		kvm_engine_set_completer(m->engine, completer_run, m->completer);
}

static bool build(struct machine *m, struct error *err)
{
	struct engine_config ec;
	bool ok;

	m->loop = loop_new(err);
	if (!m->loop || !add_signals(m, err) || !add_timers(m, err))
		return false;
	if (!cpuid_policy_init(&m->cpuid, m->cfg.cpu, m->cfg.ncpus, tsc_khz_measure(), err))
		return false;
	if (m->cfg.engine == &engine_soft && m->cfg.ncpus > 1) /* one CPU alone gains nothing by them */
		cpuid_policy_add_kvm(&m->cpuid, BIT(KVM_STEAL_TIME) | BIT(KVM_PV_UNHALT) | BIT(KVM_PV_TLB_FLUSH) |
							BIT(KVM_PV_SEND_IPI) | BIT(KVM_PV_SCHED_YIELD));
	m->ram = ram_new(m->cfg.ram_bytes, err);
	if (!m->ram)
		return false;
	m->bus = bus_new();
	ec = (struct engine_config){
		.ram = m->ram,
		.bus = m->bus,
		.cpuid = &m->cpuid,
		.ncpus = m->cfg.ncpus,
		.lock = &m->lock,
		.timers = &m->timers,
		.trace_last = true,
	};
	m->engine = m->cfg.engine->create(&ec, err);
	if (!m->engine)
		return false;
	add_completer(m, &ec);
	pthread_mutex_lock(&m->lock);
	ok = m->cfg.board->build(m, err);
	pthread_mutex_unlock(&m->lock);
	return ok && m->cfg.board->load(m, err);
}

struct machine *machine_new(const struct machine_config *cfg, struct error *err)
{
	struct machine *m = calloc(1, sizeof(*m));

	if (!m) {
		error_set(err, "out of memory");
		return NULL;
	}
	assert(cfg->ncpus >= 1 && cfg->ncpus <= MACHINE_MAX_CPUS);
	m->cfg = *cfg;
	m->started = clock_now();
	m->timer_fd = -1;
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->resume, NULL);
	m->vcpus = calloc(cfg->ncpus, sizeof(*m->vcpus));
	if (m->vcpus ? build(m, err) : error_set(err, "out of memory"))
		return m;
	machine_free(m);
	return NULL;
}

void machine_free(struct machine *m)
{
	if (!m)
		return;
	/* No other thread is left; without the lock, as back ends want to be closed. */
	timer_queue_set_notify(&m->timers, NULL, NULL);
	m->cfg.board->free(m);
	if (m->engine)
		m->engine->ops->destroy(m->engine);
	completer_free(m->completer);
	bus_free(m->bus);
	ram_free(m->ram);
	loop_free(m->loop);
	if (m->timer_fd >= 0)
		close(m->timer_fd);
	signals_free(m->signals);
	pthread_cond_destroy(&m->resume);
	pthread_mutex_destroy(&m->lock);
	free(m->vcpus);
	free(m);
}

/* Join what was started; false when a thread does not end in time. */
static bool join_vcpus(struct machine *m, unsigned started)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += JOIN_SECONDS;
	for (unsigned i = 0; i < started; i++)
		if (pthread_clockjoin_np(m->vcpus[i].thread, NULL, CLOCK_MONOTONIC, &until))
			return false;
	return true;
}

struct machine_stop machine_run(struct machine *m, bool *stuck)
{
	unsigned started = 0;
	int rc = 0;

	*stuck = false;
	for (; started < m->cfg.ncpus && !rc; started++) {
		struct machine_vcpu *v = &m->vcpus[started];

		*v = (struct machine_vcpu){.machine = m, .index = started};
		rc = pthread_create(&v->thread, NULL, vcpu_main, v);
		if (rc)
			break;
	}
	if (rc) {
		pthread_mutex_lock(&m->lock);
		error_set(&m->error, "cannot start the thread of vCPU %u: %s", started, strerror(rc));
		error_hint(&m->error, "take fewer --cpus or raise the limit of threads (ulimit -u)");
		machine_stop(m, STOP_ERROR, 0);
		pthread_mutex_unlock(&m->lock);
	}
	loop_run(m->loop);
	if (!join_vcpus(m, started)) {
		*stuck = true;
		if (m->stop.reason == STOP_ESCAPE || m->stop.reason == STOP_SIGNAL)
			return m->stop;
		error_set(&m->error, "a vCPU does not leave the %s engine", m->engine->ops->name);
		error_hint(&m->error, "this is a bug of doppel: please report it");
		return (struct machine_stop){.reason = STOP_ERROR};
	}
	return m->stop;
}
