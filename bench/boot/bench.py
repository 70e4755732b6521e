#!/usr/bin/env python3
"""Boot time and memory: doppel's soft engine beside QEMU TCG, the same kernel and initrd, alternately in one run.

usage: bench/boot/bench.py [--doppel build/doppel] [--rounds 7] [--output docs/bench]

Measured from the start of the VMM's process: the first line of /init on the console, and the end of the process after
power-off. Medians of all rounds, in which every contender boots once, in turn. Memory: resident pages of the VMM's process one second after
/init, by mapping, in a run of its own. Prints a table; writes boot.json, boot.md and boot.svg.
"""
import argparse
import json
import os
import pathlib
import platform
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MARK = b"doppel: init reached"
LIMIT = 15
TRIES = 5  # QEMU 7.2's microvm hangs early in some boots: such a boot is made again, and counted
MEMORY = "512M"
# Mappings that hold the guest's RAM and translated code: not the VMM's own memory.
RAM = re.compile(r"memfd:(doppel-ram|guest-ram)")
CODE = re.compile(r"memfd:doppel-code")


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--doppel", default=ROOT / "build/doppel")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--output", default=ROOT / "docs/bench", type=pathlib.Path)
    return p.parse_args()


def contenders(doppel, kernel, initrd):
    """name -> function(append) -> command line."""
    def ours(append):
        return [str(doppel), "run", "-q", "--engine", "soft", "-m", MEMORY, "--kernel", kernel, "--initrd", initrd, "--append", append]

    def qemu(machine):
        return lambda append: ["qemu-system-x86_64", "-accel", "tcg", "-machine", machine + ",memory-backend=guest-ram", "-nodefaults",
                               "-no-user-config", "-object", f"memory-backend-memfd,id=guest-ram,size={MEMORY},share=on", "-m", MEMORY,
                               "-display", "none", "-serial", "stdio", "-no-reboot", "-device", "virtio-rng-pci" if "pc" in machine
                               else "virtio-rng-device", "-kernel", kernel, "-initrd", initrd, "-append", append]
    return {"doppel soft": ours, "QEMU TCG microvm": qemu("microvm,acpi=on"), "QEMU TCG pc": qemu("pc")}


class Hang(Exception):
    pass


def boot(command, on_mark=None):
    """Seconds to the mark and to the end."""
    start = time.monotonic()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen, marked = b"", None
    try:
        while True:
            left = start + LIMIT - time.monotonic()
            if left <= 0 or not select.select([p.stdout], [], [], left)[0]:
                raise Hang(f"no end after {LIMIT} s: {' '.join(command)}\n{seen[-2000:].decode(errors='replace')}")
            data = os.read(p.stdout.fileno(), 65536)
            if not data:
                break
            seen += data
            if marked is None and MARK in seen:
                marked = time.monotonic() - start
                if on_mark:
                    on_mark(p.pid)
        status = p.wait(LIMIT)
    finally:
        if p.poll() is None:
            p.kill()
    end = time.monotonic() - start
    if marked is None or status != 0:
        sys.exit(f"bench: status {status}: {' '.join(command)}\n{seen[-2000:].decode(errors='replace')}")
    return marked, end


def boot_again(name, hangs, *args):
    for _ in range(TRIES):
        try:
            return boot(*args)
        except Hang as e:
            hangs[name] += 1
            print(f"hang {hangs[name]}: {name}: {e}", flush=True)
    sys.exit(f"bench: {name} hangs every time")


def resident(pid):
    """KiB resident, by kind of mapping. RAM and code are mapped more than once: their largest mapping counts."""
    kib = {"ram": 0, "code": 0, "own": 0}
    kind = "own"
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
            kind = "ram" if RAM.search(name) else "code" if CODE.search(name) else "own"
        elif line.startswith("Rss:"):
            size = int(line.split()[1])
            kib[kind] = kib[kind] + size if kind == "own" else max(kib[kind], size)
    return kib


def memory(name, hangs, command):
    result = {}

    def sample(pid):
        time.sleep(1)
        result.update(resident(pid))
    boot_again(name, hangs, command("console=ttyS0 quiet doppel.run=\"sleep 2\""), sample)
    return result


def svg(rows, path):
    """Horizontal bars: time to /init and to power-off."""
    widest = max(r["poweroff_s"] for r in rows)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="720" height="%d" font-family="sans-serif" font-size="13">' % (60 + 62 * len(rows)),
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="22" font-size="15">Debian cloud kernel: seconds from VMM start, median (less is better)</text>']
    for i, r in enumerate(rows):
        y = 42 + 62 * i
        out.append(f'<text x="10" y="{y + 24}">{r["name"]}</text>')
        for j, (key, colour, label) in enumerate((("init_s", "#2a6f97", "/init"), ("poweroff_s", "#89c2d9", "power-off"))):
            w = 440 * r[key] / widest
            out.append(f'<rect x="150" y="{y + 24 * j}" width="{w:.0f}" height="20" fill="{colour}"/>')
            out.append(f'<text x="{155 + w:.0f}" y="{y + 15 + 24 * j}">{r[key]:.2f} {label}</text>')
    out.append("</svg>\n")
    path.write_text("\n".join(out))


def table(rows, facts):
    out = ["| | to /init, s | to power-off, s | ratio to doppel | VMM's own memory, MiB | code cache, MiB | hangs |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        m = r["memory_kib"]
        cells = [r["name"], f"{r['init_s']:.2f} ({r['init_min']:.2f}-{r['init_max']:.2f})",
                 f"{r['poweroff_s']:.2f} ({r['poweroff_min']:.2f}-{r['poweroff_max']:.2f})",
                 f"{r['init_s'] / rows[0]['init_s']:.2f} / {r['poweroff_s'] / rows[0]['poweroff_s']:.2f}", f"{m['own'] / 1024:.1f}",
                 f"{m['code'] / 1024:.1f}" if m["code"] else "in own", str(r["hangs"])]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", "Hangs: boots that never ended and were made again. Medians (fastest-slowest) of " + f"{facts['rounds']} rounds; {facts['kernel']}, {MEMORY} of RAM; {facts['host']}; {facts['qemu']}.",
            "Memory: resident one second after /init, without guest RAM. Made by `bench/boot/bench.py`."]
    return "\n".join(out) + "\n"


def host():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    return f"{model.group(1) if model else 'unknown CPU'}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def main():
    a = arguments()
    fetched = subprocess.run([ROOT / "tools/fetch-kernel", "cloud"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as work:
        initrd = os.path.join(work, "initrd.gz")
        subprocess.run([ROOT / "tools/make-initramfs", initrd, fetched], check=True)
        them = contenders(a.doppel, os.path.join(fetched, "vmlinuz"), initrd)
        times = {name: [] for name in them}
        hangs = dict.fromkeys(them, 0)
        for i in range(-1, a.rounds):  # the first round warms the page cache and does not count
            for name, command in them.items():
                t = boot_again(name, hangs, command("console=ttyS0 quiet doppel.run=true"))
                if i >= 0:
                    times[name].append(t)
                print(f"round {i + 1}: {name}: /init {t[0]:.2f} s, power-off {t[1]:.2f} s", flush=True)
        rows = []
        for name, command in them.items():
            init, off = zip(*times[name])
            rows.append({"name": name, "init_s": statistics.median(init), "init_min": min(init), "init_max": max(init),
                         "poweroff_s": statistics.median(off), "poweroff_min": min(off), "poweroff_max": max(off),
                         "rounds": times[name], "memory_kib": memory(name, hangs, command), "hangs": hangs[name]})
    facts = {"kernel": (pathlib.Path(fetched) / "package").read_text().strip(), "host": host(), "rounds": a.rounds,
             "qemu": subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]}
    text = table(rows, facts)
    print("\n" + text)
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "boot.json").write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")
    (a.output / "boot.md").write_text("# Boot benchmark\n\n" + text + "\n![seconds to /init and to power-off](boot.svg)\n")
    svg(rows, a.output / "boot.svg")


main()
