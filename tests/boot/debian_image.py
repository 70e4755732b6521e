"""A Debian image for tests and benchmarks: made once by tools/make-debian-image, kept in doppel's cache; ssh into its guests."""
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time


def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.environ.get("DOPPEL_CACHE") or os.path.join(base, "doppel"), "debian")


def debian_image(root):
    """Path of the image; its key is beside it (.key). (None, why) when it cannot be made here. Nobody may write to it."""
    tool = os.path.join(root, "tools/make-debian-image")
    with open(tool, "rb") as f:
        name = "image-" + hashlib.sha256(f.read()).hexdigest()[:12] + ".qcow2"
    path = os.path.join(cache_directory(), name)
    for need in "mmdebstrap", "mke2fs", "sfdisk", "ssh", "qemu-img":
        if not shutil.which(need, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            return None, f"no {need} (tools/setup installs it)"
    os.makedirs(cache_directory(), exist_ok=True)
    with open(os.path.join(cache_directory(), "image.lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            return path, None
        for old in os.listdir(cache_directory()):
            if old.startswith("image-"):
                os.remove(os.path.join(cache_directory(), old))
        p = subprocess.run([tool, "--autologin", path], stdout=sys.stderr, check=False)
        return (path, None) if p.returncode == 0 else (None, "tools/make-debian-image failed: root or unshare, and a network?")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Ssh:
    """Root's shell in a guest whose port 22 is `port` here."""

    def __init__(self, image, port):
        self.command = ["ssh", "-q", "-i", image + ".key", "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
                        "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=10", "root@127.0.0.1"]

    def __call__(self, command, seconds=60, data=None):
        """(status, output with errors); status None: no answer in time."""
        try:
            p = subprocess.run([*self.command, command], input=data, stdin=None if data else subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as e:
            return None, (e.stdout or b"").decode(errors="replace")
        return p.returncode, p.stdout.decode(errors="replace")

    def wait(self, seconds, alive):
        """Seconds until it answered, or None. alive(): is the guest still there?"""
        start = time.monotonic()
        while time.monotonic() - start < seconds and alive():
            if self("true", 20)[0] == 0:
                return time.monotonic() - start
            time.sleep(0.1)
        return None
