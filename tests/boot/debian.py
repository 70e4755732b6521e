#!/usr/bin/env python3
"""A whole Debian, from its disk: systemd without a failed unit, ssh in, apt from a repository here, reboot, power-off, a clean disk.

usage: debian.py DOPPEL SOURCE_ROOT ENGINE [CPUS]

Skipped (77) where the image cannot be made or the engine does not run.
"""
import functools
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from debian_image import Ssh, debian_image, free_port  # noqa: E402
from harness import Checks, Directory, auto_engine, skip  # noqa: E402

doppel, root, engine = sys.argv[1:4]
cpus = sys.argv[4] if len(sys.argv) > 4 else "1"
BOOT_SECONDS = 150
TROUBLE = re.compile(r"BUG|WARNING|Oops|Call Trace|panic|general protection|unable to handle|\bstall|lockup|unchecked MSR|nobody cared|"
                     r"spurious|unexpected|segfault|traps:|I/O error|EXT4-fs (error|warning)|hung task|clocksource.*unstable")


class Repository:
    """A Debian repository with one package, served to the guest; files beside it are served too."""

    def __init__(self, d):
        self.top = d / "repo"
        tree = d / "package"
        os.makedirs(tree + "/DEBIAN")
        os.makedirs(tree + "/usr/bin")
        os.makedirs(self.top)
        with open(tree + "/usr/bin/doppel-hello", "w", encoding="ascii") as f:
            f.write("#!/bin/sh\necho hello from a package\n")
        os.chmod(tree + "/usr/bin/doppel-hello", 0o755)
        with open(tree + "/DEBIAN/control", "w", encoding="ascii") as f:
            f.write("Package: doppel-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDepends: libc6\n"
                    "Description: a package for a test\n")
        deb = os.path.join(self.top, "doppel-hello.deb")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, stdout=subprocess.DEVNULL)
        with open(deb, "rb") as f:
            data = f.read()
        with open(tree + "/DEBIAN/control", encoding="ascii") as f:
            control = f.read()
        with open(os.path.join(self.top, "Packages"), "w", encoding="ascii") as f:
            f.write(f"{control}Filename: ./doppel-hello.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n")
        self.blob = os.urandom(20 << 20)
        with open(os.path.join(self.top, "blob"), "wb") as f:
            f.write(self.blob)
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=self.top)
        handler.log_message = None
        http.server.SimpleHTTPRequestHandler.log_message = lambda *a: None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def use(ssh, check, repo):
    status, out = ssh("systemctl is-system-running --wait; systemctl --failed --no-legend", 100)
    check(status is not None and out.strip() == "running", "systemd is running, no unit failed", out)
    _, out = ssh("uname -srm; nproc; findmnt -no SOURCE,FSTYPE,OPTIONS /; getent hosts localhost; cat /proc/sys/kernel/tainted")
    check(f"x86_64 {cpus} /dev/vda1 ext4 rw" in " ".join(out.split()) and out.endswith("\n0\n"), "the system is what it should be", out)
    _, out = ssh(f"echo 'deb [trusted=yes] http://10.0.2.2:{repo.port}/ ./' >/tmp/list; o='-q -y -o Dir::Etc::sourcelist=/tmp/list "
                 "-o Dir::Etc::sourceparts=-'; apt-get $o update && apt-get $o install doppel-hello && doppel-hello", 100)
    check(out.endswith("hello from a package\n"), "apt installs a package from a repository of the host", out[-1500:])
    _, out = ssh(f"/usr/lib/apt/apt-helper download-file http://10.0.2.2:{repo.port}/blob /root/blob >/dev/null && sync && "
                 "echo 3 >/proc/sys/vm/drop_caches && sha256sum /root/blob", 100)
    check(hashlib.sha256(repo.blob).hexdigest() in out, "20 MiB from the host to the disk and back", out)
    data = os.urandom(4 << 20)
    _, out = ssh("sha256sum", 60, data)
    check(hashlib.sha256(data).hexdigest() in out, "4 MiB by ssh", out)
    _, out = ssh("dmesg --level emerg,alert,crit,err; dmesg")
    trouble = [line for line in out.splitlines() if TROUBLE.search(line)]
    check(len(out) > 5000 and not trouble, "dmesg has no trouble", "\n".join(trouble))


def reboot(ssh, check, p, d):
    before = ssh("cat /proc/sys/kernel/random/boot_id")[1]
    ssh("systemctl reboot")
    end = time.monotonic() + BOOT_SECONDS
    after = before
    while after == before and p.poll() is None and time.monotonic() < end:
        status, out = ssh("cat /proc/sys/kernel/random/boot_id", 20)
        after = before if status else out
        time.sleep(0.2)
    check(after != before and ssh("doppel-hello")[1] == "hello from a package\n", "reboot: it comes again, with what was installed",
          tail(d / "serial"))


def check_disk(check, d, overlay, image):
    p = subprocess.run(["qemu-img", "check", overlay], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    check(p.returncode == 0, "qemu-img finds nothing wrong with the overlay", p.stdout.decode())
    subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, d / "disk.raw"], check=True)
    with open(d / "disk.raw", "rb") as disk, open(d / "part.raw", "wb") as part:
        disk.seek(4 << 20)
        while True:
            data = disk.read(1 << 20)
            if not data:
                break
            part.seek(len(data), os.SEEK_CUR) if not any(data) else part.write(data)
        part.truncate()
    env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    p = subprocess.run(["e2fsck", "-fn", d / "part.raw"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=env)
    check(p.returncode == 0, "e2fsck finds nothing wrong with the file system", p.stdout.decode())


def main():
    check = Checks()
    d = Directory()
    try:
        if engine == "kvm" and auto_engine(doppel, d) != "kvm":
            skip("KVM does not work here or is no hardware virtualization (see doppel doctor)")
        image, why = debian_image(root)
        if not image:
            skip(why)
        repo = Repository(d)
        overlay, port = d / "overlay.qcow2", free_port()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay], check=True)
        ssh = Ssh(image, port)
        with open(d / "console", "wb") as console:
            p = subprocess.Popen([doppel, "run", f"{overlay},backing={image}", "--engine", engine, "--cpus", cpus, "-m", "768M", "--serial",
                                  "file:" + d / "serial", "--net", f"user,hostfwd=tcp:127.0.0.1:{port}:22"], stdin=subprocess.DEVNULL,
                                 stdout=console, stderr=subprocess.STDOUT)
        try:
            took = ssh.wait(BOOT_SECONDS, lambda: p.poll() is None)
            if check(took is not None, "ssh answers", tail(d / "console") + tail(d / "serial")):
                print(f"note: ssh answered after {took:.1f} s")
                use(ssh, check, repo)
                reboot(ssh, check, p, d)
                ssh("systemctl poweroff")
                try:
                    status = p.wait(60)
                except subprocess.TimeoutExpired:
                    status = "none: it did not end"
                check(status == 0, "poweroff ends the run with status 0", f"{status}\n" + tail(d / "console") + tail(d / "serial"))
        finally:
            p.kill()
            p.wait()
        with open(d / "console", encoding="utf-8", errors="replace") as f:
            check(f.read().count("boots 'Debian GNU/Linux' of partition 1 (ext4): /boot/vmlinuz-") == 2, "it says what it boots, each time")
        check_disk(check, d, overlay, image)
    finally:
        d.remove()
    check.finish()


def tail(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()[-2500:]


main()
