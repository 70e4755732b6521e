#!/usr/bin/env python3
"""`doppel disk` beside qemu-img: every format into every other, both ways; what must be refused; what happens when it is interrupted.

usage: disk.py DOPPEL
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from harness import Checks, Directory, one_line_error, run, skip

DOPPEL = sys.argv[1]
SIZE = 48 << 20
check = Checks()
d = Directory()
rng = random.Random(7)

# name of the file, options of doppel, options of qemu-img, compressed
KINDS = {
    "raw": ("raw", []),
    "qcow2": ("qcow2", []),
    "qcow2-big": ("qcow2", ["-o", "cluster_size=2M"]),
    "qcow2-c": ("qcow2", ["-c"]),
    "vmdk": ("vmdk", []),
    "vmdk-flat": ("vmdk", ["-o", "subformat=monolithicFlat"]),
    "vmdk-split": ("vmdk", ["-o", "subformat=twoGbMaxExtentSparse"]),
    "vmdk-splitflat": ("vmdk", ["-o", "subformat=twoGbMaxExtentFlat"]),
    "vmdk-stream": ("vmdk", ["-o", "subformat=streamOptimized"]),
}


def disk(*args, **kw):
    return run(DOPPEL, "disk", *args, **kw)


def qemu(*args):
    return subprocess.run(["qemu-img", *args], capture_output=True, text=True, timeout=60)


def leftovers():
    return [n for n in os.listdir(d.path) if n.startswith(".")]


def source():
    """Data, compressible data and holes, at odd places."""
    path = d.file("source.raw", b"")
    with open(path, "r+b") as f:
        f.truncate(SIZE + 1536)
        for i in range(24):
            f.seek(rng.randrange(SIZE))
            n = rng.randrange(1, 900_000)
            f.write(rng.randbytes(n) if i % 3 else bytes([i]) * n)
        f.seek(SIZE + 1000)
        f.write(b"the end")
    return path


def test_convert(src):
    for name, (fmt, options) in KINDS.items():
        ours, theirs, back = d / f"ours-{name}.{fmt}", d / f"theirs-{name}.{fmt}", d / "back.raw"
        r = disk("convert", src, ours, "-O", fmt, *options)
        check(r.returncode == 0 and not r.stderr, f"convert to {name}", r.stderr)
        q = qemu("compare", "-f", "raw", "-F", fmt, src, ours)
        check(q.returncode == 0, f"qemu-img: {name} of ours holds the same", q.stdout + q.stderr)
        if fmt == "qcow2" or name in ("vmdk", "vmdk-stream", "vmdk-split"):
            q = qemu("check", "-f", fmt, ours)
            check(q.returncode == 0, f"qemu-img: {name} of ours is clean", q.stdout + q.stderr)
            r = disk("check", ours)
            check(r.returncode == 0 and r.stdout.startswith("0 corruptions"), f"check of {name}", r.stdout + r.stderr)
        q = qemu("convert", "-f", "raw", "-O", fmt, *options, src, theirs)
        check(q.returncode == 0, f"qemu-img makes {name}", q.stderr)
        r = disk("compare", src, theirs)
        check(r.returncode == 0, f"compare with {name} of qemu-img", r.stdout + r.stderr)
        if os.path.exists(back):
            os.remove(back)
        r = disk("convert", theirs, back)
        same = r.returncode == 0 and subprocess.run(["cmp", "-s", src, back]).returncode == 0
        check(same, f"{name} of qemu-img back to raw", r.stderr)
        a = json.loads(qemu("info", "--output=json", "-f", fmt, ours).stdout)
        b = json.loads(disk("info", "--format", "json", ours).stdout)
        check(a["virtual-size"] == b["virtual_size"] and a["format"] == b["format"] and a.get("cluster-size", 0) == b["cluster_size"],
              f"info of {name} agrees with qemu-img", f"{a}\n{b}")
    holes, whole = os.stat(d / "back.raw").st_blocks, os.stat(src).st_blocks
    check(holes <= whole * 1.1 + 64, "a converted raw image is sparse", f"{holes} blocks, source {whole}")
    check(not leftovers(), "no temporary names are left", str(leftovers()))


def test_map(src):
    """The ranges that read as zeroes without being read: ours never say so of data; every offset named holds the data."""
    for name in "raw", "qcow2", "vmdk", "vmdk-flat", "qcow2-c", "vmdk-stream":
        path = d / f"theirs-{name}.{KINDS[name][0]}"
        runs = json.loads(disk("map", "--format", "json", path).stdout)
        with open(src, "rb") as f:
            data = f.read()
        at, ok = 0, True
        for r in runs:
            ok = ok and r["start"] == at
            at += r["length"]
            if r["kind"] in ("zero", "unallocated"):
                ok = ok and not data[r["start"]:at].strip(b"\0")
            if "offset" in r and "flat" not in name:
                with open(path, "rb") as f:
                    f.seek(r["offset"])
                    ok = ok and f.read(r["length"])[: len(data) - r["start"]] == data[r["start"]:at]
        check(ok and at >= len(data), f"map of {name} is true", str(runs)[:500])
        theirs = json.loads(qemu("map", "--output=json", "-f", KINDS[name][0], path).stdout)
        zeroes = [sum(r["length"] for r in rs if z(r)) for rs, z in
                  ((runs, lambda r: r["kind"] in ("zero", "unallocated")), (theirs, lambda r: r["zero"]))]
        check(zeroes[0] == zeroes[1], f"map of {name} finds as many zeroes as qemu-img", str(zeroes))


def test_compare(src):
    other = d / "other.raw"
    shutil.copy(src, other)
    for at in rng.randrange(SIZE), 0, SIZE + 1535:
        with open(other, "r+b") as f:
            f.seek(at)
            old = f.read(1)
            f.seek(at)
            f.write(bytes([old[0] ^ 1]))
        r = disk("compare", src, other)
        check(r.returncode == 1 and r.stdout == f"different at offset {at}\n", f"a difference at {at} is found", r.stdout + r.stderr)
        with open(other, "r+b") as f:
            f.seek(at)
            f.write(old)
    with open(other, "r+b") as f:
        f.truncate(SIZE * 2)
    check(disk("compare", src, other).returncode == 0, "zeroes behind the end are no difference")
    with open(other, "r+b") as f:
        f.seek(SIZE + 5000)
        f.write(b"x")
    r = disk("compare", src, other)
    check(r.returncode == 1 and r.stdout == f"different at offset {SIZE + 5000}\n", "data behind the end is one", r.stdout)


def test_create_resize():
    for fmt, options in (("raw", []), ("qcow2", []), ("qcow2", ["-o", "cluster_size=4K,lazy_refcounts=on"]), ("vmdk", [])):
        path = d / f"new.{fmt}"
        if os.path.exists(path):
            os.remove(path)
        r = disk("create", path, "3G", *options)
        info = json.loads(qemu("info", "--output=json", "-f", fmt, path).stdout)
        check(r.returncode == 0 and info["virtual-size"] == 3 << 30, f"create {fmt} {options}", r.stderr)
        one_line_error(check, disk("create", path, "3G"), "exists")
        if fmt == "vmdk":
            one_line_error(check, disk("resize", path, "+1G"), "cannot be resized")
            continue
        for arg, want in ("+1G", 4 << 30), ("5G", 5 << 30):
            r = disk("resize", path, arg)
            info = json.loads(qemu("info", "--output=json", "-f", fmt, path).stdout)
            check(r.returncode == 0 and info["virtual-size"] == want, f"resize {fmt} {arg}", r.stderr)
        one_line_error(check, disk("resize", path, "-1G"), "lost", "--shrink")
        r = disk("resize", path, "-1G", "--shrink")
        check(r.returncode == 0 and json.loads(disk("info", "--format", "json", path).stdout)["virtual_size"] == 4 << 30,
              f"shrink {fmt}", r.stderr)
    base, top = d / "new.qcow2", d / "top.qcow2"
    r = disk("create", top, "-B", "new.qcow2")
    check(r.returncode == 0 and json.loads(disk("info", "--format", "json", top).stdout)["virtual_size"] == 4 << 30,
          "an overlay has the size of what is below", r.stderr)
    check(os.path.exists(base) and '"backing": "new.qcow2"' in disk("info", "--format", "json", top).stdout, "and names it")
    one_line_error(check, disk("create", d / "nothing.qcow2"), "no size")


def test_snapshots(src):
    path = d / "snap.qcow2"
    disk("convert", src, path)
    r = disk("snapshot", "create", path, "first")
    check(r.returncode == 0, "snapshot create", r.stderr)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 99 0 10M", path], capture_output=True)
    check(disk("compare", src, path).returncode == 1, "the disk has changed since")
    check("first" in disk("snapshot", "list", path).stdout and "first" in qemu("snapshot", "-l", path).stdout, "snapshot list")
    r = disk("snapshot", "apply", path, "first")
    check(r.returncode == 0 and disk("compare", src, path).returncode == 0, "snapshot apply brings it back", r.stderr)
    r = disk("snapshot", "delete", path, "first")
    check(r.returncode == 0 and "first" not in qemu("snapshot", "-l", path).stdout, "snapshot delete", r.stderr)
    check(qemu("check", path).returncode == 0, "clean afterwards")
    one_line_error(check, disk("snapshot", "apply", path, "absent"), "absent")
    one_line_error(check, disk("snapshot", "create", d / "new.raw", "x"), "no snapshots")


def test_partitions():
    path = d / "parts.raw"
    subprocess.run(["truncate", "-s", "64M", path], check=True)
    sfdisk = shutil.which("sfdisk", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not sfdisk:
        return
    subprocess.run([sfdisk, "-q", "-X", "gpt", path], input=b'size=4M,type=U,name="efi"\nsize=20M,type=L\n', check=True)
    theirs = json.loads(subprocess.run([sfdisk, "-J", path], capture_output=True).stdout)["partitiontable"]
    disk("convert", path, d / "parts.qcow2")
    for name in "parts.raw", "parts.qcow2":
        ours = json.loads(disk("info", "--format", "json", d / name).stdout)["partition_table"]
        check(ours["scheme"] == "gpt" and ours["id"] == theirs["id"] and
              [(p["start"] // 512, p["length"] // 512, p["type"], p["uuid"]) for p in ours["partitions"]] ==
              [(p["start"], p["size"], p["type"], p["uuid"]) for p in theirs["partitions"]], f"partitions of {name} agree with sfdisk", ours)
        check("EFI system" in disk("info", d / name).stdout, f"info of {name} names them")


def test_refusals(src):
    one_line_error(check, disk(), "no command")
    one_line_error(check, disk("frobnicate"), "unknown command")
    one_line_error(check, disk("info"), "needs FILE")
    one_line_error(check, disk("info", d / "absent.raw"), "No such file")
    one_line_error(check, disk("info", "--format", "xml", src), "xml")
    one_line_error(check, disk("info", "--repair", src), "option")
    one_line_error(check, disk("convert", src), "SRC and DST")
    one_line_error(check, disk("convert", src, src), "same file")
    one_line_error(check, disk("convert", src, d.path), "not a regular file")
    one_line_error(check, disk("convert", src, d / "no/such/dir.raw"), "cannot be made")
    one_line_error(check, disk("convert", src, d / "x.raw", "-c"), "not compressed")
    one_line_error(check, disk("convert", src, d / "x.qcow2", "-O", "vhd"), "vhd")
    one_line_error(check, disk("convert", src, d / "x.vmdk", "-o", "subformat=foo"), "foo")
    one_line_error(check, disk("convert", src, d / "x.vmdk", "-o", "color=red"), "color")
    one_line_error(check, disk("create", d / "x.raw", "much"), "much")
    one_line_error(check, disk("create", d / "x.vmdk", "100000T"), "at most")
    one_line_error(check, disk("check", src), "nothing that can be checked")
    garbage = d.file("garbage.qcow2", os.urandom(9000))
    one_line_error(check, disk("info", garbage), "garbage.qcow2")
    short = d.file("short.vmdk", open(d / "ours-vmdk-stream.vmdk", "rb").read()[:-700])
    one_line_error(check, disk("convert", short, d / "x.raw"), "cut short")
    check(not os.path.exists(d / "x.raw") and not leftovers(), "nothing is left behind", str(os.listdir(d.path)))
    shutil.copy(d / "ours-vmdk-split.vmdk", d / "lonely.vmdk")
    os.rename(d / "ours-vmdk-split-s001.vmdk", d / "gone")
    one_line_error(check, disk("info", d / "ours-vmdk-split.vmdk"), "No such file")
    os.rename(d / "gone", d / "ours-vmdk-split-s001.vmdk")
    one_line_error(check, disk("convert", src, d / "ours-vmdk-split.vmdk", "-o", "subformat=twoGbMaxExtentSparse"), "exists already")
    check(disk("compare", src, d / "ours-vmdk-split.vmdk").returncode == 0, "and the old image is as it was")


def test_locks(src):
    path = d / "held.qcow2"
    disk("create", path, "64M")
    with subprocess.Popen(["qemu-io", "-f", "qcow2", path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as p:
        time.sleep(0.5)
        one_line_error(check, disk("resize", path, "+1M"), "in use")
        one_line_error(check, disk("convert", src, path), "in use")
        one_line_error(check, disk("check", path, "--repair"), "in use")
        check(disk("info", path).returncode == 0, "info looks at an image in use")
        p.stdin.close()
    check(disk("resize", path, "+1M").returncode == 0, "free again")


def test_interrupted(src):
    big = d / "big.raw"
    with open(big, "wb") as f:
        f.truncate(4 << 30)
        for i in range(0, 4 << 30, 8 << 20):
            f.seek(i)
            f.write(os.urandom(1 << 20))
    keep = d.file("keep.qcow2", b"")
    shutil.copy(d / "ours-qcow2.qcow2", keep)
    for sig in signal.SIGINT, signal.SIGTERM:
        p = subprocess.Popen([DOPPEL, "disk", "convert", "-c", big, keep], stderr=subprocess.PIPE, text=True)
        time.sleep(0.4)
        p.send_signal(sig)
        _, err = p.communicate(timeout=30)
        check(p.returncode == 128 + sig and "nothing was left" in err, f"{sig.name} ends a conversion", f"{p.returncode} {err}")
        check(not leftovers(), "and leaves nothing behind", str(leftovers()))
    check(disk("compare", src, keep).returncode == 0, "the target is what it was before")
    os.remove(big)


def test_full():
    """A file system that fills up: a small tmpfs, where we may mount one."""
    small = d / "small"
    os.mkdir(small)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", small], capture_output=True).returncode:
        print("no tmpfs can be mounted: what happens on a full one is not tested")
        return
    try:
        for name in "x.raw", "x.qcow2", "x.vmdk":
            one_line_error(check, disk("convert", d / "source.raw", f"{small}/{name}"), "No space")
        check(not os.listdir(small), "a full file system is left empty", str(os.listdir(small)))
    finally:
        subprocess.run(["umount", small])


def main():
    if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
        skip("no qemu-img and qemu-io here (package qemu-utils)")
    try:
        src = source()
        test_convert(src)
        test_map(src)
        test_compare(src)
        test_create_resize()
        test_snapshots(src)
        test_partitions()
        test_refusals(src)
        test_locks(src)
        test_interrupted(src)
        test_full()
    finally:
        d.remove()
    check.finish()


main()
