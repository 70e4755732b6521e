#!/usr/bin/env python3
"""Linux' vsock as judge of --vsock: streams both ways through an echo at the other end, refusals, many at once, a guest that reboots.

usage: vsock.py DOPPEL SOURCE_ROOT ENGINE VSOCKLOAD
"""
import os
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from harness import Checks, Directory, auto_engine, kernel_directory, one_line_error, run, skip, wait_for  # noqa: E402

doppel, root, engine, load = sys.argv[1:]
check = Checks()
d = Directory()
path = d / "v.sock"

SCRIPT = b"""
if [ -z "$(cat /sys/class/misc/vsock/dev 2>/dev/null)" ]; then echo NO VSOCK; fi
vsockload connect 1000 5000000
vsockload connect 1000 1
vsockload many 1000 100
vsockload refused 2000
vsockload listen 77 6 &
wait
dmesg | grep -i -E 'BUG|WARNING|Oops|vsock.*(error|fail)'
echo END
"""


def echo_server(port):
    s = socket.socket(socket.AF_UNIX)
    s.bind(f"{path}_{port}")
    s.listen(128)

    def serve(c):
        with c:
            while data := c.recv(65536):
                c.sendall(data)

    def accept():
        while True:
            threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def dial(line):
    """What comes back for a first line, and the connection."""
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    while True:
        try:
            s.connect(path)
            break
        except BlockingIOError:  # as many wait already as the system keeps
            time.sleep(0.01)
    s.sendall(line)
    reply = b""
    try:
        while not reply.endswith(b"\n"):
            more = s.recv(1)
            if not more:
                return None, s
            reply += more
    except ConnectionResetError:
        return None, s
    return reply.decode(), s


def through_echo(n):
    reply, s = dial(b"CONNECT 77\n")
    data = bytes(i * 13 & 0xFF for i in range(n % 4096)) + os.urandom(n - n % 4096)
    threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)), daemon=True).start()
    got = b""
    while more := s.recv(65536):
        got += more
    return bool(reply and reply.startswith("OK ") and int(reply[3:]) >= 1 << 30 and got == data)


if engine == "kvm" and auto_engine(doppel, d) != "kvm":
    skip("KVM does not work here or is no hardware virtualization (see doppel doctor)")
where = kernel_directory("cloud")
if not where or not os.path.exists(os.path.join(where, "modules/vmw_vsock_virtio_transport.ko")):
    skip("no kernel package with the vsock module")
subprocess.run([os.path.join(root, "tools/make-initramfs"), "--program", load, "--modules", "vmw_vsock_virtio_transport", d / "initrd.gz", where,
                d.file("script", SCRIPT)], check=True)
echo_server(1000)
kernel = os.path.join(where, "vmlinuz")
out = open(d / "out", "wb")
p = subprocess.Popen([doppel, "run", "-q", "--engine", engine, "--kernel", kernel, "--initrd", d / "initrd.gz", "--append", "console=ttyS0 quiet",
                      "--vsock=5,uds=" + path], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)


def text():
    return open(d / "out", "rb").read().decode(errors="replace").replace("\r", "")


try:
    check(wait_for(lambda: "listening" in text() or p.poll() is not None, 120) and "listening" in text(), "the guest gets as far as to listen", text()[-2000:]) or check.finish()
    check("vsockload: 5000000 bytes there and back" in text() and "vsockload: 1 bytes there and back" in text(), "guest to host: 5 MB through an echo", text()[-2000:])
    check("vsockload: many" in text(), "100 connections at the same time")
    check("vsockload: refused: Connection reset by peer" in text(), "a port where nobody listens")
    for bad in b"CONNECT\n", b"CONNECT x\n", b"CONNECT 99999999999\n", b"connect 77\n", b"CONNECT 77 \n", b"\n", b"x" * 100, b"CONNECT 78\n":
        check(dial(bad)[0] is None, f"refused: {bad[:20]}")
    dial(b"CONNECT 77\n")[1].close()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(300)]
    for s in silent:
        try:
            s.settimeout(5)
            s.connect(path)
        except OSError:
            pass
    check(through_echo(3000000), "host to guest: 3 MB through an echo, beside 300 that say nothing")
    check(through_echo(1) and through_echo(0), "one byte, and none")
    for s in silent:
        s.close()
    for _ in range(2):
        reply, s = dial(b"CONNECT 77\n")
        s.sendall(b"half")
        s.close()
    check(p.wait(60) == 0 and "vsockload: served" in text() and "END" in text(), "the guest saw each connection end", text()[-2000:])
    check("BUG" not in text() and "WARNING" not in text() and "FAILED" not in text(), "no trouble", text()[-2000:])
    check(not os.path.exists(path), "the socket is removed at the end")
finally:
    p.kill()
    p.wait()
for value, word in ("2", "CID"), ("x", "CID"), ("4294967295", "CID"), ("5,path=x", "option"), ("5,uds=", "option"), (",uds=" + d / "no/such/x", "No such file"), \
        (",uds=" + d.file("taken", b""), "taken"), (",uds=/" + "x" * 200, "long"):
    one_line_error(check, run(doppel, "run", "--kernel", kernel, "--engine", "soft", "--vsock=" + value), word)
d.remove()
check.finish()
