"""What a benchmark ran on, and what a VMM's process holds."""
import os
import pathlib
import platform
import re
import subprocess

# Mappings that hold the guest's RAM and translated code: not the VMM's own memory.
RAM = re.compile(r"memfd:(doppel-ram|guest-ram)")
CODE = re.compile(r"memfd:doppel-code")


def host():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    return f"{model.group(1) if model else 'unknown CPU'}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def qemu():
    return subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]


def cloud_kernel(root):
    """The directory of Debian's cloud kernel, fetched when it is not there."""
    return pathlib.Path(subprocess.run([root / "tools/fetch-kernel", "cloud"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def package(kernel):
    return (kernel / "package").read_text().strip()


def resident(pid):
    """KiB resident, by kind of mapping. RAM and code are mapped more than once: their largest mapping counts."""
    kib = {"ram": 0, "code": 0, "own": 0}
    kind = "own"
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
            kind = "ram" if RAM.search(name) else "code" if CODE.search(name) else "own"
        elif line.startswith("Rss:"):
            size = int(line.split()[1])
            kib[kind] = kib[kind] + size if kind == "own" else max(kib[kind], size)
    return kib
