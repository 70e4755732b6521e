#!/usr/bin/env python3
"""Linux' 9p client as judge of --share: the same random operations in the share and in the guest's tmpfs, whole trees compared in the guest, and
what the guest saw with what the host sees.

usage: share.py DOPPEL SOURCE_ROOT ENGINE FSLOAD
"""
import hashlib
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from harness import Checks, Directory, auto_engine, kernel_directory, one_line_error, run, skip  # noqa: E402

doppel, root, engine, fsload = sys.argv[1:]
OPERATIONS = 4000

SCRIPT = f"""
mkdir -p /mnt /ro /tmp/ref1 /tmp/ref2
mount -t tmpfs t /tmp/ref1; mount -t tmpfs t /tmp/ref2
mount -t 9p -o trans=virtio,version=9p2000.L,msize=500000 share /mnt && echo MOUNTED
echo "from the guest" >/mnt/new; cat /mnt/from-host; mkdir /mnt/1 /mnt/2
fsload /mnt/1 /tmp/ref1 1 {OPERATIONS}
(exec 3>/mnt/gone; rm /mnt/gone; echo text >&3; cat /proc/self/fd/3 | sed 's/^/unlinked: /')
cat /mnt/escape 2>&1 | sed 's/^/escape: /'
umount /mnt
mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=8192 share /mnt && echo AGAIN
fsload /mnt/2 /tmp/ref2 2 {OPERATIONS} mmap
chmod 640 /mnt/new; df /mnt | tail -1 | sed 's/^/df: /'
(cd /mnt && find . -type f ! -name doppel.pid -exec sha256sum '{{}}' '+' | sed 's/^/file: /')
mount -t 9p -o trans=virtio,version=9p2000.L readonly /ro && echo READONLY
cat /ro/new; echo x >/ro/new || echo REFUSED; rm /ro/new || echo REFUSED; touch /ro/more || echo REFUSED
echo END
"""


def main():
    check = Checks()
    d = Directory()
    if engine == "kvm" and auto_engine(doppel, d) != "kvm":
        skip("KVM does not work here or is no hardware virtualization (see doppel doctor)")
    where = kernel_directory("generic")
    if not where or not os.path.exists(os.path.join(where, "modules/9p.ko")):
        skip("no kernel package with the 9p module")
    script, share = d.file("script", SCRIPT.encode()), d / "share"
    subprocess.run([os.path.join(root, "tools/make-initramfs"), "--program", fsload, "--modules", "9p 9pnet_virtio", d / "initrd.gz", where, script], check=True)
    os.mkdir(share)
    d.file("share/from-host", b"from the host\n")
    d.file("secret", b"outside\n")
    os.symlink("../secret", share + "/escape")
    r = run(doppel, "run", "-q", "--engine", engine, "--kernel", os.path.join(where, "vmlinuz"), "--initrd", d / "initrd.gz", "--append", "console=ttyS0 quiet",
            "--share", share + ":share", "--share", share + ":readonly,ro", timeout=200)
    out = r.stdout.replace("\r", "")
    check(r.returncode == 0 and "MOUNTED" in out and "AGAIN" in out and "END" in out, "it mounts, and the guest runs to the end", out[-3000:] + r.stderr)
    check("from the host\n" in out, "the guest reads what the host wrote")
    check(len(re.findall(r"fsload: \d+ operations agree", out)) == 2, f"{OPERATIONS} random operations agree with tmpfs, without and with mapped files", out[-3000:])
    check("unlinked: text" in out, "a removed file lives as long as it is open", out[-2000:])
    check("escape: cat" in out and "outside" not in out, "a link to the outside leads nowhere", out[-2000:])
    check("df: share" in out, "statfs")
    check("READONLY" in out and out.count("REFUSED") == 3, "a read-only share refuses writes", out[-1500:])
    seen = dict((name, digest) for digest, name in re.findall(r"^file: ([0-9a-f]{64})  \./(.*)$", out, re.M))
    mine = {}
    for path, _, files in os.walk(share):
        for f in files:
            p = os.path.join(path, f)
            if os.path.isfile(p) and not os.path.islink(p):
                with open(p, "rb") as data:
                    mine[os.path.relpath(p, share)] = hashlib.sha256(data.read()).hexdigest()
    check(len(mine) > 20 and seen == mine, f"the host sees the same {len(mine)} files", f"{set(seen.items()) ^ set(mine.items())}")
    check(open(share + "/new").read() == "from the guest\n" and os.stat(share + "/new").st_mode & 0o777 == 0o640, "what the guest wrote, and its mode")
    for bad, words in (("nodir", "tag"), (d / "missing" + ":t", "missing"), (d / "secret" + ":t", "secret"), ("/proc:t", "/proc"), (share + ":", "tag"), (share + ":a b", "tag"),
                       (share + ":" + "x" * 32, "tag"), (share + ":t,rw", "option")):
        one_line_error(check, run(doppel, "run", "--kernel", os.path.join(where, "vmlinuz"), "--engine", "soft", "--share", bad), words)
    one_line_error(check, run(doppel, "run", "--kernel", os.path.join(where, "vmlinuz"), "--engine", "soft", "--share", share + ":t", "--share", share + ":t"), "tag")
    d.remove()
    check.finish()


main()
