#!/usr/bin/env python3
"""SIGKILL during writes to a qcow2 image: nothing that a flush has acknowledged is lost, and the image is not corrupt.

usage: qcow2_kill.py REPLAY [KILLS [SEED]]

REPLAY is tests/unit/backend/qcow2_replay; it writes, discards, zeroes and flushes, says which flushes are done, and is killed
at a random moment. Then qemu-img check may find leaks, but no corruption, and QEMU must read what was flushed, or what was
written since.
"""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

SECTOR = 512
FEATURES = ["cluster_size=65536", "cluster_size=4096", "cluster_size=512", "cluster_size=65536,extended_l2=on", "compat=0.10",
            "cluster_size=16384,lazy_refcounts=on", "cluster_size=4096,refcount_bits=1", "compression_type=zstd"]


def commands(rng, size, cluster):
    """Operations, (sector, sectors, values that they may leave), and their text; None: a flush."""
    ops = []
    for _ in range(2000):
        off = SECTOR * rng.randrange(size // SECTOR)
        n = min(SECTOR * rng.randint(1, rng.choice([8, 400])), size - off)
        byte = rng.randint(1, 255)
        kind = rng.choices("wzdcf", [10, 1, 1, 1, 3])[0]
        if kind == "f":
            ops.append((None, "f\nsay %d" % len(ops)))
            continue
        if kind == "c":
            off = off // cluster * cluster
            n = min(cluster, size - off)
        text = {"w": f"w {off} {n} {byte}", "z": f"z {off} {n} {byte & 1}", "d": f"d {off} {n}", "c": f"c {off} {n} {byte}"}[kind]
        ops.append(((off // SECTOR, n // SECTOR, {"w": byte, "c": byte, "z": 0, "d": None}[kind]), text))
    return ops


def kill_once(replay, folder, rng):
    image, raw = os.path.join(folder, "kill.qcow2"), os.path.join(folder, "kill.raw")
    size = SECTOR * rng.randint(1, 16384)
    options = rng.choice(FEATURES)
    cluster = int(dict(x.split("=") for x in options.split(",")).get("cluster_size", 65536))
    if os.path.exists(image):
        os.unlink(image)
    subprocess.run([replay, image], input=f"create qcow2 {size} {options}\n", text=True, check=True, timeout=60)
    ops = commands(rng, size, cluster)
    script = os.path.join(folder, "script")
    with open(script, "w") as f:
        f.write("open\n" + "\n".join(text for _, text in ops) + "\n")
    with open(script) as f, subprocess.Popen([replay, image], stdin=f, stdout=subprocess.PIPE, text=True) as p:
        time.sleep(rng.random() ** 2 * 0.6)
        p.kill()
        out = p.communicate(timeout=60)[0]
    acked = max([int(x.split()[1]) for x in out.splitlines() if x.startswith("said ")], default=-1)
    may = [{0} for _ in range(size // SECTOR)]
    for i, (op, _) in enumerate(ops):
        if not op:
            continue
        for s in range(op[0], op[0] + op[1]):
            if i <= acked:
                may[s] = {op[2]} if op[2] is not None else may[s] | {0}
            else:
                may[s] = may[s] | {op[2] or 0}
    check = subprocess.run(["qemu-img", "check", "-q", image], capture_output=True, text=True, timeout=60)
    if check.returncode not in (0, 3):
        sys.exit(f"qcow2_kill: corrupt after a kill ({options}): {check.stdout[-1000:]}{check.stderr[-1000:]}")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True, timeout=60)
    with open(raw, "rb") as f:
        data = f.read()
    for s, values in enumerate(may):
        sector = data[s * SECTOR:(s + 1) * SECTOR]
        if sector[0] not in values or sector != bytes([sector[0]]) * SECTOR:
            sys.exit(f"qcow2_kill: sector {s} is {sector[0]}, not one of {values} ({options}, flushed up to {acked})")
    return sum(1 for i, (op, _) in enumerate(ops) if op is None and i <= acked), check.returncode == 3


def main():
    replay = sys.argv[1]
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    if not shutil.which("qemu-img"):
        print("qcow2_kill: needs qemu-img (package qemu-utils)")
        sys.exit(77)
    flushes = leaked = 0
    with tempfile.TemporaryDirectory(prefix="doppel-kill-") as folder:
        for _ in range(kills):
            f, leak = kill_once(replay, folder, rng)
            flushes += f
            leaked += leak
    print(f"qcow2_kill: {kills} kills, {flushes} acknowledged flushes, nothing lost, nothing corrupt, {leaked} images with leaks")


main()
