#!/usr/bin/env python3
"""Make the guest image of the benchmark: Debian's binaries with their libraries, the programs and inputs of bench/guest, an /init.

usage: bench/guest/image.py [--quick] [--force]

Prints a directory that holds `root/` (the tree itself, in which the native runs are made), `initrd` (the same as a cpio archive) and
`packages` (versions). Kept in ${DOPPEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/doppel}/bench-*; made anew when a source or a
package changed. --quick: a small image for the jobs of the test only.
"""
import argparse
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jobs

HERE = pathlib.Path(__file__).resolve().parent
WHERE = ("/usr/bin", "/bin", "/usr/sbin", "/sbin")  # not PATH: Debian's own binaries
# What a binary needs beside shared libraries: package -> which of its files.
DATA = {
    "perl": {"perl-base": r"/usr/lib/.*/perl-base/"},
    "python3": {"libpython3.11-minimal": r"/usr/lib/python3\.11/"},
}
PACKAGES = ("libc-bin coreutils dash grep sed mawk gawk perl-base python3-minimal gcc binutils openssl xz-utils bzip2 zstd gzip lua5.4 sqlite3 "
            "vorbis-tools lame flac vpx-tools webp bc busybox-static libstb-dev libc6-dev cpio util-linux").split()
INIT = """#!/bench/busybox sh
/bench/busybox echo "doppel: init reached"
/bench/busybox mount -t devtmpfs dev /dev
/bench/busybox mount -t proc proc /proc
/bench/busybox mount -t sysfs sys /sys
/bench/busybox mount -t tmpfs tmp /tmp
/bench/driver
/bench/busybox poweroff -f
"""


class Missing(Exception):
    pass


def find(name):
    for path in [name] if name.startswith("/") else [f"{d}/{name}" for d in WHERE]:
        if os.access(path, os.X_OK):
            return path
    raise Missing(name)


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def libraries(binary):
    """Paths of shared libraries and of the dynamic linker; none for a static binary."""
    p = subprocess.run(["ldd", binary], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return re.findall(r"(/\S+) \(0x", p.stdout) if p.returncode == 0 else []


def place(root, path, source=None):
    """Copy a host file to its own path below root."""
    to = root / path.lstrip("/")
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source or path, to)


def place_data(root, package, pattern):
    for path in output("dpkg", "-L", package).splitlines():
        if re.match(pattern, path) and os.path.isfile(path):
            place(root, path)
            d, name = os.path.split(path)
            cached = f"{d}/__pycache__/{name[:-3]}.cpython-311.pyc"  # made when the package was installed
            if name.endswith(".py") and os.path.exists(cached):
                place(root, cached)


def place_headers(root, source):
    for path in output("gcc", "-M", source).replace("\\\n", " ").split()[1:]:
        if path.startswith("/usr/"):
            place(root, os.path.normpath(path))


def corpus(root):
    """Text and binary data out of packages that are in the image anyway."""
    text = b"".join(p.read_bytes() for p in sorted((root / "usr/lib").rglob("*.p[ym]")))
    to = root / "in"
    (to / "text").write_bytes(text[:8 << 20])
    (to / "binary").write_bytes(pathlib.Path(find("/usr/lib/gcc/x86_64-linux-gnu/12/cc1")).read_bytes()[4 << 20:20 << 20])
    words = sorted(set(re.findall(rb"[A-Za-z]{3,}", text)))
    (to / "words").write_bytes(b"\n".join(words[::max(1, len(words) // 20000)]) + b"\n")
    state, lines = 1, []
    for _ in range(500000):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        lines.append(words[(state >> 33) % len(words)] + b" %d" % (state >> 40) + b"\n")
    (to / "lines").write_bytes(b"".join(lines))


def compile_input(root, work):
    source = work / "compile.c"
    source.write_text("#define STB_IMAGE_IMPLEMENTATION\n#include <stb/stb_image.h>\n")
    subprocess.run(["gcc", "-E", "-o", root / "in/compile.i", source], check=True)


def build(source, to, *options):
    subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-static", "-pthread", "-o", to, source, *options], check=True)


def make(root, work, chosen, quick):
    for d in "usr/bin usr/sbin usr/lib usr/lib64 dev proc sys tmp in bench".split():
        (root / d).mkdir(parents=True)
    for d in "bin", "sbin", "lib", "lib64":
        (root / d).symlink_to("usr/" + d)
    binaries = {"sh"}.union(*(j.binaries for j in chosen))
    for name in sorted(binaries):
        path = find(name)
        place(root, path)
        for library in libraries(path):
            place(root, library)
        for package, pattern in DATA.get(name, {}).items():
            place_data(root, package, pattern)
    place(root, "/bench/busybox", find("busybox"))
    for name in "driver", "micro":
        build(HERE / f"{name}.c", root / "bench" / name)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    if quick:
        return
    for path in (HERE / "inputs").iterdir():
        if path.name != "inputs.c":
            shutil.copy2(path, root / "in" / path.name)
    place_headers(root, root / "in/hello.c")
    corpus(root)
    compile_input(root, work)
    build(HERE / "inputs/inputs.c", work / "inputs", "-lm")
    subprocess.run([work / "inputs", root / "in"], check=True)


def pack(root, to):
    names = "\0".join(sorted(str(p.relative_to(root)) for p in root.rglob("*"))).encode()
    with open(to, "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-0", "-H", "newc", "-R", "0:0"], cwd=root, input=names, stdout=f, check=True)


def versions():
    shown = output("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n")
    have = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.endswith(" installed")}
    return {p: have.get(p) for p in PACKAGES}


def key(quick, packages):
    """What the image depends on."""
    h = hashlib.sha256(repr((quick, packages, sorted({b for j in jobs.JOBS for b in j.binaries}))).encode())
    for path in sorted([HERE / "image.py", HERE / "driver.c", HERE / "micro.c", *(HERE / "inputs").iterdir()]):
        h.update(path.read_bytes())
    return h.hexdigest()


def cache():
    default = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", "/tmp"), ".cache")
    return pathlib.Path(os.environ.get("DOPPEL_CACHE") or os.path.join(default, "doppel"))


def image(quick=False, force=False):
    """The image's directory, made when it is not there. Raises Missing with a hint."""
    packages = versions()
    if not quick and (missing := [p for p, v in packages.items() if not v]):
        raise Missing("packages are missing: apt-get install --no-install-recommends " + " ".join(missing))
    wanted, kind = key(quick, packages), "bench-quick" if quick else "bench-guest"
    where = cache() / f"{kind}-{wanted[:8]}"
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if where.exists() and not force:
            os.utime(where)
            return where
        # Another run may be using another version: what was used today stays.
        for path in [where] + [p for p in cache().glob(f"{kind}-*") if time.time() - p.stat().st_mtime > 86400]:
            shutil.rmtree(path, ignore_errors=True)
        print(f"image: making {where}", file=sys.stderr, flush=True)
        new = cache() / f"{kind}.new"
        shutil.rmtree(new, ignore_errors=True)
        (new / "work").mkdir(parents=True)
        make(new / "root", new / "work", jobs.QUICK if quick else jobs.JOBS, quick)
        shutil.rmtree(new / "work")
        pack(new / "root", new / "initrd")
        (new / "packages").write_text("".join(f"{p} {v}\n" for p, v in packages.items()))
        new.rename(where)
    return where


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--force", action="store_true", help="make it anew even if nothing changed")
    a = p.parse_args()
    try:
        print(image(a.quick, a.force))
    except Missing as e:
        sys.exit(f"image: {e}")


if __name__ == "__main__":
    main()
