#!/usr/bin/env python3
"""qcow2 images, judged by qemu-img and qemu-io: random operations by our code and by theirs, in turns, on the same image.

usage: qcow2.py REPLAY [SECONDS [SEED]]

REPLAY is tests/unit/backend/qcow2_replay. Each round makes an image (of random features, by either side), lets both sides
work on it in turns, and after each turn wants both to read the same, which is what was written, and both checks to be clean.
A model of the contents knows what discarded bytes may be: what they were, or zeroes.
"""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

SECTOR = 512


def run(cmd, stdin=None):
    p = subprocess.run(cmd, input=stdin, capture_output=True, text=True, timeout=120)
    return p.returncode, p.stdout + p.stderr


class Failure(Exception):
    pass


def must(cmd, stdin=None):
    status, out = run(cmd, stdin)
    if status:
        raise Failure(f"{' '.join(cmd)}: status {status}: {out.strip()[-2000:]}")
    return out


class Model:
    """Bytes that are known, and for discarded ones that they may be zeroes."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.maybe = bytearray(len(data))  # 1: may be zero as well

    def write(self, off, length, byte):
        self.data[off:off + length] = bytes([byte]) * length
        self.maybe[off:off + length] = bytes(length)

    def discard(self, off, length):
        self.maybe[off:off + length] = b"\1" * length

    def resize(self, size):
        grow = size - len(self.data)
        self.data = self.data[:size] + bytes(max(grow, 0))
        self.maybe = self.maybe[:size] + bytes(max(grow, 0))

    def accept(self, got, who):
        if len(got) != len(self.data):
            raise Failure(f"{who}: size {len(got)}, not {len(self.data)}")
        if got == self.data:
            return
        for at in range(0, len(got), SECTOR):
            a, b, m = got[at:at + SECTOR], self.data[at:at + SECTOR], self.maybe[at:at + SECTOR]
            if a != b and not (any(m) and all(x == y or (x == 0 and z) for x, y, z in zip(a, b, m))):
                raise Failure(f"{who}: contents differ at {at}: {a[:8].hex()} instead of {b[:8].hex()} (maybe {m[0]})")
        self.data[:] = got  # discarded bytes are now one or the other

    def copy(self):
        m = Model(self.data)
        m.maybe[:] = self.maybe
        return m


class Round:
    def __init__(self, replay, folder, rng):
        self.replay, self.folder, self.rng = replay, folder, rng
        self.image = os.path.join(folder, "image.qcow2")
        self.raw = os.path.join(folder, "dump")
        self.log = []
        self.snapshots = {}

    def ours(self, lines, mode=""):
        self.log.append(("ours", lines))
        return must([self.replay, self.image], "open%s\n" % mode + "\n".join(lines) + "\n")

    def theirs(self, commands):
        self.log.append(("theirs", commands))
        for at in range(0, len(commands), 60):
            args = [x for c in commands[at:at + 60] for x in ("-c", c)]
            out = must(["qemu-io", "-f", "qcow2", "-d", "unmap", *args, self.image])
            if "failed" in out or "error" in out.lower():
                raise Failure(f"qemu-io: {out[-500:]}")

    def options(self):
        rng = self.rng
        o = {"cluster_size": rng.choice([512, 1024, 4096, 16384, 65536, 65536, 65536, 262144, 2097152])}
        if rng.random() < 0.15:
            o["compat"] = "0.10"
            return o
        if rng.random() < 0.5:
            o["refcount_bits"] = rng.choice([1, 2, 4, 8, 16, 32, 64])
        if o["cluster_size"] >= 16384 and rng.random() < 0.5:
            o["extended_l2"] = "on"
        if rng.random() < 0.4:
            o["compression_type"] = rng.choice(["zlib", "zstd"])
        if rng.random() < 0.2:
            o["lazy_refcounts"] = "on"
        return o

    def create(self):
        rng = self.rng
        self.o = self.options()
        cs = self.o["cluster_size"]
        self.size = SECTOR * rng.randint(1, min(16 << 20, cs * 300) // SECTOR)
        backing = None
        self.model = Model(bytes(self.size))
        if rng.random() < 0.4:
            backing = self.make_backing()
        elif rng.random() < 0.15:
            self.o["preallocation"] = rng.choice(["metadata", "falloc", "full"])
        opts = ",".join(f"{k}={v}" for k, v in self.o.items())
        if rng.random() < 0.2 and not backing and "preallocation" not in self.o:
            self.convert(opts)
            return
        self.log.append(("create", opts, self.size, backing))
        if rng.random() < 0.5:
            extra = f" {os.path.basename(backing[0])} {backing[1]}" if backing else ""
            must([self.replay, self.image], f"create qcow2 {self.size} {opts}{extra}\n")
        else:
            extra = ["-b", os.path.basename(backing[0]), "-F", backing[1]] if backing else []
            must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, *extra, self.image, str(self.size)])

    def convert(self, opts):
        """An image of compressed clusters, by QEMU."""
        self.log.append(("convert", opts, self.size))
        for _ in range(20):
            off, n = self.place()
            self.model.write(off, n, self.rng.randint(1, 255))
        with open(self.raw, "wb") as f:
            f.write(self.model.data)
        must(["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", opts, self.raw, self.image])

    def make_backing(self):
        """A raw or qcow2 file below the image, shorter or longer than it; sometimes one more below."""
        rng = self.rng
        size = SECTOR * rng.randint(1, 2 * self.size // SECTOR)
        data = bytearray(size)
        for _ in range(rng.randint(1, 20)):
            off = SECTOR * rng.randrange(size // SECTOR)
            n = min(SECTOR * rng.randint(1, 400), size - off)
            data[off:off + n] = bytes([rng.randrange(256)]) * n
        raw = os.path.join(self.folder, "base.raw")
        with open(raw, "wb") as f:
            f.write(data)
        n = min(size, self.size)
        self.model.data[:n] = data[:n]
        kind = rng.randrange(3)
        if kind == 0:
            return raw, "raw"
        mid = os.path.join(self.folder, "mid.qcow2")
        if kind == 1:
            must(["qemu-img", "convert", "-q", *(["-c"] if rng.random() < 0.5 else []), "-f", "raw", "-O", "qcow2", raw, mid])
        else:
            must([self.replay, mid], f"create qcow2 {size} - base.raw raw\nopen\nw 0 {SECTOR} 85\n")
            self.model.data[0:SECTOR] = b"\x55" * SECTOR
        return mid, "qcow2"

    def place(self, align=SECTOR, most=None):
        size = len(self.model.data)
        off = align * self.rng.randrange((size + align - 1) // align)
        cs = self.o["cluster_size"]
        most = most or self.rng.choice([SECTOR * 8, cs, cs * 4, cs * 40, 65536])
        n = align * self.rng.randint(1, max(1, most // align))
        return off, min(n, size - off)

    def operations(self, count):
        """The same operations as our commands and theirs; the model does them too."""
        rng, cs, m = self.rng, self.o["cluster_size"], self.model
        ours, theirs = [], []
        for _ in range(count):
            kind = rng.choices("wczdf", [10, 2, 3, 2, 1])[0]
            byte = rng.randint(1, 255)
            if kind == "w":
                off, n = self.place()
                ours.append(f"w {off} {n} {byte}")
                theirs.append(f"write -P {byte} {off} {n}")
                m.write(off, n, byte)
            elif kind == "c":
                off, n = self.place(cs, cs)
                ours.append(f"c {off} {n} {byte}")
                theirs.append(f"write -P {byte} {off} {n}")  # theirs compresses only what was never written: see convert
                m.write(off, n, byte)
            elif kind == "z":
                off, n = self.place()
                unmap = rng.randrange(2)
                ours.append(f"z {off} {n} {unmap}")
                theirs.append(f"write -z {'-u ' if unmap else ''}{off} {n}")
                m.write(off, n, 0)
            elif kind == "d":
                off, n = self.place()
                ours.append(f"d {off} {n}")
                theirs.append(f"discard {off} {n}")
                m.discard(off, n)
            else:
                ours.append("f")
                theirs.append("flush")
        return ours, theirs

    def verify(self):
        self.ours([f"dump {self.raw}"], " ro" + self.rng.choice(["", " direct"]))
        with open(self.raw, "rb") as f:
            got = f.read()
        self.model.accept(got, "ours")
        must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.image, self.raw])
        with open(self.raw, "rb") as f:
            if f.read() != got:
                raise Failure("qemu-img reads something else than we do")
        out = must(["qemu-img", "check", "-f", "qcow2", self.image])
        if "No errors" not in out:
            raise Failure(f"qemu-img check: {out}")
        out = self.ours(["check"], " ro")
        if "check corruptions 0 leaks 0 " not in out:
            raise Failure(f"our check: {out}")

    def snapshot(self):
        rng = self.rng
        narrow = self.o.get("refcount_bits", 16) < 4
        verb = rng.choice(["create", "apply", "delete"]) if self.snapshots else "create"
        name = f"s{rng.randrange(1000)}" if verb == "create" else rng.choice(list(self.snapshots))
        if verb == "create" and (narrow or name in self.snapshots or len(self.snapshots) > 5):
            return
        if rng.random() < 0.5:
            self.ours([f"snap {verb} {name}"])
        else:
            self.log.append(("theirs", f"snapshot {verb} {name}"))
            must(["qemu-img", "snapshot", {"create": "-c", "apply": "-a", "delete": "-d"}[verb], name, self.image])
        if verb == "create":
            self.snapshots[name] = self.model.copy()
        elif verb == "apply":
            self.model = self.snapshots[name].copy()
        else:
            del self.snapshots[name]

    def resize(self):
        if self.snapshots:
            return
        size = SECTOR * self.rng.randint(1, 2 * len(self.model.data) // SECTOR)
        if self.rng.random() < 0.5 or self.o.get("compat") == "0.10":  # theirs cannot hide a backing file there
            self.ours([f"resize {size}"])
        else:
            self.log.append(("theirs", f"resize {size}"))
            must(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", self.image, str(size)])
        self.model.resize(size)

    def step(self):
        kind = self.rng.random()
        if kind < 0.15:
            self.snapshot()
        elif kind < 0.25:
            self.resize()
        elif kind < 0.3:
            self.ours(["threads %d %d 400" % (self.rng.randint(1, 6), self.rng.randint(1, 1 << 30)), f"dump {self.raw}"])
            with open(self.raw, "rb") as f:
                self.model = Model(f.read())
        else:
            ours, theirs = self.operations(self.rng.randint(1, 60))
            if self.rng.random() < 0.6:
                self.ours(ours, self.rng.choice(["", "", " direct", " unsafe"]))
            else:
                self.theirs(theirs)

    def play(self, deadline):
        self.create()
        self.verify()
        for _ in range(self.rng.randint(2, 8)):
            self.step()
            self.verify()
            if time.monotonic() > deadline:
                break


def main():
    replay = sys.argv[1]
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    if not shutil.which("qemu-img") or not shutil.which("qemu-io"):
        print("qcow2: needs qemu-img and qemu-io (package qemu-utils)")
        sys.exit(77)
    deadline = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < deadline:
        with tempfile.TemporaryDirectory(prefix="doppel-qcow2-") as folder:
            r = Round(replay, folder, random.Random(seed * 1000003 + rounds))
            try:
                r.play(deadline + 5)
            except (Failure, subprocess.TimeoutExpired) as e:
                for entry in r.log:
                    print(*entry)
                print(f"qcow2: seed {seed} round {rounds}: {e}")
                if os.environ.get("KEEP"):
                    shutil.copytree(folder, os.environ["KEEP"], dirs_exist_ok=True)
                sys.exit(1)
        rounds += 1
    print(f"qcow2: {rounds} rounds agree with QEMU (seed {seed})")


main()
