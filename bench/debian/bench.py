#!/usr/bin/env python3
"""A whole Debian from power-on to ssh: doppel's soft engine beside QEMU TCG, the same image, alternately in one run.

usage: bench/debian/bench.py [--doppel build/doppel] [--rounds 7] [--output docs/bench]

The image is that of tests/boot (tools/make-debian-image), each boot with a throw-away overlay. doppel finds kernel and command line on the
disk; QEMU gets the same ones by -kernel, without a boot loader. Measured from the start of the VMM's process: sshd's greeting on the
forwarded port, a command done by ssh, and the end of the process after `systemctl poweroff`; and the CPU time of the process. Medians of
all rounds, in which every contender boots once, in turn. Prints a table; writes debian.json, debian.md and debian.svg.
"""
import argparse
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "bench/lib"), str(ROOT / "tests/boot")]
import host  # noqa: E402
import svg  # noqa: E402
from debian_image import Ssh, debian_image, free_port  # noqa: E402

LIMIT = 240
MEMORY = "1G"
TRIES = 3
GOAL = 0.5
KEYS = {"greeting_s": "ssh greeting", "ssh_s": "ssh command", "poweroff_s": "power-off", "cpu_s": "CPU time"}


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--doppel", default=ROOT / "build/doppel")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--output", default=ROOT / "docs/bench", type=pathlib.Path)
    return p.parse_args()


def take_out(image, work):
    """Kernel, initrd and command line of the image's first menu entry, as files and a string."""
    raw = os.path.join(work, "disk.raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)

    def dump(path, to):
        env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        subprocess.run(["debugfs", "-R", f"dump {path} {work}/{to}", raw + "?offset=4194304"], check=True, stderr=subprocess.DEVNULL, env=env)
        return os.path.join(work, to)
    with open(dump("/boot/grub/grub.cfg", "grub.cfg"), encoding="utf-8") as f:
        text = f.read()
    linux, append = re.search(r"^\s*linux\s+(\S+)\s+(.*)$", text, re.M).groups()
    initrd = re.search(r"^\s*initrd\s+(\S+)", text, re.M).group(1)
    found = dump(linux, "vmlinuz"), dump(initrd, "initrd"), f"BOOT_IMAGE={linux} {append.strip()}"
    os.remove(raw)
    return found


def contenders(doppel, image, work):
    """name -> function(port) -> command line."""
    kernel, initrd, append = take_out(image, work)

    def ours(port):
        return [str(doppel), "run", "-q", "--engine", "soft", "-m", MEMORY, image + ",snapshot", "--net", f"user,hostfwd=tcp:127.0.0.1:{port}:22",
                "--serial", "null"]

    def qemu(machine):
        return lambda port: ["qemu-system-x86_64", "-accel", "tcg", "-machine", machine, "-cpu", "max", "-m", MEMORY, "-nodefaults", "-no-user-config",
                             "-display", "none", "-serial", "null", "-drive", f"file={image},if=none,id=d,format=qcow2,snapshot=on",
                             "-device", "virtio-blk-pci,drive=d", "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22",
                             "-device", "virtio-net-pci,netdev=n,romfile=", "-device", "virtio-rng-pci",
                             "-kernel", kernel, "-initrd", initrd, "-append", append]
    return {"doppel soft": ours, "QEMU TCG q35": qemu("q35"), "QEMU TCG pc": qemu("pc")}


class Failed(Exception):
    pass


def greeted(port):
    """Has sshd said its version? A connection to a guest that is not there yet hangs or is closed."""
    try:
        with socket.create_connection(("127.0.0.1", port), 0.5) as s:
            s.settimeout(0.5)
            return s.recv(4) == b"SSH-"
    except OSError:
        return False


def boot(command, ssh, port):
    start = time.monotonic()
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not greeted(port):
            if p.poll() is not None or time.monotonic() - start > LIMIT:
                raise Failed(f"no ssh: {' '.join(command)}")
            time.sleep(0.05)
        greeting = time.monotonic() - start
        status, out = ssh("systemctl is-system-running --wait >/dev/null; systemctl is-system-running", 100)
        if status is None:
            raise Failed(f"no answer by ssh: {out}")
        if out.strip() != "running":
            raise Failed(f"systemd is {out}")
        running = time.monotonic() - start
        ssh("systemctl poweroff")
        _, wait_status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(wait_status)
        if p.returncode:
            raise Failed(f"status {p.returncode}: {' '.join(command)}\n{p.stdout.read()[-2000:].decode(errors='replace')}")
        return {"greeting_s": greeting, "ssh_s": running, "poweroff_s": time.monotonic() - start, "cpu_s": usage.ru_utime + usage.ru_stime}
    finally:
        if p.returncode is None:
            p.kill()
            p.wait()
        p.stdout.close()


def boot_again(name, failures, make, image):
    for _ in range(TRIES):
        port = free_port()
        try:
            return boot(make(port), Ssh(image, port), port)
        except Failed as e:
            failures[name] += 1
            print(f"failure {failures[name]}: {name}: {e}", flush=True)
    sys.exit(f"bench: {name} fails every time")


def table(rows, facts):
    out = ["| | " + " | ".join(f"{label}, s" for label in KEYS.values()) + " | doppel's time to ssh, as a part of it | failures |",
           "|---|" + "---|" * (len(KEYS) + 2)]
    for r in rows:
        cells = [f"{r[k]:.2f} ({r[k + '_min']:.2f}-{r[k + '_max']:.2f})" for k in KEYS]
        out.append("| " + " | ".join([r["name"], *cells, f"{rows[0]['greeting_s'] / r['greeting_s']:.2f}", str(r["failures"])]) + " |")
    out += ["", f"Medians (fastest-slowest) of {facts['rounds']} rounds; {facts['image']}, {MEMORY} of RAM, one CPU; {facts['host']}; {facts['qemu']}; load of "
            f"the machine before the run {facts['load']:.1f}.",
            "ssh command: systemd has reached `running`, said by a command over ssh. Failures: boots that were made again. The goal is "
            f"{GOAL} of TCG's time to the greeting or less. Made by `bench/debian/bench.py`."]
    return "\n".join(out) + "\n"


def chart(rows, path):
    widest = max(r["poweroff_s"] for r in rows)
    bars = (("greeting_s", "#2a6f97"), ("ssh_s", "#61a5c2"), ("poweroff_s", "#a9d6e5"))
    d = svg.Drawing(760, 50 + 86 * len(rows), "Debian 12 with systemd: seconds from VMM start, median (less is better)")
    for i, r in enumerate(rows):
        y = 40 + 86 * i
        d.text(10, y + 40, r["name"])
        for j, (key, colour) in enumerate(bars):
            w = 450 * r[key] / widest
            d.bar(150, y + 24 * j, w, 20, colour)
            d.text(155 + w, y + 15 + 24 * j, f"{r[key]:.1f} {KEYS[key]}")
    d.write(path)


def main():
    a = arguments()
    image, why = debian_image(str(ROOT))
    if not image:
        sys.exit(f"bench: {why}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as work:
        them = contenders(a.doppel, image, work)
        times, failures = {name: [] for name in them}, dict.fromkeys(them, 0)
        for i in range(-1, a.rounds):  # the first round warms the page cache and does not count
            for name, make in them.items():
                t = boot_again(name, failures, make, image)
                if i >= 0:
                    times[name].append(t)
                print(f"round {i + 1}: {name}: " + ", ".join(f"{KEYS[k]} {v:.2f}" for k, v in t.items()), flush=True)
    rows = []
    for name in them:
        row = {"name": name, "failures": failures[name], "rounds": times[name]}
        for k in KEYS:
            values = [t[k] for t in times[name]]
            row |= {k: statistics.median(values), k + "_min": min(values), k + "_max": max(values)}
        rows.append(row)
    facts = {"image": "Debian 12 of tools/make-debian-image", "host": host.host(), "rounds": a.rounds, "qemu": host.qemu(), "load": load}
    text = table(rows, facts)
    print("\n" + text)
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "debian.json").write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")
    (a.output / "debian.md").write_text("# Debian benchmark\n\n" + text + "\n![seconds to ssh and to power-off](debian.svg)\n")
    chart(rows, a.output / "debian.svg")


main()
