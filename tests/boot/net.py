#!/usr/bin/env python3
"""Networks as an unmodified Debian kernel and its virtio_net driver use them.

usage: net.py DOPPEL SOURCE_ROOT ENGINE NETWORK     NETWORK: user, link or tap

Skipped (77) where the kernel cannot be fetched, the engine does not run, or (tap) without root and /dev/net/tun. tap runs in a network
namespace of its own.
"""
import contextlib
import hashlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from guest import PROMPT, TROUBLE, Guest  # noqa: E402
from harness import Checks, Directory, auto_engine, kernel_directory, skip  # noqa: E402

doppel, root, engine, network = sys.argv[1:]
BOOT_SECONDS = 120
SIZE = 24 << 20
DHCP = r"""printf '%s\n' '#!/bin/sh' '[ "$1" = bound ] && { ip addr add $ip/$mask dev $interface; echo "router $router dns $dns"; }' \
'[ -n "$NOROUTE" ] || ip route add default via $router' 'true' > /tmp/lease; chmod +x /tmp/lease"""


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Files(http.server.ThreadingHTTPServer):
    """Serves one file under every name, and keeps what is sent to it."""
    daemon_threads = True

    def __init__(self, address, data):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            def log_message(self, *args):
                pass
        super().__init__((address, 0), Handler)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


def receive(address):
    """A port that takes one connection, and a function that waits for its end and returns what came."""
    s = socket.create_server((address, 0))
    s.settimeout(60)
    got = bytearray()

    def take():
        with contextlib.suppress(OSError):
            c = s.accept()[0]
            c.settimeout(60)
            while chunk := c.recv(1 << 16):
                got.extend(chunk)
    t = threading.Thread(target=take, daemon=True)
    t.start()

    def wait():
        t.join(60)
        s.close()
        return bytes(got)
    return s.getsockname()[1], wait


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def fetch(url, seconds=30):
    """What the URL has; the guest's server may need a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=seconds) as f:
                return f.read()
        except OSError as e:
            if time.monotonic() > end:
                return repr(e).encode()
            time.sleep(0.2)


def start(check, d, name, *nets, cpus=1):
    line = [doppel, "run", "--engine", engine, "--cpus", str(cpus), "-m", "384M", "--kernel", d / "vmlinuz", "--initrd", d / "initrd.gz", "--append",
            "console=ttyS0"]
    g = Guest(line + [a for n in nets for a in ("--net", n)])
    if not check(g.wait("doppel: init reached", BOOT_SECONDS) and g.wait(PROMPT, 30), f"{name} boots", g.all[-3000:]):
        g.p.kill()
        print(g.p.stderr.read().decode(errors="replace"))
        check.finish()
    g.command("stty columns 500")
    return g


def finish(check, g, name):
    out = g.command("dmesg") or ""
    trouble = [line for line in out.splitlines() if TROUBLE.search(line) or "virtio_net" in line and "rror" in line]
    check(not trouble, f"{name}: dmesg has no trouble", "\n".join(trouble))
    g.send("poweroff -f")
    check(g.end() == 0, f"{name} powers off", f"{g.p.returncode}\n{g.all[-1000:]}")


def transfers(check, g, what, host, served, data):
    """From a server of the host, which the guest knows by `host`. (No wget -T: busybox 1.35 crashes on it, everywhere.)"""
    out = g.command(f"timeout 30 wget -q -O /tmp/f http://{host}:{served}/f; sha256sum /tmp/f") or ""
    check(digest(data) in out, f"{what}: {len(data) >> 20} MiB to the guest", out)


def upload(check, g, what, host, bound, data):
    port, wait = receive(bound)
    g.command(f"nc -w 20 {host} {port} < /tmp/f")
    got = wait()
    check(got == data, f"{what}: {len(data) >> 20} MiB from the guest", f"{len(got)} bytes")


def user(check, d, data):
    files = Files("127.0.0.1", data)
    open_port, shut_port = free_port(), free_port()
    g = start(check, d, "guest", f"user,hostfwd=tcp::{open_port}:80",
              f"user,net=10.0.3.0/24,restrict,hostfwd=tcp:127.0.0.1:{shut_port}:80")
    for turn in "the guest", "the guest after a reboot":
        g.command(DHCP)
        g.command("ip link set eth0 up; ip link set eth1 up")
        out = g.command("udhcpc -i eth0 -n -q -f -s /tmp/lease 2>&1") or ""
        check("lease of 10.0.2.15" in out and "router 10.0.2.2 dns 10.0.2.3" in out, f"{turn} has an address by DHCP", out)
        if turn == "the guest":
            g.send("reboot -f")
            check(g.wait("doppel: init reached", BOOT_SECONDS) and g.wait(PROMPT, 30), "reboot -f", g.all[-2000:])
            g.command("stty columns 500")
    out = g.command("NOROUTE=1 udhcpc -i eth1 -n -q -f -s /tmp/lease 2>&1") or ""
    check("lease of 10.0.3.15" in out, "the second card too, from another network", out)
    out = g.command("ping -c 3 -W 5 10.0.2.2") or ""
    check(" 0% packet loss" in out, "ping", out)
    transfers(check, g, "user", "10.0.2.2", files.port, data)
    upload(check, g, "user", "10.0.2.2", "127.0.0.1", data)
    g.command("httpd -p 80 -h /tmp")
    check(fetch(f"http://127.0.0.1:{open_port}/f") == data, "a forwarded port leads into the guest")
    out = g.command(f"timeout 3 wget -q -O - http://10.0.3.2:{files.port}/f | wc -c; ping -c 1 -W 2 10.0.3.2 >/dev/null && echo answers") or ""
    check(out.startswith("0\n") or "\n0\n" in out, "restrict: nothing is reached", out)
    check(fetch(f"http://127.0.0.1:{shut_port}/f") == data, "restrict: a forwarded port leads into the guest all the same")
    finish(check, g, "guest")


def link(check, d, data):
    """Two VMs: 10.1.0.x on a plain cable, 10.2.0.x on one with limits and a filter."""
    plain, limited = "link:" + d / "plain", "link:" + d / "limited"
    a = start(check, d, "first VM", plain, limited + ",mac-filter,bps=40M,mac=02:00:00:00:00:0a")
    out = a.command("ip link set eth0 up; cat /sys/class/net/eth0/carrier") or ""
    check(out == "0\n", "no carrier while the other side is missing", out)
    b = start(check, d, "second VM", plain, limited)
    for i, g in enumerate((a, b)):
        for n in 0, 1:
            g.command(f"ip link set eth{n} up; ip addr add 10.{n + 1}.0.{i + 1}/24 dev eth{n}")
    out = a.command("sleep 1; cat /sys/class/net/eth0/carrier") or ""
    check(out == "1\n", "carrier when it is there", out)
    for name, g, other in ("first", a, 2), ("second", b, 1):
        out = g.command(f"ping -c 3 -W 5 10.1.0.{other}") or ""
        check(" 0% packet loss" in out, f"ping from the {name}", out)
    a.command("head -c 16777216 /dev/urandom > /tmp/f; httpd -p 80 -h /tmp")
    want = (a.command("sha256sum /tmp/f") or "?").split()[0]
    out = b.command("timeout 30 wget -q -O /tmp/g http://10.1.0.1/f; sha256sum /tmp/g; httpd -p 80 -h /tmp") or ""
    check(want in out, "16 MiB from the first to the second", out)
    out = a.command("timeout 30 wget -q -O /tmp/h http://10.1.0.2/g; sha256sum /tmp/h") or ""
    check(want in out, "and back", out)
    # Limits: 4 MiB at 40 Mbit/s are 0.84 s, less 1/10 s of burst.
    out = b.command("dd if=/tmp/g of=/tmp/s bs=1M count=4 2>/dev/null; cut -d' ' -f1 /proc/uptime; timeout 30 wget -q -O /dev/null http://10.2.0.1/h; "
                    "cut -d' ' -f1 /proc/uptime", 120) or ""
    times = [float(t) for t in out.split() if t.replace(".", "").isdigit()]
    took = times[-1] - times[0] if len(times) == 2 else -1
    check(3.1 < took < 20, "bps: 16 MiB at 40 Mbit/s take their time", f"{took}\n{out}")
    out = a.command("ip link set eth1 down; ip link set eth1 address 02:00:00:00:00:66 2>&1; ip link set eth1 up; sleep 0.5; ping -c 2 -W 2 10.2.0.2") or ""
    check("100% packet loss" in out or "not supported" in out, "mac-filter: another address does not pass", out)
    out = a.command("ip link set eth1 down; ip link set eth1 address 02:00:00:00:00:0a; ip link set eth1 up; sleep 0.5; ping -c 2 -W 5 10.2.0.2") or ""
    check(" 0% packet loss" in out, "mac-filter: the own one does", out)
    finish(check, b, "second VM")
    out = a.command("sleep 1; cat /sys/class/net/eth0/carrier") or ""
    check(out == "0\n", "no carrier when the other side has gone", out)
    finish(check, a, "first VM")
    check(not os.path.exists(d / "plain") and not os.path.exists(d / "limited"), "no socket is left behind")


def tap(check, d, data):
    def ip(args):
        subprocess.run(["ip", *args.split()], check=True)
    ip("link set lo up")
    ip("tuntap add dev dtap0 mode tap multi_queue")
    ip("addr add 10.9.0.1/24 dev dtap0")
    ip("link set dtap0 up")
    files = Files("10.9.0.1", data)
    g = start(check, d, "guest", "tap:dtap0,queues=2,mtu=1400", cpus=2)
    g.command("ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0")
    out = g.command("ls /sys/class/net/eth0/queues; cat /sys/class/net/eth0/mtu") or ""
    check("rx-1" in out and "tx-1" in out and "1400" in out, "two queue pairs, MTU 1400", out)
    out = g.command("ping -c 3 -W 5 10.9.0.1") or ""
    check(" 0% packet loss" in out, "ping", out)
    transfers(check, g, "tap", "10.9.0.1", files.port, data)
    upload(check, g, "tap", "10.9.0.1", "10.9.0.1", data)
    g.command("httpd -p 80 -h /tmp")
    check(fetch("http://10.9.0.2/f") == data, "a server in the guest")
    finish(check, g, "guest")


def own_namespace():
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        skip("tap needs root and /dev/net/tun")
    if subprocess.run(["unshare", "-n", "ip", "tuntap", "add", "dev", "t", "mode", "tap"], stderr=subprocess.DEVNULL).returncode:
        skip("no tap interface can be made in a network namespace here")
    os.environ["DOPPEL_TEST_NETNS"] = "1"
    os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])


def main():
    if network == "tap" and "DOPPEL_TEST_NETNS" not in os.environ:
        own_namespace()
    check = Checks()
    d = Directory()
    try:
        if engine == "kvm" and auto_engine(doppel, d) != "kvm":
            skip("KVM does not work here or is no hardware virtualization (see doppel doctor)")
        where = kernel_directory("cloud")
        if not where:
            skip("the kernel package cannot be fetched")
        subprocess.run([os.path.join(root, "tools/make-initramfs"), "--modules", "virtio_net", d / "initrd.gz", where], check=True)
        os.symlink(os.path.join(where, "vmlinuz"), d / "vmlinuz")
        {"user": user, "link": link, "tap": tap}[network](check, d, os.urandom(SIZE))
    finally:
        d.remove()
    check.finish()


main()
