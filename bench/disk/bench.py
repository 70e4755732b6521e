#!/usr/bin/env python3
"""Disk I/O: a guest under doppel's soft engine beside one under QEMU TCG; the same kernel, image and fio, alternately in one run.

usage: bench/disk/bench.py [--doppel build/doppel] [--rounds 5] [--seconds 3] [--output docs/bench]

In each round every contender boots once, and fio in the guest goes through all jobs on the raw disk (direct I/O in the guest, the image in
the host's page cache, write-back). The ratio is the median of the rounds' ratios. Prints a table; writes disk.json, disk.md and disk.svg.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench/lib"))
import host  # noqa: E402
import svg  # noqa: E402

MEMORY = "1G"
MIB = 512
LIMIT = 120
GOAL = 2
# name: what fio does, unit of the figure, field of its terse output (version 3): bandwidth in KiB/s or requests a second, of reads or writes
JOBS = {
    "4k random read, 1 at a time": ("--rw=randread --bs=4k --ioengine=psync", "IOPS", 7),
    "4k random read, 32 in flight": ("--rw=randread --bs=4k --ioengine=libaio --iodepth=32", "IOPS", 7),
    "4k random write, 1 at a time": ("--rw=randwrite --bs=4k --ioengine=psync", "IOPS", 48),
    "4k random write, 32 in flight": ("--rw=randwrite --bs=4k --ioengine=libaio --iodepth=32", "IOPS", 48),
    "1M sequential read, 4 in flight": ("--rw=read --bs=1M --ioengine=libaio --iodepth=4", "MiB/s", 6),
    "1M sequential write, 4 in flight": ("--rw=write --bs=1M --ioengine=libaio --iodepth=4", "MiB/s", 47),
}


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--doppel", default=ROOT / "build/doppel")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=int, default=3)
    p.add_argument("--output", default=ROOT / "docs/bench", type=pathlib.Path)
    return p.parse_args()


def script(seconds):
    lines = ["mkdir -p /dev/shm; mount -t tmpfs none /dev/shm"]
    for i, (job, _, _) in enumerate(JOBS.values()):
        lines.append(f'echo "job {i} $(fio --name=j --filename=/dev/vda --direct=1 --size={MIB}M --time_based --runtime={seconds} --ramp_time=1 '
                     f'--minimal {job} 2>&1 | tail -n 1)"')
    return "\n".join(lines) + "\n"


def contenders(doppel, kernel, initrd, image):
    append = "console=ttyS0 quiet panic=-1"
    return {"doppel soft": [str(doppel), "run", "-q", "--engine", "soft", "-m", MEMORY, "--no-reboot", "--kernel", kernel, "--initrd", initrd,
                            "--append", append, "--disk", image + ",format=raw"],
            "QEMU TCG": ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-nodefaults", "-no-user-config", "-m", MEMORY, "-display", "none",
                         "-serial", "stdio", "-no-reboot", "-drive", f"file={image},format=raw,if=virtio,cache=writeback", "-kernel", kernel,
                         "-initrd", initrd, "-append", append]}


def measure(command):
    """Figures of all jobs, and CPU seconds of the VMM."""
    p = subprocess.Popen(["timeout", "-s", "KILL", str(LIMIT), *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, errors="replace")
    out = p.stdout.read()
    p.stdout.close()
    _, status, usage = os.wait4(p.pid, 0)
    p.returncode = status
    figures = []
    for i, (_, unit, field) in enumerate(JOBS.values()):
        found = re.search(rf"job {i} (3;fio\S*;.*)", out)
        if not found:
            return None, out
        value = float(found.group(1).split(";")[field])
        figures.append(value / 1024 if unit == "MiB/s" else value)
    return figures, usage.ru_utime + usage.ru_stime


def number(v):
    return f"{v:,.0f}"


def table(rows, facts):
    out = ["| | doppel soft | QEMU TCG | ratio | ratios of single rounds |", "|---|---|---|---|---|"]
    for r in rows:
        ratios = ", ".join(f"{v:.2f}" for v in sorted(r["ratios"]))
        out.append(f"| {r['job']}, {r['unit']} | {number(r['doppel soft'])} | {number(r['QEMU TCG'])} | {r['ratio']:.2f} | {ratios} |")
    cpu = facts["cpu_s"]
    out += ["", f"Medians of {facts['rounds']} rounds of {facts['seconds']} s a job. CPU time of the VMM's process for boot and all jobs of a round: doppel "
            f"{statistics.median(cpu['doppel soft']):.1f} s, QEMU {statistics.median(cpu['QEMU TCG']):.1f} s, the jobs having a fixed duration.",
            f"Image: {MIB} MiB, raw, in the page cache. Load of the host at the end, beside the benchmark: {facts['load']:.1f}. {facts['kernel']}, {MEMORY} of RAM; "
            f"{facts['host']}; {facts['qemu']}; {facts['fio']}.", "Goal: a ratio of 2 in each. Made by `bench/disk/bench.py`."]
    return "\n".join(out) + "\n"


def chart(rows, path):
    """Ratios to TCG."""
    widest = max(r["ratio"] for r in rows)
    d = svg.Drawing(760, 60 + 34 * len(rows), "Disk I/O of a guest: doppel soft over QEMU TCG, median (more is better; goal 2)")
    for i, r in enumerate(rows):
        y = 42 + 34 * i
        d.text(10, y + 17, r["job"])
        d.bar(250, y, 420 * r["ratio"] / widest, 24, "#2a6f97" if r["ratio"] >= GOAL else "#c1666b")
        d.text(256 + 420 * r["ratio"] / widest, y + 17, f"{r['ratio']:.2f}")
    d.write(path)


def main():
    a = arguments()
    fetched = host.cloud_kernel(ROOT)
    fio = subprocess.run(["fio", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        initrd, image, jobs = (os.path.join(work, n) for n in ("initrd.gz", "disk.raw", "jobs.sh"))
        pathlib.Path(jobs).write_text(script(a.seconds), encoding="ascii")
        where = subprocess.run(["sh", "-c", "command -v fio"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        subprocess.run([ROOT / "tools/make-initramfs", "--modules", "virtio_blk", "--program", where, initrd, fetched, jobs], check=True)
        with open(image, "wb") as f:
            for _ in range(MIB):
                f.write(os.urandom(1 << 20))
        figures, cpu = {}, {}
        for i in range(a.rounds):
            for name, command in contenders(a.doppel, os.path.join(fetched, "vmlinuz"), initrd, image).items():
                values, used = measure(command)
                if values is None:
                    sys.exit(f"bench: {name} did not go through:\n{used[-2000:]}")
                figures.setdefault(name, []).append(values)
                cpu.setdefault(name, []).append(used)
                print(f"round {i + 1}: {name}: {', '.join(number(v) for v in values)}; CPU {used:.1f} s", flush=True)
    rows = []
    for i, (job, (_, unit, _)) in enumerate(JOBS.items()):
        one = {name: statistics.median(v[i] for v in values) for name, values in figures.items()}
        ratios = [d[i] / q[i] for d, q in zip(figures["doppel soft"], figures["QEMU TCG"])]
        rows.append({"job": job, "unit": unit, **one, "ratios": ratios, "ratio": statistics.median(ratios)})
    facts = {"rounds": a.rounds, "seconds": a.seconds, "kernel": host.package(fetched), "host": host.host(), "qemu": host.qemu(), "fio": fio,
             "load": os.getloadavg()[0], "cpu_s": cpu}
    text = table(rows, facts)
    print("\n" + text)
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "disk.json").write_text(json.dumps({**facts, "figures": figures, "results": rows}, indent=1) + "\n")
    (a.output / "disk.md").write_text("# Disk benchmark\n\n" + text + "\n![ratios](disk.svg)\n")
    chart(rows, a.output / "disk.svg")


main()
