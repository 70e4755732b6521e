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
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench/lib"))
import host  # noqa: E402
import svg  # noqa: E402

MARK = b"doppel: init reached"
LIMIT = 15
TRIES = 5  # QEMU 7.2's microvm hangs early in some boots: such a boot is made again, and counted
MEMORY = "512M"


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


def memory(name, hangs, command):
    result = {}

    def sample(pid):
        time.sleep(1)
        result.update(host.resident(pid))
    boot_again(name, hangs, command("console=ttyS0 quiet doppel.run=\"sleep 2\""), sample)
    return result


def chart(rows, path):
    """Horizontal bars: time to /init and to power-off."""
    widest = max(r["poweroff_s"] for r in rows)
    d = svg.Drawing(720, 60 + 62 * len(rows), "Debian cloud kernel: seconds from VMM start, median (less is better)")
    for i, r in enumerate(rows):
        y = 42 + 62 * i
        d.text(10, y + 24, r["name"])
        for j, (key, colour, label) in enumerate((("init_s", "#2a6f97", "/init"), ("poweroff_s", "#89c2d9", "power-off"))):
            w = 440 * r[key] / widest
            d.bar(150, y + 24 * j, w, 20, colour)
            d.text(155 + w, y + 15 + 24 * j, f"{r[key]:.2f} {label}")
    d.write(path)


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


def main():
    a = arguments()
    fetched = host.cloud_kernel(ROOT)
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
    facts = {"kernel": host.package(fetched), "host": host.host(), "rounds": a.rounds, "qemu": host.qemu()}
    text = table(rows, facts)
    print("\n" + text)
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "boot.json").write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")
    (a.output / "boot.md").write_text("# Boot benchmark\n\n" + text + "\n![seconds to /init and to power-off](boot.svg)\n")
    chart(rows, a.output / "boot.svg")


main()
