#!/usr/bin/env python3
"""Disks as Linux's own virtio_blk uses them: fio --verify, file systems, discard, read-only, snapshot, two users, a full host, SIGKILL.

usage: disk.py DOPPEL SOURCE_ROOT ENGINE

Skipped (77) where the kernel cannot be fetched or the engine does not run.
"""
import hashlib
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from harness import Checks, Directory, auto_engine, kernel_directory, one_line_error, run, skip, wait_for  # noqa: E402

doppel, root, engine = sys.argv[1:]
MIB = 1 << 20
LIMIT = 150


class Guest:
    """A VM that runs a script; its console and messages are collected as they come."""

    def __init__(self, d, script, disks, initrd="initrd.gz", cpus=1, name=None):
        with open(d / "script.sh", "w", encoding="ascii") as f:
            f.write(script)
        add = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], input=b"script.sh\n", cwd=d.path, stdout=subprocess.PIPE, check=True)
        with open(d / initrd, "rb") as f, open(d / "run.gz", "wb") as out:
            data = f.read()
            out.write(data + bytes(-len(data) % 4) + add.stdout)  # the kernel takes archives one behind the other
        args = [doppel, "run", *(["--name", name] if name else []), "--engine", engine, "-m", "512M", "--cpus", str(cpus), "--no-reboot", "--kernel", d / "vmlinuz",
                "--initrd", d / "run.gz", "--append", 'console=ttyS0 quiet panic=-1 doppel.run=". /script.sh"']
        for disk in disks:
            args += ["--disk", disk]
        self.out = self.err = ""
        self.p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        self.readers = [threading.Thread(target=self.read, args=(name,), daemon=True) for name in ("out", "err")]
        for r in self.readers:
            r.start()

    def read(self, name):
        for line in getattr(self.p, "std" + name):
            setattr(self, name, getattr(self, name) + line)

    def end(self, seconds=LIMIT):
        try:
            status = self.p.wait(seconds)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
            status = "killed: it did not end"
        for r in self.readers:
            r.join(5)
        return status

    def said(self, text, seconds=LIMIT):
        return wait_for(lambda: text in self.out or self.p.poll() is not None, seconds) and text in self.out


def image(d, name, size, data=b""):
    path = d / name
    with open(path, "wb") as f:
        f.write(data)
        f.truncate(size)
    return path


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def allocated(path):
    return os.stat(path).st_blocks * 512


FIO = r"""
mkdir -p /dev/shm; mount -t tmpfs none /dev/shm
f() { fio --name=v --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 --size=32M --verify=crc32c --verify_fatal=1 --minimal "$@" \
	>/tmp/fio.log 2>&1 && echo "verified" || { echo "fio failed"; head -c 2000 /tmp/fio.log; }; }
f --rw=randwrite --bsrange=512-64k
f --rw=randwrite --bs=4k --loops=2
fio --name=z --filename=/dev/vda --direct=1 --ioengine=psync --rw=randtrimwrite --bs=8k --size=16M --minimal >/tmp/fio.log 2>&1
echo "trim $?"
"""

FILES = """
echo "serial $(cat /sys/block/vda/serial) ro $(cat /sys/block/vda/ro) $(cat /sys/block/vdb/ro) size $(cat /sys/block/vda/size)"
mke2fs -F /dev/vda >/dev/null 2>&1; mkdir -p /m; mount -t ext4 -o discard /dev/vda /m || echo "mount failed"
i=0; while [ $i -lt 40 ]; do dd if=/dev/urandom of=/m/f$i bs=37k count=$((i + 1)) 2>/dev/null; i=$((i + 1)); done
sync; a=$(cat /m/f* | md5sum); umount /m; echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /m; b=$(cat /m/f* | md5sum); [ "$a" = "$b" ] && echo "files alike"
dd if=/dev/urandom of=/m/big bs=1M count=48 2>/dev/null; sync; echo "filled"; sleep 1
rm /m/big; sync; fstrim /m; echo "trim $?"; umount /m
dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>&1 | grep -q "not permitted\\|Read-only" && echo "vdb refused"
echo "vdb $(md5sum </dev/vdb)"
dd if=/dev/urandom of=/dev/vdc bs=1M count=4 conv=fsync 2>/dev/null && echo "vdc written"
"""


def use(d, check):
    data = random.Random(1).randbytes(4 * MIB)
    a, b, c = image(d, "a.raw", 128 * MIB), image(d, "b.img", 4 * MIB, data), image(d, "c.img", 4 * MIB, data)
    fio = shutil.which("fio")
    script = (FIO if fio else "") + FILES
    g = Guest(d, script, [a + ",serial=one,format=raw", b + ",ro", c + ",snapshot"], "fio.gz" if fio else "initrd.gz", cpus=1)
    check(g.said("filled"), "the guest fills its disk", g.out[-2000:] + g.err)
    full = allocated(a)
    status = g.end()
    check(status == 0, "it ends well", f"{status}\n{g.out[-2000:]}{g.err}")
    if fio:
        check(g.out.count("verified") == 2 and "trim 0" in g.out, "fio --verify, and trims", g.out[-2000:])
    check("serial one" in g.out.replace("\n", " ") and f"ro 0 1 size {128 * MIB // 512}" in g.out, "serial, read-only flag, size", g.out[-2000:])
    check("files alike" in g.out, "files on ext4 are read back", g.out[-2000:])
    check(allocated(a) < full - 40 * MIB, "discard gives the space back", f"{full} {allocated(a)}")
    check("vdb refused" in g.out and hashlib.md5(data).hexdigest() in g.out and digest(b) == hashlib.sha256(data).hexdigest(),
          "a read-only disk is read, and not written", g.out[-2000:])
    check("vdc written" in g.out and digest(c) == hashlib.sha256(data).hexdigest(), "a snapshot takes writes, its file stays as it was")
    r = subprocess.run(["e2fsck", "-fn", a], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check(r.returncode == 0, "e2fsck on the host finds nothing", r.stdout)


def two_users(d, check):
    a = image(d, "a.raw", 8 * MIB)
    g = Guest(d, "echo up; sleep 60", [a])
    check(g.said("up"), "a VM holds a disk", g.out[-1000:] + g.err)
    args = ["run", "--engine", engine, "--kernel", d / "vmlinuz", "--disk"]
    one_line_error(check, run(doppel, *args, a), "in use by process", str(g.p.pid))
    one_line_error(check, run(doppel, *args, a + ",ro"), "in use by process")
    one_line_error(check, run(doppel, *args, a + ",snapshot"), "in use by process")
    g.p.terminate()
    g.end()


def grown(d, check):
    """A disk grows under a running guest."""
    a, name = image(d, "a.raw", 8 * MIB), f"disk-test-{os.getpid()}"
    g = Guest(d, f"echo up; i=0; until [ $(cat /sys/block/vda/size) = {12 * MIB // 512} ] || [ $i = 300 ]; do sleep .1; i=$((i + 1)); done; "
              "dd if=/dev/urandom of=/dev/vda bs=1M seek=11 count=1 conv=fsync 2>/dev/null; echo wrote $?", [a], name=name)
    g.said("up")
    for args, words in ((("0", "4M"), "only grows"), (("1", "12M"), "no disk 1"), (("x", "12M"), "not a size")):
        one_line_error(check, run(doppel, "resize", name, *args), words)
    r = run(doppel, "resize", name, "0", "12M")
    check(r.returncode == 0 and os.path.getsize(a) == 12 * MIB, "doppel resize", r.stderr)
    status = g.end()
    check(status == 0 and "wrote 0" in g.out, "the guest sees the disk grow, and writes there", f"{status}\n{g.out[-500:]}{g.err}")


def soft_limit(pid, size):
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_host(d, check):
    """The process may make no file larger than 24 MiB: as a full disk. Then it may again."""
    a = image(d, "a.raw", 64 * MIB)
    g = Guest(d, "echo up; sleep 2; dd if=/dev/urandom of=/tmp/r bs=1M count=40 2>/dev/null; md5sum </tmp/r; "
              "dd if=/tmp/r of=/dev/vda bs=1M conv=fsync 2>/dev/null; echo wrote $?; dmesg | grep -ci 'i/o error'", [a])
    check(g.said("up"), "a VM with a disk", g.out[-1000:] + g.err)
    soft_limit(g.p.pid, 24 * MIB)
    check(wait_for(lambda: "requests of the guest wait" in g.err, LIMIT), "a full host: the user is told that the guest waits", g.err + g.out[-1000:])
    time.sleep(1.5)
    check("wrote" not in g.out and g.p.poll() is None, "the guest waits", g.out[-1000:])
    soft_limit(g.p.pid, resource.RLIM_INFINITY)
    status = g.end()
    with open(a, "rb") as f:
        written = hashlib.md5(f.read(40 * MIB)).hexdigest()
    check(status == 0 and "wrote 0\n0\n" in g.out and written in g.out, "with room again it goes on, and nothing is lost", f"{status}\n{g.out[-1000:]}{g.err}")

    a = image(d, "a.raw", 64 * MIB)
    g = Guest(d, "echo up; sleep 2; dd if=/dev/zero of=/dev/vda bs=1M count=1 seek=40 conv=fsync 2>/dev/null; echo wrote $?", [a + ",on-error=report"])
    g.said("up")
    soft_limit(g.p.pid, 24 * MIB)
    status = g.end()
    check("wrote 1" in g.out and status == 125 and "File too large" in g.err, "on-error=report: the guest is told, and status 125", f"{status}\n{g.out[-500:]}{g.err}")


WRITER = """
mkdir -p /m; i=0
while :; do
	yes "block $i" | head -c 65536 >/tmp/b
	dd if=/tmp/b of=/dev/vda bs=64k count=1 seek=$i conv=notrunc,fsync 2>/dev/null || break
	echo "ack $i"
	i=$((i + 1)); [ $i -lt 1000 ] || i=0
done
"""


def killed(d, check):
    """What the guest flushed before a SIGKILL is in the image."""
    for disk in ("k.raw,format=raw", "k.qcow2,format=qcow2"):
        acks = 0
        for seed in range(2):
            path = d / disk.split(",")[0]
            if "qcow2" in disk:
                if not shutil.which("qemu-img") or run(doppel, "disk", "create", path, "64M").returncode:
                    print("note: no qcow2 here")
                    return
            else:
                image(d, "k.raw", 64 * MIB)
            g = Guest(d, WRITER, [path + disk[disk.index(","):]])
            if not check(g.said("ack 5\n"), "a guest that writes and flushes", g.out[-1000:] + g.err):
                return
            time.sleep(random.Random(seed).uniform(0.1, 0.8))
            g.p.kill()
            g.end()
            if "qcow2" in disk:
                r = subprocess.run(["qemu-img", "check", "-q", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                check(r.returncode in (0, 3), "qemu-img check after SIGKILL", r.stdout)
                subprocess.run(["qemu-img", "convert", "-O", "raw", path, d / "k.raw"], check=True)
                os.remove(path)
            with open(d / "k.raw", "rb") as f:
                content = f.read()
            lost = []
            for n in (int(m) for m in re.findall(r"^ack (\d+)$", g.out.replace("\r", ""), re.M)):
                acks += 1
                line = b"block %d\n" % n
                if content[n << 16:(n + 1) << 16] != (line * (65536 // len(line) + 1))[:65536]:
                    lost.append(n)
            check(not lost, f"{disk}: flushed blocks are there after SIGKILL", f"lost {lost}")
        check(acks > 10, f"{disk}: {acks} flushes confirmed")


def main():
    check = Checks()
    d = Directory()
    try:
        if engine == "kvm" and auto_engine(doppel, d) != "kvm":
            skip("KVM does not work here or is no hardware virtualization (see doppel doctor)")
        where = kernel_directory("cloud")
        if not where:
            skip("the kernel package cannot be fetched")
        shutil.copy(os.path.join(where, "vmlinuz"), d / "vmlinuz")
        tool = os.path.join(root, "tools/make-initramfs")
        subprocess.run([tool, "--modules", "virtio_blk", d / "initrd.gz", where], check=True)
        if shutil.which("fio"):
            subprocess.run([tool, "--modules", "virtio_blk", "--program", shutil.which("fio"), d / "fio.gz", where], check=True)
        use(d, check)
        two_users(d, check)
        grown(d, check)
        full_host(d, check)
        killed(d, check)
    finally:
        d.remove()
    check.finish()


main()
