#!/usr/bin/env python3
"""Where the time of a job goes under doppel's soft engine: kernel, VMM by function, translated code by instruction.

usage: bench/guest/profile.py JOB... [--doppel build/doppel] [--warm 0] [--frequency 4000] [--places 6]

Each job runs in a virtual machine of its own, `perf record` on the VMM's process beside it. Translated code is read out of the
process and disassembled where samples are; shares are of all samples of the job. Sums by kind of instruction tell what the emitted
sequences cost: look-ups of addends (pext, loads by gs), exits, jumps, and the rest, which is what the guest itself wanted.
"""
import argparse
import collections
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench/lib"))
import host  # noqa: E402
import image  # noqa: E402
import jobs  # noqa: E402
import worker  # noqa: E402

GAP = 96  # bytes without a sample that part two places


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("jobs", nargs="+", help="names of jobs, or a command with --shell")
    p.add_argument("--shell", action="store_true", help="JOB is a command")
    p.add_argument("--doppel", default=ROOT / "build/doppel", type=pathlib.Path)
    p.add_argument("--option", action="append", default=[], help="one more option of doppel run")
    p.add_argument("--before", default="", help="jobs that run before, unprofiled, in the same virtual machine")
    p.add_argument("--warm", type=int, default=0, help="runs of the job before the profiled one")
    p.add_argument("--frequency", type=int, default=4000)
    p.add_argument("--functions", type=int, default=25, help="how many functions of the VMM are shown")
    p.add_argument("--places", type=int, default=3, help="how many places of translated code are shown")
    p.add_argument("--callers", action="store_true", help="print perf's call graph of the VMM too")
    return p.parse_args()


def record(w, command, frequency, path):
    """Run the job with perf beside it."""
    perf = subprocess.Popen(["perf", "record", "-q", "-e", "cpu-clock", "-g", "-F", str(frequency), "-p", str(w.process.pid), "-o", path],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return w.run(command)
    finally:
        perf.send_signal(2)
        perf.wait(30)


def samples(path):
    """(address, symbol, mapping) of each sample."""
    out = subprocess.run(["perf", "script", "-G", "-F", "ip,sym,dso", "-i", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    for line in out.splitlines():
        if m := re.match(r"\s*([0-9a-f]+) (.*?) \((.*)\)$", line):
            yield int(m.group(1), 16), m.group(2).split("+")[0], m.group(3)


def kind(symbol, mapping):
    if mapping.startswith("[kernel") or mapping.startswith("[guest"):
        return "kernel"
    if "doppel-code" in mapping or mapping in ("[unknown]", "//anon"):
        return "code"
    return "vmm"


def clusters(addresses):
    """[(first, last, samples)] of places with translated code, the hottest first."""
    found = []
    for a in sorted(addresses):
        if found and a - found[-1][1] <= GAP:
            found[-1][1] = a
            found[-1][2] += addresses[a]
        else:
            found.append([a, a, addresses[a]])
    return sorted(found, key=lambda c: -c[2])


def objdump(memory, first):
    with tempfile.NamedTemporaryFile() as raw:
        raw.write(memory)
        raw.flush()
        out = subprocess.run(["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn", f"--adjust-vma={first:#x}", raw.name],
                             stdout=subprocess.PIPE, text=True).stdout
    return [(int(m.group(1), 16), m.group(2)) for m in re.finditer(r"^\s*([0-9a-f]+):\s+(.*?)\s*$", out, re.M)]


def disassemble(pid, first, last, addresses):
    """[(address, text)] of the process's memory; every sampled address is the start of an instruction."""
    with open(f"/proc/{pid}/mem", "rb") as mem:
        mem.seek(first)
        memory = mem.read(last - first + 16)
    lines, at = [], first
    while at <= last:
        found = objdump(memory[at - first:], at)
        starts = {a for a, _ in found}
        wrong = next((a for a in sorted(addresses) if a >= at and a not in starts), None)
        lines += [x for x in found if wrong is None or x[0] < wrong]
        if wrong is None:
            break
        at = wrong
    return [x for x in lines if x[0] <= last]


def instruction_kind(text):
    if re.match(r"pext|pdep|rorx|sarx|shrx", text):
        return "index (pext...)"
    if re.search(r"QWORD PTR gs:\[r\w+\*8", text):
        return "addend, check (gs table)"
    if re.search(r"gs:", text):
        return "vCPU state, masks (gs)"
    if re.match(r"jrcxz|jecxz", text):
        return "jrcxz"
    if re.match(r"j|call|ret", text):
        return "jumps"
    if re.match(r"lea", text):
        return "lea"
    if re.match(r"(rep|lock)", text):
        return "rep, lock"
    return "other (guest's own work)"


def show(name, count, total):
    print(f"  {100 * count / total:6.2f} %  {name}")


def kinds_of(pid, addresses):
    """Samples by kind of instruction. Each sampled one is disassembled with 16 NOPs behind its bytes, so that the next is found again."""
    blob, order = bytearray(), sorted(addresses)
    with open(f"/proc/{pid}/mem", "rb") as mem:
        for a in order:
            mem.seek(a)
            blob += mem.read(16) + b"\x90" * 16
    found = collections.Counter()
    for at, text in objdump(bytes(blob), 0):
        if at % 32 == 0:
            found[instruction_kind(text)] += addresses[order[at // 32]]
    return found


def print_place(lines, hits, total):
    """The hottest stretch: up to 60 instructions around the middle of the samples."""
    most = max(range(len(lines)), key=lambda i: sum(hits[a] for a, _ in lines[max(0, i - 30):i + 30]))
    for a, text in lines[max(0, most - 30):most + 30]:
        share = f"{100 * hits[a] / total:6.2f} %" if hits[a] else " " * 8
        print(f"  {share}  {a:x}  {text}")


def translated(pid, addresses, total, places):
    print("\n translated code by kind of instruction:")
    for what, count in kinds_of(pid, addresses).most_common():
        show(what, count, total)
    for n, (first, last, count) in enumerate(clusters(addresses)[:places]):
        here = collections.Counter({a: c for a, c in addresses.items() if first <= a <= last})
        print(f"\n place {n + 1}: {100 * count / total:.1f} % in {last - first} bytes at {first:#x}")
        print_place(disassemble(pid, first, last, here), here, total)


def profile(a, name, command, contender):
    w = worker.Worker("soft", contender, 300)
    try:
        for earlier in filter(None, a.before.split(",")):
            w.run(jobs.BY_NAME[earlier].command)
        for _ in range(a.warm):
            w.run(command)
        with tempfile.NamedTemporaryFile(suffix=".perf") as data:
            result = record(w, command, a.frequency, data.name)
            them = list(samples(data.name))
            if a.callers:
                subprocess.run(["perf", "report", "-i", data.name, "--stdio", "-g", "caller,0.5,callee", "--percent-limit", "1"], stderr=subprocess.DEVNULL)
        total = len(them) or 1
        print(f"== {name}: {result['s']:.3f} s, CPU {result['cpu_s']:.3f} s, status {result['status']}, {len(them)} samples")
        by_kind = collections.Counter(kind(s, m) for _, s, m in them)
        for what, count in by_kind.most_common():
            show({"code": "translated code", "kernel": "host kernel", "vmm": "VMM"}[what], count, total)
        print(" functions:")
        for (symbol, what), count in collections.Counter((s, kind(s, m)) for _, s, m in them if kind(s, m) != "code").most_common(a.functions):
            show(f"{symbol}{' (kernel)' if what == 'kernel' else ''}", count, total)
        translated(w.process.pid, collections.Counter(ip for ip, s, m in them if kind(s, m) == "code"), total, a.places)
        print(flush=True)
    finally:
        w.quit()


def main():
    a = arguments()
    where = image.image()
    contender = worker.soft(a.doppel.resolve(), host.cloud_kernel(ROOT) / "vmlinuz", where / "initrd", 1, "console=ttyS0 quiet panic=-1", a.option)
    for name in a.jobs:
        if not a.shell and name not in jobs.BY_NAME:
            sys.exit(f"profile: no job {name}: bench.py --list")
        profile(a, name, name if a.shell else jobs.BY_NAME[name].command, contender)


if __name__ == "__main__":
    main()
