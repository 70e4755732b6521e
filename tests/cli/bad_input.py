#!/usr/bin/env python3
"""Bad input to doppel: one line with the reason and a way out, status 125, nothing left behind.

usage: bad_input.py DOPPEL
"""
import os
import shutil
import struct
import subprocess
import sys

from harness import Checks, Directory, HANG, guest_exit, guest_print, kernel_directory, one_line_error, out8, run, usable_engines

doppel = sys.argv[1]
check = Checks()
d = Directory()
good = d.file("good", guest_exit(1))


def bad(*args, words=(), **kw):
    one_line_error(check, run(doppel, *args, **kw), *words)


def bad_run(*args, words=(), **kw):
    bad("run", "--kernel", good, "--engine", "soft", *args, words=words, **kw)


def commands_and_options():
    bad(words=["no command", "doppel help"])
    bad("frobnicate", words=["frobnicate"])
    bad("version", "now", words=["now"])
    bad("run", words=["nothing to boot", "--kernel"])
    bad("run", "--kernel", words=["--kernel"])
    bad("run", "--frobnicate", words=["--frobnicate"])
    bad("run", "-x", words=["-x"])
    bad("run", "--no-reboot=1", words=["--no-reboot"])
    bad("run", "vmlinuz", words=["vmlinuz", "No such file"])
    bad("run", d.file("a.raw", bytes(65536)), "b.raw", words=["unexpected argument 'b.raw'", "--disk"])
    bad("run", "--initrd", d / "missing", words=["--kernel"])
    for option, value in (("--cpus", "0"), ("--cpus", "65"), ("--cpus", "two"), ("--cpus", "-1"), ("--engine", "tcg"),
                          ("--cpu", "486"), ("--debug-exit=-4", None), ("--debug-exit=70000", None)):
        bad_run(*[a for a in (option, value) if a is not None], words=[option.split("=")[0]])
    for port in "0x3f8", "0x3f6", "0xcf9", "0x70", "0x40", "0x600":
        bad_run("--debug-exit=" + port, words=["overlaps"])


def sizes():
    for size in "0", "1", "4097", "-1", "512Q", "512MB", "", "M", "100000T", "99999999999999999999", "1e9":
        bad_run("-m", size)


def kernels():
    image = bytearray(64 * 1024)
    struct.pack_into("<B", image, 0x1F1, 4)
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = struct.pack("<H", 0x20F)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    cases = {
        "empty": b"",
        "text": b"#!/bin/sh\necho hello\n" * 100,
        "zeros": bytes(8192),
        "bzimage-header-only": bytes(image[:0x206]),
        "bzimage-no-64-bit-entry": bytes(image),
        "elf-header-only": elf,
        "elf-three-bytes": b"\x7fEL",
        "elf32-garbage": b"\x7fELF\x01\x01\x01" + bytes(range(200)),
        "multiboot-bad-load": struct.pack("<8I", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFFFFFF,
                                          0xFFFFF000, 0xFFFFF000, 0, 0, 0xFFFFF020) + bytes(9000),
        "random": bytes((i * 7919 + (i >> 3) * 104729) & 0xFF for i in range(100000)),
    }
    for name, data in cases.items():
        bad("run", "--engine", "soft", "--kernel", d.file(name, data), words=[name])
    bad("run", "--engine", "soft", "--kernel", d / "missing", words=["missing", "No such file"])
    bad("run", "--engine", "soft", "--kernel", d.path, words=[os.path.basename(d.path)])
    bad("run", "--engine", "soft", "--kernel", good, "-m", "1M", words=["memory"])


def initrds():
    # Multiboot images take modules; these have an initrd only with the Linux protocols.
    bad_run("--module", d / "missing", words=["missing", "No such file"])
    big = d / "big"
    with open(big, "wb") as f:
        f.truncate(1 << 32)
    bad_run("--module", big, "-m", "64M", words=["big"])
    directory = kernel_directory("cloud")
    if not directory:
        print("note: no kernel package, so no truncated kernels")
        return
    kernel = os.path.join(directory, "vmlinuz")
    with open(kernel, "rb") as f:
        whole = f.read()
    protected = (whole[0x1F1] + 1) * 512 + 16 * struct.unpack_from("<I", whole, 0x1F4)[0]  # a signature may follow
    for n in 600, 20000, len(whole) // 2, protected - 16:
        bad("run", "--engine", "soft", "--kernel", d.file(f"cut-{n}", whole[:n]), words=[f"cut-{n}"])
    bad("run", "--engine", "soft", "--kernel", kernel, "--initrd", d / "missing", words=["missing", "No such file"])
    bad("run", "--engine", "soft", "--kernel", kernel, "--initrd", big, "-m", "512M", words=["big"])
    bad("run", "--engine", "soft", "--kernel", kernel, "--initrd", d.path)
    bad("run", "--engine", "soft", "--kernel", kernel, "--append", "x" * 100000, words=["command line"])
    bad("run", "--engine", "soft", "--kernel", kernel, "-m", "4M", words=["memory"])


def disks_to_boot():
    def none(name, data, *more, words):
        bad("run", "--engine", "soft", d.file(name, data), *more, words=[name, *words])
    none("zeros.raw", bytes(1 << 20), words=["nothing to boot", "--kernel"])
    none("random.raw", os.urandom(1 << 20), words=["nothing to boot", "--kernel"])
    none("xfs.raw", b"XFSB" + bytes(1 << 20), words=["XFS", "--kernel"])
    bad("run", "--engine", "soft", "--disk", d / "zeros.raw", words=["zeros.raw", "nothing to boot"])
    ext = d.file("ext.raw", bytes(4 << 20))
    mke2fs = shutil.which("mke2fs", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not mke2fs:
        print("note: no mke2fs, so no file systems")
        return
    os.makedirs(d / "tree/boot/grub")
    with open(d / "tree/boot/grub/grub.cfg", "wb") as f:
        f.write(b"menuentry 'a\x1b[2J' { linux /boot/vmlinuz; }")
    subprocess.run([mke2fs, "-q", "-F", "-d", d / "tree", ext], check=True)
    bad("run", "--engine", "soft", ext, words=["ext.raw", "/boot/vmlinuz: no such file"])
    with open(d / "tree/boot/vmlinuz", "wb") as f:
        f.write(b"not a kernel")
    subprocess.run([mke2fs, "-q", "-F", "-d", d / "tree", ext], check=True)
    bad("run", "--engine", "soft", ext, words=["ext.raw", "not a kernel"])
    bad("run", "--engine", "soft", ext, "--append", "x" * 10000, words=["--append"])
    r = run(doppel, "run", "--engine", engines[0], "--kernel", good, "--debug-exit", ext)
    check(r.returncode == 3, "--kernel goes before what is on the disk", r.stderr)


def serial():
    bad_run("--serial", "telnet:1", words=["telnet:1"])
    bad_run("--serial", "", words=[])
    bad_run("--serial", "file:", words=["file:"])
    bad_run("--serial", "file:" + d / "no/such/log", words=["No such file"])
    bad_run("--serial", "file:" + d.path, words=[])
    bad_run("--serial", "unix:" + d / "no/such/socket", words=[])
    bad_run("--serial", "unix:" + "/tmp/" + "x" * 200, words=[])
    taken = d.file("taken", b"not a socket")
    bad_run("--serial", "unix:" + taken, words=["taken"])
    check(open(taken, "rb").read() == b"not a socket", "a file in the place of the socket is left alone")
    bad_run("--virtio-console", "nonsense", words=["nonsense"])


def disks():
    raw = d.file("disk.raw", bytes(1 << 20))
    for spec, word in ((",ro", "no path"), (raw + ",", "unknown"), (raw + ",color=red", "color"), (raw + ",ro=1", "takes no value"),
                       (raw + ",cache", "needs a value"), (raw + ",cache=warm", "warm"), (raw + ",format=floppy", "floppy"), (raw + ",on-error=cry", "cry"),
                       (raw + ",iops=0", "iops"), (raw + ",iops=-1", "iops"), (raw + ",bps=fast", "fast"), (raw + ",serial=" + 21 * "x", "longer than 20"),
                       (raw + ",,ro", "No such file"), (d / "none.raw", "No such file"), (d.path, "Is a directory"), ("/dev/null", "not a file or block device"),
                       (d.file("empty.img", b""), "empty"), (d.file("text.qcow2", b"no image at all" * 100), "text.qcow2"),
                       (d.file("short.qcow2", b"QFI\xfb"), "short.qcow2"), (d.file("text.vmdk", b"no image at all" * 100), "text.vmdk"),
                       (d.file("guest.img", b"QFI\xfb\0\0\0\3" + bytes(4096)), "begins like a qcow2"),
                       ("nbd+unix:///?socket=" + d / "nobody", "nobody"), ("nbd://127.0.0.1:1/x", "127.0.0.1")):
        bad_run("--disk", spec, words=[word])
    bad_run("--disk", raw, "--disk", raw, words=["named twice"])
    bad_run("--disk", raw + ",ro", "--disk", raw, words=["named twice"])
    bad_run(*["--disk", raw + ",ro"] * 17, words=["more than the 16"])


def networks():
    import socket
    for spec in ("", "bogus", "user,bogus", "user,bogus=1", "user,hostfwd", "user,hostfwd=", "user,hostfwd=tcp:22", "user,hostfwd=sctp::1:2",
                 "user,hostfwd=tcp::0:22", "user,hostfwd=tcp::65536:22", "user,hostfwd=tcp::2222:0", "user,hostfwd=tcp:localhost:2222:22",
                 "user,hostfwd=tcp::2222:22:22", "user,restrict=maybe", "user,net=10.0.2.0", "user,net=10.0.2.1/24", "user,net=10.0.2.0/31",
                 "user,dns=10.0.3.3", "user,host=1.2.3", "user,queues=2", "user,bps=", "user,bps=10X", "user,bps=-1", "user,bps=99999999G",
                 "user,mtu=100", "user,mtu=65536", "user,mac=01:00:00:00:00:00", "user,mac=2:3", "user,mac=zz:00:00:00:00:00", "user," + "x" * 5000,
                 "null,hostfwd=tcp::2222:22", "tap:", "tap:a/b", "tap:a-name-that-is-too-long", "tap:x,queues=9", "link:", "link:" + "x" * 200):
        bad_run("--net", spec, words=["--net"])
    bad_run("--net", "link:" + d / "no/such/cable", words=["No such file"])
    bad_run("--net", "link:" + d.file("taken-too", b"not a socket"), words=["taken-too"])
    check(open(d / "taken-too", "rb").read() == b"not a socket", "a file in the place of the cable is left alone")
    os.unlink(d / "taken-too")
    bad_run(*["--net", "null"] * 9, words=["more than 8"])
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
        bad_run("--net", f"user,hostfwd=tcp:127.0.0.1:{port}:22", words=[str(port), "in use"])
        bad_run("--net", "link:" + d / "left-cable", "--net", f"user,hostfwd=tcp::{port}:22", words=[str(port), "in use"])
    check(not os.path.exists(d / "left-cable"), "a failed start leaves no cable")
    bad_run("--net", "user,hostfwd=tcp:192.0.2.77:2222:22", words=["192.0.2.77"])


def nothing_left():
    before = set(os.listdir(d.path))
    bad("run", "--engine", "soft", "--kernel", d / "missing", "--serial", "unix:" + d / "left.sock")
    bad("run", "--engine", "soft", "--kernel", good, "--serial", "unix:" + d / "left.sock", "--virtio-console", "bogus")
    check(set(os.listdir(d.path)) == before, "a failed start leaves no socket", sorted(set(os.listdir(d.path)) - before))
    r = run(doppel, "run", "-q", "--kernel", good, "--engine", engines[0], "--debug-exit", "--serial", "unix:" + d / "left.sock")
    check(r.returncode == 3 and set(os.listdir(d.path)) == before, "a finished run leaves no socket", r.stderr)


def full_disk():
    if not os.path.exists("/dev/full"):
        return
    text = guest_print(b"hello\n", then=b"\xb9" + struct.pack("<I", 200000) + b"\xe2\xfe" + out8(0xF4, 0) + HANG)
    r = run(doppel, "run", "-q", "--kernel", d.file("print", text), "--engine", engines[0], "--debug-exit", "--serial", "file:/dev/full")
    check(r.returncode == 125 and "No space left" in r.stderr, "a full disk for --serial file: status 125", f"{r.returncode}\n{r.stderr}")


def unreadable_kvm():
    if os.geteuid() == 0:
        binary = d.file("doppel", open(doppel, "rb").read())
        os.chmod(binary, 0o755)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", binary]
    elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
        command = [doppel]
    else:
        print("skipped: /dev/kvm is open to this user")
        return
    if os.path.exists("/dev/kvm") and os.stat("/dev/kvm").st_mode & 0o006 and os.geteuid() == 0:
        print("skipped: /dev/kvm is open to everyone")
        return
    r = run(command[0], *command[1:], "run", "--kernel", good, "--engine", "kvm")
    one_line_error(check, r, "kvm", "--engine soft")


def output_lost():
    with open("/dev/full", "w") as full:
        r = subprocess.run([doppel, "version"], stdout=full, stderr=subprocess.PIPE, text=True)
    one_line_error(check, r, "No space left")


engines = usable_engines(doppel, d)
for group in (commands_and_options, sizes, kernels, initrds, disks_to_boot, serial, disks, networks, nothing_left, full_disk, unreadable_kvm, output_lost):
    print(f"# {group.__name__}")
    group()
d.remove()
check.finish()
