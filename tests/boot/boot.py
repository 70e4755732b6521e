#!/usr/bin/env python3
"""Boot an unmodified Debian kernel to an initramfs shell, use it, and switch it off.

usage: boot.py DOPPEL SOURCE_ROOT KERNEL ENGINE USER     ENGINE: soft or kvm; USER: self or nobody; KERNEL: cloud, generic; pvh:
the cloud kernel, decompressed and booted by its PVH entry on a bigger machine with a virtio console and baseline CPU features; or
smpN: the cloud kernel with N CPUs.

Skipped (77) where the kernel cannot be fetched, the engine does not run or is too slow here, or USER cannot be taken.
"""
import os
import re
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from guest import PROMPT, TROUBLE, Guest  # noqa: E402
from harness import Checks, Directory, auto_engine, kernel_directory, skip  # noqa: E402

doppel, root, kernel, engine, user = sys.argv[1:]
cpus = int(kernel[3:]) if kernel.startswith("smp") else 1
BOOT_SECONDS = 120


def decompress(vmlinuz, out):
    """The ELF kernel inside a bzImage (arch/x86/boot.rst: setup_sects, payload_offset, payload_length; LZ4, a size at its end)."""
    with open(vmlinuz, "rb") as f:
        image = f.read()
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    r = subprocess.run(["lz4", "-d", "-c"], input=image[start:start + length - 4], stdout=subprocess.PIPE)
    if r.returncode or not r.stdout.startswith(b"\x7fELF"):
        skip("this kernel is not compressed with LZ4")
    with open(out, "wb") as f:
        f.write(r.stdout)


def prepare(d):
    where = kernel_directory("cloud" if kernel == "pvh" or cpus > 1 else kernel)
    if not where:
        skip("the kernel package cannot be fetched")
    if kernel == "pvh":
        decompress(os.path.join(where, "vmlinuz"), d / "vmlinuz")
    else:
        shutil.copy(os.path.join(where, "vmlinuz"), d / "vmlinuz")
    subprocess.run([os.path.join(root, "tools/make-initramfs"), d / "initrd.gz", where], check=True)
    shutil.copy(doppel, d / "doppel")
    for name, mode in ("vmlinuz", 0o644), ("initrd.gz", 0o644), ("doppel", 0o755):
        os.chmod(d / name, mode)


def command_line(d):
    line = [d / "doppel", "run", "--engine", engine, "-m", "512M", "--kernel", d / "vmlinuz", "--initrd", d / "initrd.gz",
            "--append", "console=ttyS0", "--cpus", str(cpus)]
    if kernel == "pvh":
        line += ["-m", "6G", "--cpu", "baseline", "--virtio-console", "file:" + d / "console.log"]
    if user == "self":
        return line
    if os.geteuid() != 0:
        skip("only root can become another user")
    line = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *line]
    if subprocess.run([*line[:4], "test", "-r", "/dev/kvm"], check=False).returncode == 0:
        print("note: /dev/kvm is readable by everyone here")
    return line


def use_shell(g, check):
    """Commands inside; what the kernel found; what it complained of."""
    g.command("stty columns 500")  # no wrapped echo
    check(g.command("echo $((6 * 7))") == "42\n", "the shell computes", repr(g.all[-300:]))
    check("Linux" in (g.command("uname -a") or ""), "uname")
    out = g.command("for i in 1 2 3 4 5 6 7 8; do (sleep 0.1; echo $i) & done; wait; echo done | sha1sum", 120) or ""
    check(sorted(re.findall(r"^\d$", out, re.M)) == list("12345678") and "7907f662aaf128f6b9ac688863857008a89df19c" in out, "processes and a checksum", out)
    out = g.command("cd /tmp && dd if=/dev/zero of=z bs=1M count=16 2>/dev/null && sha256sum z && rm z; cd /") or ""
    check("080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e" in out, "sha256 of 16 MiB of zeros", out)
    before = float((g.command("cut -d' ' -f1 /proc/uptime") or "nan").strip())
    g.command("sleep 2")
    after = float((g.command("cut -d' ' -f1 /proc/uptime") or "nan").strip())
    check(1.9 < after - before < 6, "time goes on", f"{before} {after}")
    host, guest = time.time(), (g.command("date +%s") or "0").strip()
    check(abs(host - float(guest)) < 15, "the clock is the host's", f"{host} {guest}")
    out = g.command("ls /sys/bus/virtio/devices /sys/class/misc/hw_random/rng_available 2>&1; cat /sys/class/misc/hw_random/rng_current") or ""
    check("virtio0" in out and "virtio_rng" in out, "virtio-rng is there", out)
    out = g.command("head -c 4096 /dev/hwrng | wc -c; head -c 4096 /dev/hwrng | sort -u | wc -l") or ""
    check(out.startswith("4096\n") and out != "4096\n1\n", "virtio-rng gives bytes", out)
    out = g.command("dmesg") or ""
    trouble = [line for line in out.splitlines() if TROUBLE.search(line)]
    check(len(out.splitlines()) > 50 and not trouble, "dmesg has no trouble", "\n".join(trouble))


# Each worker forks, executes and pipes; the sums tell whether any byte went wrong.
STRESS = ("w() { i=0; while [ $i -lt 12 ]; do seq 1 3000 | sort -r | sort -n | md5sum | cut -c1-8; "
          "dd if=/dev/zero bs=4k count=64 2>/dev/null | gzip -1 | gunzip | md5sum | cut -c1-8; i=$((i + 1)); done; }; "
          "(for k in $(seq %d); do w & done; wait) | sort | uniq -c | tr -s ' '")


def use_cpus(g, check):
    """All CPUs work, and time is right while they do."""
    check(g.command("nproc") == f"{cpus}\n", f"{cpus} CPUs", repr(g.all[-300:]))
    check(g.command("cat /sys/devices/system/cpu/online") == f"0-{cpus - 1}\n", "all are online")
    out = g.command("for c in $(seq 0 %d); do taskset -p $(printf %%x $((1 << c))) $$ >/dev/null; cut -d' ' -f39 /proc/self/stat; done; "
                    "taskset -p %x $$ >/dev/null" % (cpus - 1, (1 << cpus) - 1)) or ""
    check(out.split() == [str(i) for i in range(cpus)], "programs run on each", out)
    n = 2 * cpus
    out = g.command(STRESS % n, 240) or ""
    sums = dict(line.split()[::-1] for line in out.splitlines() if len(line.split()) == 2)
    check(sorted(sums.values()) == [str(12 * n)] * 2, "all workers compute the same", out)
    host, out = time.monotonic(), g.command("cut -d' ' -f1 /proc/uptime; sleep 10; cut -d' ' -f1 /proc/uptime") or "0 0"
    host, times = time.monotonic() - host, [float(t) for t in out.split()]
    check(9.99 < times[1] - times[0] < 10.5 and abs(host - (times[1] - times[0])) < 0.5, "sleep 10 takes 10 s", f"{times} {host}")
    out = g.command("dmesg") or ""
    trouble = [line for line in out.splitlines() if TROUBLE.search(line)]
    check(not trouble, "dmesg has no trouble after that", "\n".join(trouble))


def use_bigger_machine(g, check, d):
    out = g.command("grep MemTotal /proc/meminfo") or "0 0"
    check(5.5 < int(out.split()[1]) / 1024 / 1024 < 6, "6 GiB of RAM", out)
    out = g.command("grep -o -w -e avx -e sse4_2 /proc/cpuinfo") or ""
    check(out == "sse4_2\n", "baseline CPU features", out)
    g.command("echo to the virtio console > /dev/hvc0")
    with open(d / "console.log") as f:
        check("to the virtio console" in f.read(), "virtio-console gives its output to a file")


def main():
    check = Checks()
    d = Directory()
    try:
        if engine == "kvm" and auto_engine(doppel, d) != "kvm":
            skip("KVM does not work here or is no hardware virtualization (see doppel doctor)")
        prepare(d)
        g = Guest(command_line(d))
        if not check(g.wait("doppel: init reached", BOOT_SECONDS) and g.wait(PROMPT, 30), "the kernel boots to a shell",
                     g.all[-3000:]):
            g.p.kill()
            print(g.p.stderr.read().decode(errors="replace"))
            check.finish()
        use_shell(g, check)
        if kernel == "pvh":
            use_bigger_machine(g, check, d)
        if cpus > 1:
            use_cpus(g, check)
        g.send("reboot -f")
        check(g.wait("doppel: init reached", BOOT_SECONDS) and g.wait(PROMPT, 30), "reboot -f starts it again", g.all[-2000:])
        g.send("poweroff -f")
        check(g.end() == 0, "poweroff -f ends the run with status 0", f"{g.p.returncode}\n{g.all[-1000:]}")
    finally:
        d.remove()
    check.finish()


main()
