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
import json
import pathlib
import statistics
import subprocess
import sys

import image
import jobs
import worker

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TRIES = 4
sys.path.insert(0, str(ROOT / "bench"))


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--doppel", default=ROOT / "build/doppel", type=pathlib.Path)
    p.add_argument("--engines", default="native,soft,tcg", help="of native, soft, tcg, kvm")
    p.add_argument("--jobs", help="names of jobs or of rows; all but smp when not given")
    p.add_argument("--shell", help="run this command instead of jobs")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeat", type=int, default=1, help="runs of each job in a round; the first of short jobs is cold")
    p.add_argument("--cpus", type=int, default=1)
    p.add_argument("--quick", action="store_true", help="a small image and few jobs, once: for the tests")
    p.add_argument("--limit", type=int, default=180, help="seconds for one job")
    p.add_argument("--append", default="", help="more for the guest kernel's command line")
    p.add_argument("--option", action="append", default=[], help="one more option of doppel run, as --option=--foo; repeatable")
    p.add_argument("--pause", action="store_true", help="print the process and wait for Enter around each job")
    p.add_argument("--json", type=pathlib.Path, help="write all samples to this file")
    p.add_argument("--output", type=pathlib.Path, help="write guest.md, guest.json and guest.svg into this folder")
    p.add_argument("--list", action="store_true")
    return p.parse_args()


def select(a):
    if a.shell:
        return [jobs.Job("shell-command", "compute", a.shell)]
    if a.quick:
        return [jobs.BY_NAME[n] for n in jobs.QUICK]
    wanted = a.jobs.split(",") if a.jobs else [r for r in jobs.ROWS]
    if unknown := [w for w in wanted if w not in jobs.BY_NAME and w not in {j.row for j in jobs.JOBS} | set(jobs.ROWS)]:
        sys.exit(f"bench: no job or row {', '.join(unknown)}: see --list")
    return [j for j in jobs.JOBS if j.name in wanted or j.row in wanted]


def commands(a, where):
    """engine -> command line."""
    kernel = None
    if set(a.engines.split(",")) != {"native"}:
        fetched = subprocess.run([ROOT / "tools/fetch-kernel", "cloud"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        kernel = pathlib.Path(fetched) / "vmlinuz"
    initrd, append = where / "initrd", f"console=ttyS0 quiet panic=-1 {a.append}"
    them = {
        "native": worker.native(where / "root", a.cpus),
        "soft": worker.soft(a.doppel, kernel, initrd, a.cpus, append, a.option),
        "kvm": worker.kvm(a.doppel, kernel, initrd, a.cpus, append, a.option),
        "tcg": worker.tcg(kernel, initrd, a.cpus, append),
    }
    if unknown := [e for e in a.engines.split(",") if e not in them]:
        sys.exit(f"bench: no engine {', '.join(unknown)}: native, soft, tcg, kvm")
    return {e: them[e] for e in a.engines.split(",")}


class Run:
    """Samples and failures of all rounds."""

    def __init__(self, a, chosen, contenders):
        self.a, self.chosen, self.contenders = a, chosen, contenders
        self.samples = {}   # row -> job -> engine -> [sample]
        self.failures = []  # (engine, job, why)
        self.boots = {e: [] for e in contenders if e != "native"}
        self.checksums = {}

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
                self.fail(engine, "boot", str(e))
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
            sample = w.run(job.command)
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
        workers = {e: self.start(e) for e in self.contenders}
        try:
            for job in self.chosen:
                rows = [job.row] * self.a.repeat
                if job.row == "short":
                    rows = ["short"] + ["warm"] * max(1, self.a.repeat - 1)
                for row in rows:
                    for engine in self.contenders:
                        self.job(workers, engine, job, row)
                self.progress(number, job, rows)
        finally:
            for w in filter(None, workers.values()):
                w.quit()

    def progress(self, number, job, rows):
        words = []
        for row in dict.fromkeys(rows):
            for engine, samples in self.samples.get(row, {}).get(job.name, {}).items():
                words.append(f"{engine}{' (warm)' if row == 'warm' else ''} {samples[-1]['s']:.3f} s, CPU {samples[-1]['cpu_s']:.3f}")
        print(f"round {number}: {job.name}: " + "; ".join(words), flush=True)


def summary(run):
    """Medians: a list of {row, job, engine -> {s, cpu_s, ratio, cpu_ratio}}."""
    out = []
    for row, by_job in run.samples.items():
        for name, by_engine in by_job.items():
            line = {"row": row, "job": name, "what": getattr(jobs.BY_NAME.get(name), "what", ""), "engines": {}}
            middle = {e: {k: statistics.median(x[k] for x in s) for k in ("s", "cpu_s")} for e, s in by_engine.items()}
            for engine, m in middle.items():
                if "native" in middle and engine != "native":
                    m["ratio"] = m["s"] / middle["native"]["s"]
                    m["cpu_ratio"] = m["cpu_s"] / middle["native"]["cpu_s"] if middle["native"]["cpu_s"] else None
                line["engines"][engine] = m
            out.append(line)
    return out


def geometric(values):
    values = [v for v in values if v]
    return statistics.geometric_mean(values) if values else None


def means(lines, engine, key="ratio"):
    """row -> geometric mean of the ratios."""
    result = {}
    for row in dict.fromkeys(x["row"] for x in lines):
        result[row] = geometric([x["engines"][engine].get(key) for x in lines if x["row"] == row and engine in x["engines"]])
    return result


def number(value, form="{:.2f}"):
    return form.format(value) if value is not None else ""


def table(lines, engines):
    others = [e for e in engines if e != "native"]
    head = ["job", "native, s"] + [f"{e}{k}" for e in others for k in (", s", " / native", " CPU / native")]
    out = []
    for row in dict.fromkeys(x["row"] for x in lines):
        out += [f"**{jobs.ROWS.get(row, (row,))[0]}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for x in (x for x in lines if x["row"] == row):
            cells = [x["job"], number(x["engines"].get("native", {}).get("s"), "{:.3f}")]
            for e in others:
                m = x["engines"].get(e, {})
                cells += [number(m.get("s"), "{:.3f}"), number(m.get("ratio")), number(m.get("cpu_ratio"))]
            out.append("| " + " | ".join(cells) + " |")
        cells = ["geometric mean", ""]
        for e in others:
            cells += ["", number(means(lines, e)[row]), number(means(lines, e, "cpu_ratio")[row])]
        out += ["| " + " | ".join(cells) + " |", ""]
    return "\n".join(out)


def main():
    a = arguments()
    if a.list:
        for j in jobs.JOBS:
            print(f"{j.name:14}{j.row:9}{j.command if len(j.command) < 120 else j.command[:117] + '...'}")
        return
    if a.quick:
        a.rounds = 1
    try:
        where = image.image(a.quick)
    except image.Missing as e:
        print(f"skipped: {e}")
        sys.exit(77)
    contenders = commands(a, where)
    run = Run(a, select(a), contenders)
    for i in range(a.rounds):
        run.round(i + 1)
    lines = summary(run)
    print("\n" + table(lines, list(contenders)))
    if a.json:
        a.json.write_text(json.dumps({"medians": lines, "samples": run.samples, "boots": run.boots, "failures": run.failures}, indent=1) + "\n")
    if run.failures:
        sys.exit(f"bench: {len(run.failures)} failures, see above")


if __name__ == "__main__":
    main()
