#!/usr/bin/env python3
"""What images by QEMU ask of us beside plain data: features that are refused, dirty images, bitmaps, VM state, damage.

usage: qcow2_features.py REPLAY

REPLAY is tests/unit/backend/qcow2_replay. qemu-img judges what is left.
"""
import os
import shutil
import struct
import subprocess
import sys
import tempfile

PATTERN = ["write -P 17 0 300k", "write -P 34 1M 700k", "write -z 4M 128k", "write -P 51 6M 64k"]


def run(cmd, stdin=None):
    p = subprocess.run(cmd, input=stdin, capture_output=True, text=True, timeout=120)
    return p.returncode, p.stdout + p.stderr


def must(cmd, stdin=None):
    status, out = run(cmd, stdin)
    if status:
        sys.exit(f"qcow2_features: {' '.join(cmd)}: {out.strip()}")
    return out


class Bench:
    def __init__(self, replay, folder):
        self.replay, self.folder, self.count = replay, folder, 0

    def image(self, options="", size="8M", fill=True):
        self.count += 1
        path = os.path.join(self.folder, f"i{self.count}.qcow2")
        must(["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, size])
        if fill:
            must(["qemu-io", "-f", "qcow2", *[x for c in PATTERN for x in ("-c", c)], path])
        return path

    def ours(self, path, *lines):
        return must([self.replay, path], "\n".join(lines) + "\n")

    def refused(self, path, words, mode=""):
        status, out = run([self.replay, path], f"open{mode}\n")
        if status != 1 or words not in out:
            sys.exit(f"qcow2_features: {path}: not refused with '{words}', but {status}: {out}")

    def raw(self, path):
        out = path + ".raw"
        must(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", path, out])
        with open(out, "rb") as f:
            return f.read()

    def ours_raw(self, path, mode=" ro"):
        self.ours(path, "open" + mode, f"dump {path}.raw")
        with open(path + ".raw", "rb") as f:
            return f.read()

    def clean(self, path, what):
        status, out = run(["qemu-img", "check", "-f", "qcow2", path])
        if status:
            sys.exit(f"qcow2_features: {what}: qemu-img check: {out}")
        ours = self.ours(path, "open ro", "check")
        if "check corruptions 0 leaks 0 " not in ours:
            sys.exit(f"qcow2_features: {what}: our check: {ours}")


def patch(path, off, data):
    with open(path, "r+b") as f:
        f.seek(off)
        f.write(data)


def field(path, off, fmt):
    with open(path, "rb") as f:
        f.seek(off)
        return struct.unpack(fmt, f.read(struct.calcsize(fmt)))[0]


def refusals(b):
    path = b.image("data_file=%s/data.raw" % b.folder, fill=False)
    b.refused(path, "data_file", " ro")
    path = b.image()
    patch(path, 32, struct.pack(">I", 2))  # LUKS
    b.refused(path, "encrypted", " ro")
    path = b.image()
    patch(path, 72, struct.pack(">Q", 1 << 40))
    b.refused(path, "not known here", " ro")
    path = b.image()
    patch(path, 72, struct.pack(">Q", 2))
    b.refused(path, "marked corrupt")
    b.ours_raw(path)
    b.ours(path, "open repair", "repair")
    b.clean(path, "corrupt bit")
    b.ours(path, "open", "w 0 512 1")
    path = b.image()
    os.truncate(path, 800000)
    status, out = run([b.replay, path], f"open ro\ndump {path}.raw\n")
    if status != 1 or "Input/output error" not in out:
        sys.exit(f"qcow2_features: what was cut off reads as something: {status} {out}")
    os.truncate(path, 60000)
    b.refused(path, "behind its end", " ro")
    outside = os.path.join(os.path.dirname(b.folder), "doppel-outside.raw")
    with open(outside, "wb") as f:
        f.truncate(1 << 20)
    path = os.path.join(b.folder, "outside.qcow2")
    must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", outside, "-F", "raw", path])
    b.refused(path, "outside of the image's directory", " ro")
    os.unlink(outside)
    path = os.path.join(b.folder, "self.qcow2")
    must(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "self.qcow2", "-F", "qcow2", path, "1M"])
    b.refused(path, "more than 64 backing files", " ro")


def dirty(b):
    path = b.image("lazy_refcounts=on", fill=False)
    run(["qemu-io", "-f", "qcow2", *[x for c in PATTERN + ["flush", "abort"] for x in ("-c", c)], path])
    if not field(path, 72, ">Q") & 1:
        sys.exit("qcow2_features: QEMU left no dirty image")
    before = b.ours_raw(path)
    b.ours(path, "open", "w 7340032 512 9")
    b.clean(path, "dirty")
    if b.raw(path)[:7 << 20] != before[:7 << 20] or 17 not in before[:1]:
        sys.exit("qcow2_features: a dirty image lost data")


def bitmaps(b):
    path = b.image()
    must(["qemu-img", "bitmap", "--add", path, "x"])
    b.clean(path, "bitmaps")
    b.ours(path, "open", "f")
    if not field(path, 88, ">Q") & 1:
        sys.exit("qcow2_features: the bitmaps' flag is gone though nothing was written")
    b.ours(path, "open", "w 0 512 1")
    if field(path, 88, ">Q"):
        sys.exit("qcow2_features: the bitmaps' flag survived a write")
    b.ours(path, "open repair", "repair")
    b.clean(path, "bitmaps written over")


def vm_state(b):
    if not shutil.which("qemu-system-x86_64"):
        print("qcow2_features: no qemu-system-x86_64: snapshots with VM state are not tested")
        return
    path = b.image(size="64M")
    qemu = ["qemu-system-x86_64", "-m", "16", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio", "-drive",
            f"file={path},if=ide,format=qcow2"]
    must(qemu, "savevm a\nquit\n")
    before = b.raw(path)
    out = b.ours(path, "open", "snaps", "w 0 300000 99", "snap create b", "w 100000 5000000 77", "snap delete b", "snap apply a")
    if int(next(x for x in out.splitlines() if x.startswith("snapshot")).split()[4]) == 0:
        sys.exit(f"qcow2_features: no VM state in the list: {out}")
    b.clean(path, "VM state")
    if b.raw(path) != before:
        sys.exit("qcow2_features: a snapshot with VM state came back as something else")
    out = must(qemu, "loadvm a\ninfo snapshots\nquit\n")
    if "Error" in out:
        sys.exit(f"qcow2_features: QEMU cannot load the VM state: {out}")


def damage(b):
    """Each kind of damage that a repair can put right: contents stay, and QEMU finds nothing afterwards."""
    def reftable(p): return field(p, 48, ">Q")
    def block(p): return field(p, reftable(p), ">Q")
    def l2(p): return field(p, field(p, 40, ">Q"), ">Q") & ((1 << 56) - 512)
    kinds = {
        "refcounts 0": lambda p: patch(p, block(p), bytes(200)),
        "refcounts too high": lambda p: patch(p, block(p) + 8, b"\0\7" * 12),
        "no refcount block": lambda p: patch(p, reftable(p), bytes(8)),
        "refcount block nowhere": lambda p: patch(p, reftable(p), struct.pack(">Q", 1 << 50)),
        "refcount block crooked": lambda p: patch(p, reftable(p), struct.pack(">Q", block(p) + 512)),
        "refcount block twice": lambda p: patch(p, reftable(p) + 8, struct.pack(">Q", block(p))),
        "COPIED missing": lambda p: patch(p, l2(p), bytes([field(p, l2(p), ">B") & 0x7f])),
        "COPIED of L1 missing": lambda p: patch(p, field(p, 40, ">Q"), b"\0"),
        "one cluster twice": lambda p: patch(p, l2(p) + 8 * 100, struct.pack(">Q", field(p, l2(p), ">Q"))),
    }
    for what, do in kinds.items():
        for options in ("", "extended_l2=on") if "l2" not in what else ("",):
            path = b.image(options)
            want = b.raw(path)
            do(path)
            if what == "one cluster twice":
                want = None if options else want[:100 * 65536] + want[:65536] + want[101 * 65536:]
            found = b.ours(path, "open ro", "check")
            if "corruptions 0 leaks 0" in found and what != "refcount block twice":
                sys.exit(f"qcow2_features: {what}: nothing found")
            b.ours(path, "open repair", "repair")
            b.clean(path, what)
            if want and b.ours_raw(path) != want:
                sys.exit(f"qcow2_features: {what}: contents changed")


def prealloc(b):
    for mode in ("metadata", "falloc", "full"):
        for extra in ("", ",extended_l2=on", ",cluster_size=512", ",refcount_bits=64,cluster_size=1K"):
            path = os.path.join(b.folder, "p.qcow2")
            b.ours(path, f"create qcow2 5000192 preallocation={mode}{extra}")
            b.clean(path, f"preallocation={mode}{extra}")
            if any(b.raw(path)) or any(b.ours_raw(path)):
                sys.exit(f"qcow2_features: preallocation={mode}{extra}: not zeroes")
            os.unlink(path)


def main():
    for tool in ("qemu-img", "qemu-io"):
        if not shutil.which(tool):
            print(f"qcow2_features: needs {tool} (package qemu-utils)")
            sys.exit(77)
    with tempfile.TemporaryDirectory(prefix="doppel-qcow2f-") as folder:
        b = Bench(sys.argv[1], folder)
        for part in (refusals, dirty, bitmaps, vm_state, damage, prealloc):
            part(b)
            print(f"{part.__name__}: ok", flush=True)


main()
