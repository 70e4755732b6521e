#!/usr/bin/env python3
"""Running VMs as others see them: names, doppel ps, stat, stop and kill, the control socket and its hostile clients.

usage: control.py DOPPEL
"""
import atexit
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time

from harness import Checks, Directory, HANG, SPIN, guest_print, multiboot, one_line_error, run, skip, usable_engines, wait_for

doppel = sys.argv[1]
check = Checks()
d = Directory()
base = d / "runtime"
os.environ["DOPPEL_RUNTIME_DIR"] = base

# 1: in ax, dx (PM1 status); test ah, 1 (power button); jz 1b; out PM1 control, S5
WAIT_FOR_BUTTON = (b"\x66\xba" + struct.pack("<H", 0x600) + b"\x66\xed\xf6\xc4\x01\x74\xf9" + b"\x66\xba" + struct.pack("<H", 0x604)
                   + b"\x66\xb8" + struct.pack("<H", 0x3400) + b"\x66\xef" + HANG)
halted = d.file("halted", guest_print(b"up", HANG))
spinning = d.file("spinning", guest_print(b"up", SPIN))
waiting = d.file("waiting", guest_print(b"up", WAIT_FOR_BUTTON))


class Vm:
    def __init__(self, kernel, *args, engine="soft"):
        self.p = subprocess.Popen([doppel, "run", "-m", "16M", "--engine", engine, "--kernel", kernel, *args], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        atexit.register(self.p.kill)
        self.up = self.p.stdout.read(2) == b"up"

    def end(self, how=signal.SIGTERM):
        self.p.send_signal(how)
        self.p.communicate(timeout=20)
        return self.p.returncode


def names():
    r = run(doppel, "ps", "-q")
    return r.stdout.split() if r.returncode == 0 else r.stderr


def connect(name):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    end = time.monotonic() + 10
    while True:
        try:
            s.connect(os.path.join(base, name, "control.sock"))
            return s
        except BlockingIOError:  # as many wait already as the system keeps
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def ask(s, data):
    """The reply to a line of bytes, None when the connection ends instead."""
    reply = b""
    try:
        s.sendall(data)
        while not reply.endswith(b"\n"):
            more = s.recv(65536)
            if not more:
                return None
            reply += more
    except (BrokenPipeError, ConnectionResetError):
        return None
    return json.loads(reply)


def nothing_runs():
    for first in True, False:  # without and with the directory
        check(names() == [], "ps -q lists nothing")
        check(json.loads(run(doppel, "ps", "--format", "json").stdout) == [], "ps --format json is an empty list")
        check(run(doppel, "ps").stdout.split()[:2] == ["NAME", "PID"], "ps has a head")
        one_line_error(check, run(doppel, "stat", "nobody"), "nobody", "doppel ps")
        if first:
            os.mkdir(base, 0o700)


def counters(engine):
    vm = Vm(halted, "--name", "web-1", "-q", engine=engine)
    time.sleep(0.3)
    (it,) = json.loads(run(doppel, "ps", "--format", "json").stdout)
    check(it["name"] == "web-1" and it["pid"] == vm.p.pid and it["engine"] == engine and it["cpus"] == 1 and it["memory"] == 16 << 20 and
          it["uptime"] > 0.2 and it["state"] == "running", f"{engine}: ps shows it", it)
    check(re.search(rf"^web-1 +{vm.p.pid} +{engine} +1 +16M +\S+ +running$", run(doppel, "ps").stdout, re.M), f"{engine}: in a table")
    s = json.loads(run(doppel, "stat", "web-1", "--format", "json").stdout)
    one, total = s["vcpus"][0], s["total"]
    check(len(s["vcpus"]) == 1 and one == total, f"{engine}: the total is the sum over vCPUs", s)
    check(s["machine"]["uptime"] > 2e8 and s["machine"]["memory.size"] == 16 << 20 and s["machine"]["bus.writes"] >= 2 and
          s["machine"]["memory.resident"] > 1 << 20, f"{engine}: counters of the machine", s["machine"])
    check(set(s["about"]) == set(s["machine"]) | set(total) and all(a["help"] for a in s["about"].values()), f"{engine}: each is explained")
    if engine == "soft":
        check(total["halts"] >= 1 and total["translations"] >= 1 and total["translated.instructions"] >= total["translations"] and
              total["time.idle"] > 1e8 and total["slow.OUT_DX"] + total.get("slow.OUT_IMM", 0) >= 2 and s["machine"]["code_cache.used"] > 0,
              "soft: counters of the vCPU", total)
    else:
        check(total["exits.io"] >= 2, "kvm: counters of the vCPU", total)
    table = run(doppel, "stat", "web-1").stdout
    check(re.search(r"^uptime +\d+\.\d+ s +\S", table, re.M) and re.search(r"^memory\.size +16777216 B", table, re.M), f"{engine}: stat as a table", table)
    vm.p.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    check(vm.end() == 143, f"{engine}: SIGUSR1 does not end it")
    check(names() == [] and os.listdir(base) == [], f"{engine}: nothing is left", os.listdir(base))


def by_signal():
    vm = Vm(halted, "-q")
    vm.p.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    vm.p.terminate()
    err = vm.p.communicate(timeout=20)[1].decode()
    check(re.search(r"^ +uptime +\d+ ns$", err, re.M) and re.search(r"^ +halts +\d+$", err, re.M), "SIGUSR1 prints the counters", err)


def time_by_ring():
    vm = Vm(spinning, "--name", "spin")
    time.sleep(1)
    t = json.loads(run(doppel, "stat", "spin", "--format", "json").stdout)
    vm.end()
    cpu, kernel = t["machine"]["time.process"], t["total"]["time.kernel"]
    check(kernel > 0.8 * cpu and t["total"]["time.user"] == 0, "a guest that spins in ring 0: its time is the kernel's", t)


def watch():
    vm = Vm(spinning, "--name", "w")
    p = subprocess.Popen([doppel, "stat", "--watch", "0.1", "w", "--format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [json.loads(p.stdout.readline()) for _ in range(4)]
    check(lines[0]["machine"]["uptime"] < lines[1]["machine"]["uptime"] < lines[3]["machine"]["uptime"], "stat --watch goes on")
    p2 = subprocess.Popen([doppel, "stat", "-w", "0.2", "w"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    check(run(doppel, "kill", "w").returncode == 0 and vm.p.wait(20) == 143, "kill ends the run with status 143", vm.p.returncode)
    check(p.wait(10) == 0 and p2.wait(10) == 0, "the end of the VM ends stat --watch", f"{p.returncode} {p.stderr.read()} {p2.returncode}")
    rates = [float(m[1]) for m in re.finditer(r"^uptime +[\d.]+ s +([\d.]+) ", p2.stdout.read(), re.M)]
    check(rates and all(0.9 < r < 1.1 for r in rates), "stat --watch shows the change a second", rates)
    for f in p.stdout, p.stderr, p2.stdout, p2.stderr, vm.p.stdout, vm.p.stderr:
        f.close()


def name_conflicts():
    vm = Vm(halted, "--name", "db")
    before = os.listdir(base + "/db")
    one_line_error(check, run(doppel, "run", "--kernel", halted, "--engine", "soft", "--name", "db"), "db", "running already")
    check(names() == ["db"] and os.listdir(base + "/db") == before, "the one that runs is left alone")
    a, b = Vm(halted), Vm(halted)
    check(len(set(names())) == 3 and all(re.fullmatch(r"[a-z]+-[a-z]+", n) for n in set(names()) - {"db"}), "runs without a name get one each", names())
    err = a.p.stderr
    a.end()
    b.end()
    check(vm.end() == 143 and names() == [], "all gone")
    err.close()


def dead_ones():
    vm = Vm(halted, "--name", "dead")
    vm.end(signal.SIGKILL)
    check(os.listdir(base) == ["dead"], "SIGKILL leaves a directory")
    one_line_error(check, run(doppel, "stat", "dead"), "dead", "doppel ps")
    vm = Vm(halted, "--name", "dead")
    check(vm.up and names() == ["dead"], "its name is taken by the next")
    vm.end(signal.SIGKILL)
    os.mkdir(base + "/mine", 0o700)
    d.file("runtime/notes", b"notes")
    check(names() == [] and sorted(os.listdir(base)) == ["mine", "notes"], "ps removes what the dead left, and nothing else", os.listdir(base))
    os.rmdir(base + "/mine")
    os.unlink(base + "/notes")


def stopping():
    vm = Vm(waiting, "--name", "button")
    r = run(doppel, "stop", "button")
    check(r.returncode == 0 and vm.p.wait(10) == 0, "stop presses the power button, and waits", f"{r.stderr} {vm.p.returncode}")
    vm = Vm(spinning, "--name", "deaf")
    begin = time.monotonic()
    r = run(doppel, "stop", "-t", "0.5", "deaf")
    check(r.returncode == 0 and vm.p.wait(10) == 143 and time.monotonic() - begin > 0.4, "stop -t ends one that does not listen", vm.p.returncode)
    one_line_error(check, run(doppel, "stop", "deaf"), "deaf", "doppel ps")


def ssh():
    """With an ssh that only says how it was called; the real one is in tests/boot/debian.py."""
    os.makedirs(d / "bin", exist_ok=True)
    d.file("bin/ssh", b'#!/bin/sh\nfor a in "$@"; do echo "<$a>"; done\nexit 7\n')
    os.chmod(d / "bin/ssh", 0o755)
    env = {**os.environ, "PATH": d / "bin" + ":" + os.environ["PATH"]}
    d.file("disk.img", bytes(1 << 20))
    key = d.file("disk.img.key", b"")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    vm = Vm(halted, "--name", "s", "--disk", d / "disk.img", "--net", f"user,hostfwd=tcp:127.0.0.1:{port}:22,hostfwd=udp:127.0.0.1:{port}:22")
    r = run(doppel, "ssh", "s", "uname", "-a", "two words", env=env)
    words = r.stdout.split("\n")
    check(r.returncode == 7 and words[:4] == ["<-p>", f"<{port}>", "<-l>", "<root>"] and words[-5:] == ["<127.0.0.1>", "<uname>", "<-a>", "<two words>", ""] and
          f"<{key}>" in words and "<StrictHostKeyChecking=accept-new>" in words and any("known_hosts" in w for w in words), "ssh is run with port, key and host keys of the machine", r.stdout + r.stderr)
    r = run(doppel, "ssh", "-l", "user", "-i", "mykey", "s", env=env)
    check("<user>" in r.stdout and "<mykey>" in r.stdout and r.stdout.endswith("<127.0.0.1>\n"), "ssh -l, -i", r.stdout + r.stderr)
    one_line_error(check, run(doppel, "ssh", "s", env={**os.environ, "PATH": "/nonexistent"}), "ssh")
    vm.end()
    vm = Vm(halted, "--name", "s")
    one_line_error(check, run(doppel, "ssh", "s", env=env), "hostfwd")
    vm.end()
    one_line_error(check, run(doppel, "ssh", "s"), "running")
    one_line_error(check, run(doppel, "ssh"), "doppel ps")
    one_line_error(check, run(doppel, "ssh", "-x"), "-x")


def from_files():
    """Machines described by files: their options, those of the command line after them, and what is wrong with a file."""
    d.file("machine.json", json.dumps({"kernel": "halted", "memory": "16M", "engine": "soft", "serial": "null", "name": "from-file", "disk": ["disk.img"]}).encode())
    for args, memory, name in ((), 16, "from-file"), (("-m", "32M", "--name", "other"), 32, "other"):
        p = subprocess.Popen([doppel, "run", "-q", "--config", d / "machine.json", *args], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        atexit.register(p.kill)
        wait_for(lambda: '"running"' in run(doppel, "ps", "--format", "json").stdout, 10)
        (it,) = json.loads(run(doppel, "ps", "--format", "json").stdout)
        check(it["name"] == name and it["memory"] == memory << 20, f"--config {args}", it)
        c = connect(name)
        check(ask(c, b'{"command":"status"}\n')["disks"] == [os.path.realpath(d / "disk.img")], "paths count from the file")
        p.terminate()
        check(p.wait(20) == 143, "it ends")
        p.stderr.close()
    for text, word in (b"", "empty"), (b"{", "bad"), (b'{"frobnicate": 1}', "frobnicate"), (b'{"cpus": 0}', "cpus"), (b'{"config": "x"}', "another"), (b'{"memory": "16M"}', "nothing to boot"):
        one_line_error(check, run(doppel, "run", "--config", d.file("bad.json", text)), *([word] if word != "bad" else []))
    one_line_error(check, run(doppel, "run", "--config", d / "missing.json"), "missing.json")
    if os.geteuid() == 0:
        return  # names are looked up in /var/lib/doppel
    home = d / "data"
    os.makedirs(home + "/doppel/machines/box")
    d.file("data/doppel/machines/box/config.json", json.dumps({"kernel": halted, "memory": "16M", "engine": "soft", "serial": "null"}).encode())
    p = subprocess.Popen([doppel, "run", "-q", "box"], stdin=subprocess.DEVNULL, env={**os.environ, "XDG_DATA_HOME": home})
    atexit.register(p.kill)
    check(wait_for(lambda: names() == ["box"], 10), "a machine by its name")
    p.terminate()
    check(p.wait(20) == 143, "it ends")


def no_answer():
    vm = Vm(halted, "--name", "frozen")
    vm.p.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    r = run(doppel, "ps", "--format", "json")
    check(json.loads(r.stdout)[0]["state"] == "no answer" and time.monotonic() - begin < 3, "ps shows a VMM that does not answer", r.stdout)
    vm.p.send_signal(signal.SIGCONT)
    check(vm.end() == 143, "it goes on")


def bad_input():
    def bad(*args, words=(), **kw):
        one_line_error(check, run(doppel, *args, **kw), *words)

    for name in "", ".", "..", "../x", "a/b", ".x", "-x", "x" * 64, "sp ace", "\u00fc", "a\nb":
        bad("run", "--kernel", halted, "--name=" + name, words=["not a name"]) if "\n" not in name else None
        bad("stat", "--", name, words=["not a name"]) if "\n" not in name else None
    for command in "stat", "stop", "kill":
        bad(command, words=[command, "doppel ps"])
        bad(command, "nosuch", words=["nosuch"])
        bad(command, "a", "b", words=["unexpected argument"])
        bad(command, "--bogus", words=["--bogus"])
    bad("ps", "x", words=["unexpected"])
    bad("ps", "--format", "xml", words=["xml"])
    bad("ps", "--watch", "1", words=["unknown option"])
    for seconds in "0", "-1", "x", "", "1e99", "nan":
        bad("stat", "--watch", seconds, "nosuch", words=["seconds"])
    for command in "stat", "stop", "kill", "ps":
        r = run(doppel, command, "--help")
        check(r.returncode == 0 and f"usage: doppel {command}" in r.stdout, f"{command} --help")


def bad_places():
    for mode, what in ((0o777, "open to others"), (0o750, "open to others")):
        place = d / f"place-{mode:o}"
        os.mkdir(place)
        os.chmod(place, mode)
        env = {**os.environ, "DOPPEL_RUNTIME_DIR": place}
        one_line_error(check, run(doppel, "run", "--kernel", halted, "--engine", "soft", "--name", "x", env=env), what)
        one_line_error(check, run(doppel, "ps", env=env), what)
    for place in d.file("a-file", b""), d / "no/such/parent":
        one_line_error(check, run(doppel, "run", "--kernel", halted, "--engine", "soft", "--name", "x", env={**os.environ, "DOPPEL_RUNTIME_DIR": place}),
                       os.path.basename(place))
    os.symlink(base, d / "link")
    one_line_error(check, run(doppel, "ps", env={**os.environ, "DOPPEL_RUNTIME_DIR": d / "link"}), "link")
    image = d.file("exit", guest_print(b"up", b"\xb0\x00\xe6\xf4" + HANG))
    r = run(doppel, "run", "--kernel", image, "--engine", "soft", "--debug-exit", "-m", "16M", env={**os.environ, "DOPPEL_RUNTIME_DIR": d / "place-777"})
    check(r.returncode == 1 and "not listed" in r.stderr, "a run without a name goes on unlisted", r.stderr)
    os.symlink("/tmp", base + "/sym")
    one_line_error(check, run(doppel, "run", "--kernel", halted, "--engine", "soft", "--name", "sym"), "sym")
    os.unlink(base + "/sym")


def modes():
    vm = Vm(halted, "--name", "m")
    found = {n: os.stat(os.path.join(base, "m", n)).st_mode & 0o777 for n in ("", "pid", "config.json", "control.sock")}
    check(found == {"": 0o700, "pid": 0o600, "config.json": 0o600, "control.sock": 0o600}, "only the user may enter", found)
    config = json.load(open(base + "/m/config.json"))
    check(config["name"] == "m" and config["pid"] == vm.p.pid and config["args"][0] == "run" and "--name" in config["args"], "config.json", config)
    if os.geteuid() == 0:
        for path, mode in (d.path, 0o755), (base, 0o755), (base + "/m", 0o755), (base + "/m/control.sock", 0o666):
            os.chmod(path, mode)
        code = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]); s.send(b'{\"command\":\"kill\"}\\n'); print(s.recv(10))"
        r = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code, base + "/m/control.sock"],
                           capture_output=True, text=True)
        refused = r.stdout == "b''\n" or "ConnectionResetError" in r.stderr or "BrokenPipeError" in r.stderr
        check(refused and vm.p.poll() is None, "another user is sent away, even where modes let him in", r.stdout + r.stderr)
        os.chmod(base, 0o700)
    vm.end()


def hostile_clients():
    vm = Vm(spinning, "--name", "h")
    s = connect("h")
    for line in b"\n", b"x\n", b"[]\n", b"null\n", b"{}\n", b'{"command":1}\n', b'{"command":"nonsense"}\n', b"\xff\xfe\n", b'{"a":1,"a":2}\n', b"[" * 4000 + b"\n", \
            b'{"command":"\\u0000"}\n', b'{"command":"' + "\u00e9".encode() * 60 + b'"}\n':
        r = ask(s, line)
        check(r is not None and r["ok"] is False and r["error"], f"answered with an error: {line[:30]}", r)
    check(ask(s, b'{"command":"status"}\n')["ok"], "and the next request is served")
    s.sendall(b'{"command":"status"}\n' * 300)
    got = b""
    while got.count(b"\n") < 300:
        got += s.recv(65536)
    check(got.count(b'"name":"h"') == 300, "many requests at once are answered one by one")
    for piece in b'{"comm', b'and":"st', b'atus"}', b"\n":
        s.sendall(piece)
        time.sleep(0.02)
    check(json.loads(s.recv(65536))["ok"], "a request in pieces")
    check(ask(connect("h"), b"x" * 100000) is None, "a line without end ends the connection")

    idle = []
    for i in range(1000):
        c = connect("h")
        c.setblocking(False)
        try:
            c.send([b"", b"{", b'{"command":"stat"}\n' * 400, b"\0" * 5000][i % 4])
        except BlockingIOError:
            pass
        idle.append(c)  # never reads
    begin = time.monotonic()
    r = run(doppel, "stat", "h", "--format", "json")
    check(r.returncode == 0 and json.loads(r.stdout)["machine"] and time.monotonic() - begin < 3, "1,000 slow clients: it still answers", r.stderr)
    fds = len(os.listdir(f"/proc/{vm.p.pid}/fd"))
    check(fds < 100, "and keeps few of them", fds)
    for c in idle:
        c.close()
    check(wait_for(lambda: run(doppel, "ps", "-q").stdout == "h\n", 5), "still there")
    check(vm.end() == 143, "and ends as it should", vm.p.returncode)


engines = usable_engines(doppel, d)
if "soft" not in engines:
    skip("the soft engine does not run here")
os.rmdir(base)
nothing_runs()
for e in engines:
    counters(e)
for group in by_signal, time_by_ring, watch, name_conflicts, dead_ones, stopping, ssh, from_files, no_answer, bad_input, bad_places, modes, hostile_clients:
    print(f"# {group.__name__}")
    group()
d.remove()
check.finish()
