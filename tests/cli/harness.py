"""What the drivers of tests/cli and tests/boot share: tiny Multiboot guests, running doppel, counting checks."""
import os
import struct
import subprocess
import sys
import tempfile
import time

SKIP = 77
LOAD = 0x100000


def multiboot(code):
    """A Multiboot 1 image (address fields in the header, loaded at 1 MiB) whose 32-bit entry is `code`."""
    magic, flags = 0x1BADB002, 0x10000
    header = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, LOAD, LOAD, 0, 0, LOAD + 32)
    return header + code


def out8(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


HANG = b"\xfa\xf4\xeb\xfd"  # cli; 1: hlt; jmp 1b
SPIN = b"\xeb\xfe"


def guest_exit(value):
    return multiboot(out8(0xF4, value) + HANG)


def guest_print(text, then):
    return multiboot(b"".join(out8(0x3F8, c) for c in text) + then)


def guest_reset():
    return multiboot(out8(0xCF9, 6) + HANG)


# mov esp, 0x200000; push 0; push 0; lidt [esp]; ud2: an exception without an IDT
TRIPLE_FAULT = b"\xbc\x00\x00\x20\x00\x6a\x00\x6a\x00\x0f\x01\x1c\x24\x0f\x0b"


def guest_reset_loop(count, counter=0x300000):
    """Resets until the dword at `counter`, which lies outside the image, has reached `count`."""
    inc = b"\xff\x05" + struct.pack("<I", counter)
    cmp = b"\x81\x3d" + struct.pack("<II", counter, count)
    reset = out8(0xCF9, 6) + HANG
    return multiboot(inc + cmp + b"\x73" + bytes([len(reset)]) + reset + out8(0xF4, 21) + HANG)


class Checks:
    """Counts what was checked; prints failures at once."""

    def __init__(self):
        self.passed = self.failed = 0

    def __call__(self, ok, what, detail=""):
        if ok:
            self.passed += 1
            print(f"ok: {what}")
        else:
            self.failed += 1
            print(f"FAILED: {what}\n{detail}")
        sys.stdout.flush()
        return ok

    def finish(self):
        print(f"{self.passed} checks passed, {self.failed} failed")
        sys.exit(1 if self.failed else 0)


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIP)


def run(doppel, *args, timeout=60, **kw):
    return subprocess.run([doppel, *args], capture_output=True, text=True, errors="replace", timeout=timeout,
                          stdin=subprocess.DEVNULL, **kw)


def usable_engines(doppel, directory):
    """The engines that run here; prints why one does not."""
    guest = directory.file("probe.elf", guest_exit(1))
    usable = []
    for engine in "soft", "kvm":
        r = run(doppel, "run", "-q", "--kernel", guest, "-m", "16M", "--engine", engine, "--debug-exit", "--serial", "null")
        if r.returncode == 125 and "cannot run here" in r.stderr:
            print(f"no {engine} engine: {r.stderr.strip()}")
        else:
            usable.append(engine)
    return usable


def auto_engine(doppel, directory):
    """The engine that auto takes."""
    guest = directory.file("probe.elf", guest_exit(1))
    r = run(doppel, "run", "--kernel", guest, "-m", "16M", "--debug-exit", "--serial", "null")
    return "kvm" if "doppel: engine kvm" in r.stderr else "soft"


def one_line_error(check, r, *words):
    """r failed by our own fault: status 125 and one line that names the reason and, in parentheses, a way out."""
    lines = r.stderr.splitlines()
    ok = (r.returncode == 125 and len(lines) == 1 and lines[0].startswith("doppel: ") and lines[0].endswith(")")
          and "(" in lines[0] and all(w in lines[0] for w in words))
    shown = " ".join(os.path.basename(a) if "/" in a else a for a in r.args[1:])
    check(ok, f"one-line error: {shown[:100]}", f"status {r.returncode}, wanted 125 and {words}\n{r.stderr}{r.stdout}")


def kernel_directory(kind):
    """Where the Debian kernel package is unpacked; None when it cannot be fetched."""
    tool = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "fetch-kernel")
    r = subprocess.run([tool, kind], stdout=subprocess.PIPE, text=True)
    return r.stdout.strip() if r.returncode == 0 else None


class Directory:
    """A temporary directory that an unprivileged user can read."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="doppel-test.")
        os.chmod(self.path, 0o755)

    def file(self, name, data):
        path = os.path.join(self.path, name)
        with open(path, "wb") as f:
            f.write(data)
        os.chmod(path, 0o644)
        return path

    def __truediv__(self, name):
        return os.path.join(self.path, name)

    def remove(self):
        import shutil
        shutil.rmtree(self.path, ignore_errors=True)


def wait_for(what, seconds):
    """Poll what() until it is true; its last value."""
    end = time.monotonic() + seconds
    while True:
        value = what()
        if value or time.monotonic() > end:
            return value
        time.sleep(0.02)
