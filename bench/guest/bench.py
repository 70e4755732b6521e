#!/usr/bin/env python3
"""The guest benchmark: the same jobs natively, under doppel's soft engine, and under QEMU TCG, job by job in turn.

usage: bench/guest/bench.py [--doppel build/doppel] [--engines native,soft,tcg] [--jobs xz,pipe,compute,...] [--rounds 3] [OPTION]...

Each round starts every virtual machine anew and runs each job in all of them, one after the other. Prints medians and ratios to
native, by the clock inside the guest and by CPU time (of the job natively, of the VMM's process else), which holds on a loaded machine
too. A job whose output differs from the native one has failed, and has no figure.

  bench/guest/bench.py --list                                   jobs and rows
  bench/guest/bench.py --engines native,soft --jobs xz,sort     two jobs, quickly
  bench/guest/bench.py --engines soft --shell 'perl -e 1'       a command of your own; the binaries are those of the image
  bench/guest/bench.py --engines soft --jobs xz --pause         the VM waits (for perf) before and after the job
  bench/guest/bench.py --output docs/bench --rounds 5           everything, for the table in docs/bench
"""
import argparse
import copy
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench/lib"))
import host  # noqa: E402
import image  # noqa: E402
import jobs  # noqa: E402
import report  # noqa: E402
import worker  # noqa: E402

TRIES = 4  # QEMU 7.2 hangs early in some boots
IDLE = 10


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--doppel", default=ROOT / "build/doppel", type=pathlib.Path)
    p.add_argument("--engines", default="native,soft,tcg", help="of native, soft, tcg, kvm")
    p.add_argument("--jobs", help="names of jobs or of rows; all but smp when not given")
    p.add_argument("--shell", help="run this command instead of jobs")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tcg-rounds", type=int, help="rounds in which TCG takes part, as it is slow: the first so many; all when not given")
    p.add_argument("--repeat", type=int, default=1, help="runs of each job in a round; the first of short jobs is cold")
    p.add_argument("--cpus", type=int, default=1)
    p.add_argument("--quick", action="store_true", help="a small image and few jobs, once: for the tests")
    p.add_argument("--limit", type=int, default=180, help="seconds for one job")
    p.add_argument("--append", default="", help="more for the guest kernel's command line")
    p.add_argument("--option", action="append", default=[], help="one more option of doppel run, as --option=--foo; repeatable")
    p.add_argument("--pause", action="store_true", help="print the process and wait for Enter around each job")
    p.add_argument("--json", type=pathlib.Path, help="write all samples to this file")
    p.add_argument("--output", type=pathlib.Path, help="write guest.md, guest.json and guest.svg into this folder")
    p.add_argument("--idle", type=float, default=IDLE, help="seconds of idling measured for --output")
    p.add_argument("--counters", action="store_true", help="show what `doppel stat` counted during each job, and keep it in the samples")
    p.add_argument("--list", action="store_true")
    return p.parse_args()


def select(a):
    if a.shell:
        return [jobs.Job("shell-command", "compute", a.shell)]
    if a.quick:
        return jobs.QUICK
    wanted = a.jobs.split(",") if a.jobs else [r for r in jobs.ROWS]
    if unknown := [w for w in wanted if w not in jobs.BY_NAME and w not in {j.row for j in jobs.JOBS} | set(jobs.ROWS)]:
        sys.exit(f"bench: no job or row {', '.join(unknown)}: see --list")
    return [j for j in jobs.JOBS if j.name in wanted or j.row in wanted]


def vm_name():
    return f"bench-{os.getpid()}"


def commands(a, where):
    """engine -> command line."""
    kernel = None
    if set(a.engines.split(",")) != {"native"}:
        kernel = host.cloud_kernel(ROOT) / "vmlinuz"
    initrd, append = where / "initrd", f"console=ttyS0 quiet panic=-1 {a.append}"
    them = {
        "native": worker.native(where / "root", a.cpus),
        "soft": worker.soft(a.doppel, kernel, initrd, a.cpus, append, ["--name", vm_name(), *a.option]),
        "kvm": worker.kvm(a.doppel, kernel, initrd, a.cpus, append, a.option),
        "tcg": worker.tcg(kernel, initrd, a.cpus, append),
    }
    if unknown := [e for e in a.engines.split(",") if e not in them]:
        sys.exit(f"bench: no engine {', '.join(unknown)}: native, soft, tcg, kvm")
    return {e: them[e] for e in a.engines.split(",")}


def after(a, workers):
    """What is measured once, when a virtual machine has run all jobs: engine -> idle CPU share, resident memory, counters."""
    found = {}
    for engine, w in ((e, w) for e, w in workers.items() if w and e != "native"):
        try:
            found[engine] = {"idle": w.idle(a.idle), "resident_kib": host.resident(w.process.pid)}
        except worker.Failure as e:
            print(f"  idle: {e}", flush=True)
            continue
        if engine == "soft":
            found[engine]["counters"] = worker.counters(a.doppel, vm_name())
    return found


class Run:
    """Samples and failures of all rounds."""

    def __init__(self, a, chosen, contenders):
        self.a, self.chosen, self.contenders = a, chosen, contenders
        self.samples = {}   # row -> job -> engine -> [sample]
        self.failures = []  # (engine, job, why)
        self.boots = {e: [] for e in contenders if e != "native"}
        self.retries = []   # boots that failed and were made again
        self.checksums = {}
        self.once = {}

    def fail(self, engine, job, why):
        self.failures.append({"engine": engine, "job": job, "why": why})
        print(f"  FAILED: {engine}: {job}: {why}", flush=True)

    def start(self, engine):
        for _ in range(TRIES):
            try:
                w = worker.Worker(engine, self.contenders[engine], self.a.limit)
                if engine != "native":
                    self.boots[engine].append({"init_s": w.init_s, "ready_s": w.ready_s})
                return w
            except worker.Failure as e:
                self.retries.append(f"{engine}: {e}")
                print(f"  boot failed, again: {engine}: {e}", flush=True)
        self.fail(engine, "boot", f"failed {TRIES} times")
        return None

    def judge(self, engine, job, sample):
        """Is the output the same as the native one (or the first seen)?"""
        right = self.checksums.setdefault(job.name, (sample["status"], sample["bytes"], sample["checksum"]))
        got = sample["status"], sample["bytes"], sample["checksum"]
        if got != right:
            self.fail(engine, job.name, f"status {got[0]}, {got[1]} bytes, checksum {got[2]} instead of {right[0]}, {right[1]}, {right[2]}")
        elif sample["status"] != 0:
            self.fail(engine, job.name, f"status {sample['status']}")
        else:
            return True
        return False

    def job(self, workers, engine, job, row):
        w = workers[engine]
        if w is None:
            return
        try:
            if self.a.pause:
                input(f"{engine}: {job.name}: process {w.process.pid}; Enter starts it ")
            counted = worker.counters(self.a.doppel, vm_name()) if self.a.counters and engine == "soft" else {}
            sample = w.run(job.command)
            if counted:
                now = worker.counters(self.a.doppel, vm_name())
                sample["counters"] = {k: v - counted.get(k, 0) for k, v in now.items() if k.startswith("total.") and v != counted.get(k, 0)}
                print(f"  {job.name}: " + ", ".join(f"{k[6:]} {v}" for k, v in sample["counters"].items()), flush=True)
            if self.a.pause:
                input(f"{engine}: {job.name}: done, {sample['s']:.2f} s; Enter goes on ")
        except worker.Failure as e:
            self.fail(engine, job.name, str(e))
            w.kill()
            workers[engine] = self.start(engine)
            return
        if w.errors:
            print(f"  stderr: {engine}: {job.name}: {w.errors}", flush=True)
        if not self.judge(engine, job, sample):
            return
        if abs(sample["host_s"] - sample["s"]) > 0.05 + 0.1 * sample["host_s"]:
            self.fail(engine, job.name, f"its clock says {sample['s']:.2f} s, the host's {sample['host_s']:.2f} s (checksumming included)")
        self.samples.setdefault(row, {}).setdefault(job.name, {}).setdefault(engine, []).append(sample)

    def round(self, number):
        idle = {"tcg"} if self.a.tcg_rounds is not None and number > self.a.tcg_rounds else set()
        workers = {e: None if e in idle else self.start(e) for e in self.contenders}
        try:
            for job in self.chosen:
                rows = [job.row] * self.a.repeat
                if job.row == "short":
                    rows = ["short"] + ["warm"] * max(1, self.a.repeat - 1)
                for row in rows:
                    for engine in self.contenders:
                        self.job(workers, engine, job, row)
                self.progress(number, job, rows)
            if self.a.output and self.a.idle:
                self.once |= after(self.a, workers)
        finally:
            for w in filter(None, workers.values()):
                w.quit()

    def progress(self, number, job, rows):
        words = []
        for row in dict.fromkeys(rows):
            for engine, samples in self.samples.get(row, {}).get(job.name, {}).items():
                words.append(f"{engine}{' (warm)' if row == 'warm' else ''} {samples[-1]['s']:.3f} s, CPU {samples[-1]['cpu_s']:.3f}")
        print(f"round {number}: {job.name}: " + "; ".join(words), flush=True)


def smp(a, where):
    """The same work by one thread and by two, on two CPUs: engine -> speed-up, and the run."""
    b = copy.copy(a)
    b.cpus = 2
    run = Run(b, [j for j in jobs.JOBS if j.row == "smp"], commands(b, where))
    for i in range(a.rounds):
        run.round(i + 1)
    by_job = run.samples.get("smp", {})
    gain = {}
    for engine in run.contenders:
        one, two = (by_job.get(j, {}).get(engine) for j in ("parallel-1", "parallel-2"))
        if one and two:
            gain[engine] = statistics.median(x["s"] for x in one) / statistics.median(x["s"] for x in two)
    return gain, run


def facts(a):
    return {"host": host.host(), "kernel": host.package(host.cloud_kernel(ROOT)), "qemu": host.qemu(), "rounds": a.rounds, "cpus": a.cpus,
            "doppel": subprocess.run([a.doppel, "version"], stdout=subprocess.PIPE, text=True).stdout.strip(),
            "packages": (image.image(a.quick) / "packages").read_text().split("\n")[:-1]}


def write(a, run, lines, gain, smp_run):
    """guest.md, guest.json and guest.svg."""
    once = run.once
    others, known = [e for e in run.contenders if e != "native"], facts(a)
    inits = {e: statistics.median(b["init_s"] for b in run.boots[e]) for e in others if run.boots[e]}
    body = [[report.NAMES[e], f"{gain[e]:.2f}x" if e in gain else "", report.number(inits.get(e)),
             f"{100 * once[e]['idle']:.1f} %" if e in once else "",
             "{:.0f}".format(once[e]["resident_kib"]["own"] / 1024) if e in once else "",
             "{:.1f}".format(once[e]["resident_kib"]["code"] / 1024) if e in once and once[e]["resident_kib"]["code"] else ""] for e in run.contenders]
    failures = [f"{f['engine']}: {f['job']}: {f['why'].splitlines()[0]}" for f in run.failures + (smp_run.failures if smp_run else [])]
    text = ["# Guest benchmark", "", "Ordinary Debian programs inside a virtual machine, compared with the same binaries natively.", "",
            "![geometric means of the ratios to native](guest.svg)", "", report.goals(lines, others), "",
            report.markdown(["", "2 threads on 2 CPUs", "to /init of this image, s", f"idle guest, CPU ({a.idle:g} s)", "VMM's own memory, MiB", "code cache, MiB"], body), "",
            "## Translation", "", "Short programs in milliseconds: first run after the start of the virtual machine, and second.", "",
            report.translation(lines, others), "", "## Every job", "", report.details(lines, others), "Failures: " + ("; ".join(failures) if failures else "none") + f". Boots that failed and were made again: {len(run.retries)}.", "",
            f"Medians of {a.rounds} rounds{f' (TCG: {a.tcg_rounds})' if a.tcg_rounds else ''}; in each, every virtual machine starts anew and each job runs in all of them in turn, timed inside by CLOCK_MONOTONIC. "
            "An output that differs from the native one is a failure. Short programs run once before anything of them was translated, and once more. "
            "`CPU / native` compares CPU time of the VMM's process with that of the job natively. "
            f"{known['doppel']}; {known['host']}; {known['kernel']}, {worker.MEMORY} of RAM, {a.cpus} CPU; {known['qemu']}. Made by `bench/guest/bench.py --output docs/bench`."]
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "guest.md").write_text("\n".join(text) + "\n")
    (a.output / "guest.json").write_text(json.dumps({**known, "medians": lines, "speedup": gain, "once": once, "boots": run.boots, "failures": failures,
                                                     "samples": run.samples}, indent=1) + "\n")
    report.chart(lines, others, a.output / "guest.svg")


def main():
    a = arguments()
    if a.list:
        for j in jobs.JOBS:
            print(f"{j.name:14}{j.row:9}{j.command if len(j.command) < 120 else j.command[:117] + '...'}")
        return
    a.doppel = a.doppel.resolve()
    if {"soft", "kvm"} & set(a.engines.split(",")) and not a.doppel.exists():
        sys.exit(f"bench: no {a.doppel}: build doppel, or name it with --doppel")
    if a.quick:
        a.rounds = 1
    try:
        where = image.image(a.quick)
    except image.Missing as e:
        print(f"skipped: {e}")
        sys.exit(77)
    if a.quick and "native" in a.engines and subprocess.run(worker.native(where / "root", 0), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode:
        print("skipped: no mount namespaces here, so no native run to compare with")
        sys.exit(77)
    run = Run(a, select(a), commands(a, where))
    for i in range(a.rounds):
        run.round(i + 1)
    gain, smp_run = smp(a, where) if a.output else ({}, None)
    lines = report.summary(run.samples)
    others = [e for e in run.contenders if e != "native"]
    print("\n" + report.details(lines, others) + "\n" + report.goals(lines, others, cpu=True))
    if a.json:
        a.json.write_text(json.dumps({"medians": lines, "samples": run.samples, "boots": run.boots, "failures": run.failures}, indent=1) + "\n")
    if a.output:
        write(a, run, lines, gain, smp_run)
    if run.failures:
        sys.exit(f"bench: {len(run.failures)} failures, see above")


if __name__ == "__main__":
    main()
