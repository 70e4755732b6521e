#!/usr/bin/env python3
"""How a run ends: every documented exit status, the terminal given back, under each engine that runs here.

usage: endings.py DOPPEL
"""
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

from harness import (Checks, Directory, HANG, SPIN, guest_exit, guest_print, guest_reset, guest_reset_loop,
                     multiboot, TRIPLE_FAULT, run, skip, usable_engines, wait_for)

RESETS = 10000

doppel = sys.argv[1]
check = Checks()
d = Directory()


def start(engine, kernel, *args, **kw):
    return subprocess.Popen([doppel, "run", "--engine", engine, "-m", "16M", "--kernel", kernel, *args], **kw)


def by_the_guest(engine):
    def status(name, image, *args):
        return run(doppel, "run", "-q", "--engine", engine, "-m", "16M", "--serial", "stdio", "--kernel", d.file(name, image), *args)

    for v in 0, 1, 16, 127, 128, 255:
        r = status("exit", guest_exit(v), "--debug-exit")
        check(r.returncode == ((v << 1) | 1) & 0xFF and not r.stderr, f"{engine}: debug-exit {v}", f"{r.returncode}\n{r.stderr}")
    r = status("exit-port", guest_exit(3).replace(b"\xf4\x00", b"\x01\x05"), "--debug-exit=0x501")
    check(r.returncode == 7, f"{engine}: debug-exit at another port", f"{r.returncode}\n{r.stderr}")
    r = status("reset", guest_reset(), "--no-reboot")
    check(r.returncode == 2, f"{engine}: reset with --no-reboot", f"{r.returncode}\n{r.stderr}")
    r = status("triple", multiboot(TRIPLE_FAULT))
    check(r.returncode == 4 and "triple fault" in r.stderr and "rip" in r.stderr and "cr0" in r.stderr,
          f"{engine}: triple fault with a register dump", f"{r.returncode}\n{r.stderr}")
    r = status("print", guest_print(b"hello, world\n", guest_exit(0)[32:]), "--debug-exit")
    check(r.returncode == 1 and r.stdout.replace("\r", "") == "hello, world\n", f"{engine}: serial output", repr(r.stdout) + r.stderr)


def by_signals(engine):
    for name, code in ("halted", HANG), ("spinning", SPIN):
        for sig in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            p = start(engine, d.file(name, guest_print(b"up", code)), "--serial", "stdio", stdin=subprocess.DEVNULL,
                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            p.stdout.read(2)
            p.send_signal(sig)
            check(p.wait(20) == 128 + sig, f"{engine}: {sig.name} ends a {name} guest", p.returncode)


def by_escape(engine):
    """On a terminal: ^] ends the run, ^C goes to the guest, and the terminal is as before, also after a signal or a triple fault."""
    for name, image, act, want in (
            ("escape", guest_print(b"up", HANG), lambda m, p: os.write(m, b"\x1d"), 6),
            ("escape-spin", guest_print(b"up", SPIN), lambda m, p: os.write(m, b"\x03\x1d"), 6),
            ("term", guest_print(b"up", HANG), lambda m, p: p.send_signal(signal.SIGTERM), 143),
            ("triple", guest_print(b"up", TRIPLE_FAULT), lambda m, p: None, 4)):
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        p = start(engine, d.file(name, image), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                  preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0))
        seen = b""
        while not seen.endswith(b"up") and b"triple" not in seen and select.select([master], [], [], 20)[0]:
            seen += os.read(master, 1000)
        raw = termios.tcgetattr(slave)
        act(master, p)
        status = p.wait(20)
        time.sleep(0.05)
        os.set_blocking(master, False)
        try:
            seen += os.read(master, 10000)
        except BlockingIOError:
            pass
        check(status == want, f"{engine}: on a terminal, {name}", f"status {status}\n{seen.decode(errors='replace')}")
        check(want == 4 or not raw[3] & termios.ICANON, f"{engine}: {name}: raw while running")
        check(termios.tcgetattr(slave) == before, f"{engine}: {name}: terminal restored")
        check(b"^]" in seen, f"{engine}: {name}: the way out is shown at start", seen)
        os.close(master)
        os.close(slave)


def reset_loop(engine):
    """A guest that resets itself: defined end, no descriptors or memory lost on the way."""
    def resources(pid):
        with open(f"/proc/{pid}/statm") as f:
            return len(os.listdir(f"/proc/{pid}/fd")), int(f.read().split()[1])

    p = start(engine, d.file("loop", guest_reset_loop(RESETS)), "-q", "--debug-exit", "--serial", "null", stdin=subprocess.DEVNULL,
              stderr=subprocess.PIPE, text=True)
    samples, sanitized = [], False
    end = time.monotonic() + 120
    while p.poll() is None and time.monotonic() < end:
        try:
            samples.append(resources(p.pid))
            if len(samples) == 5:
                with open(f"/proc/{p.pid}/maps") as f:
                    sanitized = "libasan" in f.read()  # keeps freed memory for a while
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            break
        time.sleep(0.02)
    if p.poll() is None:
        p.kill()
    err = p.communicate()[1]
    check(p.returncode == 43, f"{engine}: {RESETS} resets in a row", f"status {p.returncode}\n{err}")
    early, late = samples[len(samples) // 4], samples[-2 if len(samples) > 1 else -1]
    check(late[0] <= early[0] and (sanitized or late[1] <= early[1] + 512), f"{engine}: resets lose neither descriptors nor memory (descriptors, pages)",
          f"{early} -> {late}")


def shown():
    r = run(doppel, "version")
    check(r.returncode == 0 and r.stdout.startswith("doppel ") and not r.stderr, "version")
    for args in ("help",), ("--help",), ("run", "--help"):
        r = run(doppel, *args)
        check(r.returncode == 0 and "usage: doppel" in r.stdout and not r.stderr, " ".join(args), r.stdout + r.stderr)
    r = run(doppel, "run", "--kernel", d.file("one", guest_exit(1)), "--debug-exit", "-m", "16M")
    check(r.stderr.startswith("doppel: engine "), "a run says which engine it took, and why", r.stderr)


engines = usable_engines(doppel, d)
if not engines:
    skip("no engine runs here")
shown()
for e in engines:
    for group in by_the_guest, by_signals, by_escape, reset_loop:
        print(f"# {group.__name__} {e}")
        group(e)
d.remove()
check.finish()
