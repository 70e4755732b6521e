#!/usr/bin/env python3
"""Hostile guests: random bytes and random privileged instructions as kernels, in 32- and 64-bit mode, with random ports, MMIO, MSRs,
control registers, descriptor and page tables; some with more CPUs, all in the same code and data. doppel must neither crash nor hang: every run ends by itself in a documented way,
or by SIGTERM at once.

usage: hostile.py DOPPEL ENGINE SECONDS SEED      the suite runs minutes of it; give it hours with other seeds

On a failure the image is kept, and its path printed.
"""
import os
import random
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from harness import LOAD, Directory, guest_exit, multiboot, run, skip  # noqa: E402

doppel, engine, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
RUN_SECONDS = 0.25
END_SECONDS = 15
# Inside the image: page tables (PML4, PDPT of 1 GiB pages), GDT, IDT, counter and addresses of the pieces, stack.
TABLES, GDT, IDT, COUNTER, PIECES, STACK = 0x110000, 0x112000, 0x113000, 0x114000, 0x114008, 0x11C000
TRAMPOLINE, END = 0x11F000, 0x120000
START = 256  # bytes of set-up before the pieces' code
CODE = LOAD + 32 + START
LOW = 0x8000  # where other CPUs start
MSRS = [0x10, 0x1B, 0x3A, 0x174, 0x175, 0x176, 0x1A0, 0x1D9, 0x200, 0x250, 0x277, 0x2FF, 0x6E0, 0x802, 0x80B, 0x830, 0x838, 0xDA0,
        0x4B564D00, 0x4B564D01, 0x4B564D02, 0x4B564D03, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101,
        0xC0000102, 0xC0000103]
PORTS = [0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xA0, 0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x4D0, 0x600, 0x602, 0x608,
         0x620, 0xCF8, 0xCFC]
MMIO = [0xE0000000, 0xE0008000, 0xE0008010, 0xC0000000, 0xC0004000, 0xFEC00000, 0xFEC00010, 0xFEE00000, 0xFEE00300, 0xFEE00380, 0xFFFFFFF0]
r = random.Random(seed)


def u32(v):
    return struct.pack("<I", v & 0xFFFFFFFF)


def value():
    return r.choice([r.getrandbits(32), 1 << r.randrange(32), 0, 0xFFFFFFFF, r.randrange(256), LOAD + r.randrange(0x20000), 0x80000011])


def mmio():
    return r.choice(MMIO) + r.choice([0, 0, 4, 8, 0x14, r.randrange(4096), r.randrange(0x100000)])


def mov(reg, v):
    return bytes([0xB8 + reg]) + u32(v)


def instruction(long_mode):
    """One instruction, or a few that set up its operands."""
    edx_eax = mov(0, value()) + mov(2, value())
    pick = r.randrange(19)
    if pick == 0:
        return r.randbytes(r.randrange(1, 16))
    if pick == 1:
        return mov(2, r.choice([r.choice(PORTS), r.randrange(65536)])) + mov(0, value()) + r.choice([b"\xee", b"\x66\xef", b"\xef"])
    if pick == 2:
        return mov(2, r.choice([r.choice(PORTS), r.randrange(65536)])) + r.choice([b"\xec", b"\x66\xed", b"\xed"])
    if pick == 3:
        return mov(3, mmio()) + mov(0, value()) + r.choice([b"\x89\x03", b"\x88\x03", b"\x8b\x03", b"\x66\x89\x03", b"\x0f\x7f\x03", b"\xf0\x0f\xc1\x03",
                                                            b"\x0f\xc7\x0b", b"\x87\x03", b"\xdd\x1b", b"\x0f\xae\x03"])
    if pick == 4:
        return mov(1, r.choice(MSRS + [r.getrandbits(32)])) + edx_eax + r.choice([b"\x0f\x30", b"\x0f\x32"])
    if pick == 5 and r.random() < .2:
        return mov(0, value()) + b"\x0f\x22" + bytes([0xC0 | r.choice([0, 2, 3, 4, 4, 8 & 7]) << 3])
    if pick == 6:
        return mov(0, value()) + b"\x0f\x23" + bytes([0xC0 | r.randrange(8) << 3])
    if pick == 7:
        return mov(3, r.choice([GDT + 24, GDT + 32, LOAD + r.randrange(0x20000)])) + b"\x0f\x01" + bytes([0x03 | r.choice([0, 1, 2, 3, 4, 6, 7]) << 3])
    if pick == 8:
        return mov(0, r.choice([0, 8, 16, 24, r.getrandbits(16)])) + r.choice([b"\x0f\x00\xd0", b"\x0f\x00\xd8", b"\x8e\xd0", b"\x8e\xd8", b"\x8e\xe0", b"\x8e\xc0"])
    if pick == 9:
        return mov(1, 0) + edx_eax + b"\x0f\x01\xd1"
    if pick == 10:
        return r.choice([b"\xfb", b"\xfa", b"\xf4", b"\x9d", b"\xcf", b"\xcb", b"\x0f\x05", b"\x0f\x34", b"\x0f\x07", b"\x0f\x35", b"\xcc", b"\xf1", b"\x0f\x0b",
                         b"\x0f\x01\xf8", b"\x0f\xa2", b"\x0f\x01\xc1", b"\x0f\x01\xd9", b"\x0f\xaa", b"\x0f\x09", b"\x0f\x08"])
    if pick == 11:
        return b"\xcd" + bytes([r.randrange(256)])
    if pick == 12:
        return mov(1, r.choice([1, 7, 4096, 0x7FFFFFFF])) + mov(6, r.choice([LOAD, value(), mmio()])) + mov(7, r.choice([LOAD + r.randrange(0x20000), value(), mmio()])) + \
            r.choice([b"\xf3\xa4", b"\xf3\xa5", b"\xf3\xaa", b"\xf3\xab", b"\xf2\xae", b"\xf3\xa6", b"\xf3\x6c", b"\xf3\x6f", b"\xfd\xf3\xa4"])
    if pick == 13:  # write into this very code
        return mov(7, LOAD + 32 + r.randrange(2048)) + mov(0, value()) + b"\x89\x07"
    if pick == 14:
        return mov(3, value()) + r.choice([b"\x0f\x01\x3b", b"\x0f\xae\x3b", b"\x0f\xc7\x33", b"\x0f\x38\x82\x03"[:4], b"\x66\x0f\x38\x82\x03"])
    if pick == 15 and r.random() < .3:  # a page-table entry
        return mov(7, TABLES + 8 * r.randrange(1024)) + mov(0, value()) + b"\x89\x07" + b"\x0f\x20\xd8\x0f\x22\xd8"
    if pick == 16:
        return mov(4, r.choice([value(), mmio(), TABLES])) + r.choice([b"\x50", b"\x58", b"\x9c", b"\xc8\x10\x00\x1f", b"\xc9"])
    if pick == 17:
        return b"\xff" + bytes([r.choice([0xD3, 0xE3, 0x23, 0x13, 0x1B, 0x2B])]) if r.random() < .3 else b"\x74" + bytes([r.randrange(256)])
    return b"\xc4\xe2" + r.randbytes(6) if long_mode else b"\xea" + u32(LOAD + 32 + r.randrange(2048)) + struct.pack("<H", r.choice([8, 16, 24, r.getrandbits(16)]))


def far_jump(to):
    return b"\xea" + u32(to) + b"\x08\x00"


def wake_others():
    """Copy the trampoline to low memory; INIT and SIPI to all other CPUs."""
    copy = mov(6, TRAMPOLINE) + mov(7, LOW) + mov(1, 128) + b"\xf3\xa4"
    return copy + b"".join(b"\xc7\x05" + u32(0xFEE00300) + u32(icr) for icr in (0xC4500, 0xC4600 | LOW >> 12))


def trampoline(to):
    """16-bit code at LOW, to `to` in the state that Multiboot has."""
    real = b"\xfa\x31\xc0\x8e\xd8\x66\x0f\x01\x16" + struct.pack("<H", LOW + 0x58) + b"\x0f\x20\xc0\x66\x83\xc8\x01\x0f\x22\xc0\x66" + far_jump(LOW + 0x40)
    flat = mov(0, 16) + b"\x8e\xd8\x8e\xc0\x8e\xd0" + mov(0, to) + b"\xff\xe0"
    gdt = struct.pack("<HIH3Q", 23, LOW + 0x60, 0, 0, 0xCF9B000000FFFF, 0xCF93000000FFFF)
    return real.ljust(0x40, b"\x90") + flat.ljust(0x18, b"\x90") + gdt


def start(long_mode):
    """From Multiboot's state to our GDT and IDT, in long mode if asked for, at CODE."""
    code = b"\x0f\x01\x15" + u32(GDT + 24) + b"\x0f\x01\x1d" + u32(GDT + 32)
    if long_mode:  # CR3, CR4.PAE and OSFXSR, EFER.LME, NXE and SCE, CR0.PG
        code += (mov(0, TABLES) + b"\x0f\x22\xd8" + mov(0, 0x620) + b"\x0f\x22\xe0" + mov(1, 0xC0000080) + mov(0, 0x901) + mov(2, 0) + b"\x0f\x30" +
                 mov(0, 0x80000033) + b"\x0f\x22\xc0")
    return code + far_jump(CODE)


def handler(long_mode, pieces):
    """Where every exception, interrupt and piece ends: on a fresh stack, go on with the next piece; after the last, debug-exit."""
    counter, table = u32(COUNTER), u32(PIECES)
    code = mov(0, 16) + b"\x8e\xd8\x8e\xc0\x8e\xd0" + mov(4, STACK)
    code += b"\xff\x04\x25" + counter + b"\x8b\x04\x25" + counter if long_mode else b"\xff\x05" + counter + b"\xa1" + counter
    jump = (b"\xff\x24\xc5" if long_mode else b"\xff\x24\x85") + table
    return code + b"\x3d" + u32(pieces) + b"\x73" + bytes([len(jump)]) + jump + b"\xb0\x07\xe6\xf4\xf4\xeb\xfd"


def gates(long_mode, to):
    low, high = to & 0xFFFF, to >> 16
    gate = struct.pack("<HHBBH", low, 8, 0, 0x8E, high)
    return (gate + bytes(8) if long_mode else gate) * 256


def image(cpus):
    """Pieces of random instructions, each of which falls, or faults, into the handler that starts the next."""
    long_mode = r.random() < .5
    pieces = [b"".join(instruction(long_mode) for _ in range(r.randrange(1, 6))) if r.random() < .9 else r.randbytes(40) for _ in range(200)]
    code = handler(long_mode, len(pieces) + 1)
    at = [CODE]
    for p in pieces:
        at.append(CODE + len(code))
        code += p + b"\xe9" + u32(at[0] - (at[-1] + len(p) + 5))
    body = bytearray(END - LOAD - 32)

    def put(address, data):
        body[address - LOAD - 32:address - LOAD - 32 + len(data)] = data
    wake = wake_others() if cpus > 1 else b""
    put(TRAMPOLINE, trampoline(LOAD + 32 + len(wake)))
    put(LOAD + 32, (wake + start(long_mode)).ljust(START, b"\x90") + code[:TABLES - LOAD - 32 - START])
    put(TABLES, struct.pack("<Q", TABLES + 0x1000 | 7))
    put(TABLES + 0x1000, b"".join(struct.pack("<Q", i << 30 | 0x87) for i in range(4)))
    code_segment = 0xAF9B000000FFFF if long_mode else 0xCF9B000000FFFF
    put(GDT, struct.pack("<3QHIxxHI", 0, code_segment, 0xCF93000000FFFF, 23, GDT, 4095 if long_mode else 2047, IDT))
    put(IDT, gates(long_mode, at[0]))
    put(PIECES, b"".join(struct.pack("<Q" if long_mode else "<I", a) for a in at))
    return multiboot(bytes(body))


def trial(path, cpus):
    """None when all is well, else what is wrong; and how it ended."""
    command = [doppel, "run", "-q", "--engine", engine, "-m", "16M", "--serial", "null", "--no-reboot", "--debug-exit", "--cpus", str(cpus),
               "--kernel", path]
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        err = p.communicate(timeout=RUN_SECONDS)[1]
    except subprocess.TimeoutExpired:
        p.send_signal(signal.SIGTERM)
        try:
            err = p.communicate(timeout=END_SECONDS)[1]
        except subprocess.TimeoutExpired:
            p.kill()
            return f"SIGTERM does not end it\n{p.communicate()[1]}", "hang"
    status = p.returncode
    if "Sanitizer" in err or "runtime error" in err or "does not leave" in err:
        return err, "report"
    if len(err) > 20000:
        return f"{len(err)} bytes of messages", "flood"
    if status in (0, 2, 4, 143) or status & 1 and 0 < status < 125:
        return None, {0: "power-off", 2: "reset", 4: "triple fault", 143: "SIGTERM"}.get(status, "debug-exit")
    if status == 125 and "cannot go on" in err:
        return None, "engine"
    return f"status {status}\n{err}", "status"


def main():
    d = Directory()
    r0 = run(doppel, "run", "-q", "--engine", engine, "--serial", "null", "-m", "16M", "--debug-exit", "--kernel", d.file("probe", guest_exit(1)))
    if r0.returncode != 3:
        skip(f"the {engine} engine does not run here: {r0.stderr.strip()}")
    ends, failures, end = {}, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        cpus = r.choice([1, 1, 2, 3, 4]) if engine == "soft" else 1
        data = image(cpus)
        path = d.file("image", data)
        wrong, how = trial(path, cpus)
        ends[how] = ends.get(how, 0) + 1
        if wrong:
            failures += 1
            kept = f"hostile-{engine}-{seed}-{sum(ends.values())}-cpus{cpus}.img"
            with open(kept, "wb") as f:
                f.write(data)
            print(f"FAILED ({how}), kept as {os.path.abspath(kept)}: {wrong}", flush=True)
            if failures == 10:
                break
    d.remove()
    print(f"{sum(ends.values())} guests, seed {seed}: " + ", ".join(f"{n} {how}" for how, n in sorted(ends.items())))
    sys.exit(1 if failures else 0)


main()
