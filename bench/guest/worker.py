"""Where jobs run: natively in the image's tree, or in a virtual machine; a process that has the job driver at the other end of its pipes."""
import json
import os
import pathlib
import re
import select
import shlex
import signal
import subprocess
import time

MEMORY = "1G"
NATIVE = ("mount -t tmpfs tmp {root}/tmp && mount --rbind /dev {root}/dev && mount --rbind /proc {root}/proc && "
          "exec chroot {root} /bench/driver {cpus}")


class Failure(Exception):
    """No answer, or an end too early."""


def native(root, cpus):
    rights = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    return ["unshare", *rights, "--propagation", "private", "sh", "-c", NATIVE.format(root=shlex.quote(str(root)), cpus=cpus)]


def soft(doppel, kernel, initrd, cpus, append, options):
    return [str(doppel), "run", "-q", "--engine", "soft", "-m", MEMORY, "--cpus", str(cpus), "--kernel", str(kernel), "--initrd", str(initrd),
            "--append", append, *options]


def kvm(doppel, kernel, initrd, cpus, append, options):
    command = soft(doppel, kernel, initrd, cpus, append, options)
    command[command.index("soft")] = "kvm"
    return command


def tcg(kernel, initrd, cpus, append):
    return ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-cpu", "max", "-nodefaults", "-no-user-config", "-m", MEMORY, "-smp", str(cpus),
            "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd), "-append", append]


def cpu_ns(pid):
    """CPU time of all threads of a process."""
    total = 0
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[0])
        except (OSError, IndexError):
            pass  # a thread that ended just now
    return total


def counters(doppel, name):
    """Sums of `doppel stat`, flat: dotted name -> number. Empty where there are none."""
    done = subprocess.run([doppel, "stat", "--format", "json", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def flat(value, prefix):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{prefix}.{key}" if prefix else key)
        elif isinstance(value, (int, float)):
            yield prefix, value
    return dict(flat(json.loads(done.stdout), "")) if done.returncode == 0 else {}


class Worker:
    """One run of the job driver."""

    def __init__(self, name, command, limit):
        self.name, self.limit, self.seen, self.started = name, limit, b"", time.monotonic()
        # It ends with this process, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self.errors, self.at = "", 0
        self.init_s = None
        try:
            self.answer("ready", 60)
        except Failure:
            self.kill()
            raise
        self.ready_s = time.monotonic() - self.started

    def answer(self, what, limit):
        """Words behind "@bench WHAT"."""
        end = time.monotonic() + limit
        while True:
            line, newline, rest = self.seen[self.at:].partition(b"\n")
            if newline:
                self.at += len(line) + 1
                text = line.decode(errors="replace").strip("\r\n")
                if "doppel: init reached" in text:
                    self.init_s = time.monotonic() - self.started
                if m := re.search(r"@bench stderr (.*)", text):
                    self.errors = m.group(1)
                if m := re.search(rf"@bench {what}(.*)", text):
                    return m.group(1).split()
                continue
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failure(f"{self.name}: no answer within {limit} s; the last it said:\n{self.tail()}")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise Failure(f"{self.name}: ended early, status {self.process.wait(10)}; the last it said:\n{self.tail()}")
            self.seen += data

    def tail(self):
        return self.seen[-1500:].decode(errors="replace")

    def send(self, line):
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except OSError as e:
            raise Failure(f"{self.name}: {e}; the last it said:\n{self.tail()}") from e

    def run(self, command):
        """One job. A dict: seconds by the guest's and by the host's clock, CPU seconds of the job and of the VMM, status and checksum."""
        self.errors = ""
        cpu, start = cpu_ns(self.process.pid), time.monotonic()
        self.send("run " + command)
        wall, user, system, status, size, checksum = self.answer("done", self.limit)
        host = time.monotonic() - start
        used = (int(user) + int(system)) / 1e6
        vmm = used if self.name == "native" else (cpu_ns(self.process.pid) - cpu) / 1e9
        return {"s": int(wall) / 1e9, "host_s": host, "user_s": int(user) / 1e6, "sys_s": int(system) / 1e6, "cpu_s": vmm,
                "status": int(status), "bytes": int(size), "checksum": checksum}

    def idle(self, seconds):
        """CPU share of the VMM while the guest sleeps."""
        cpu = cpu_ns(self.process.pid)
        start = time.monotonic()
        self.send(f"sleep {int(seconds * 1000)}")
        self.answer("slept", seconds + 30)
        return (cpu_ns(self.process.pid) - cpu) / 1e9 / (time.monotonic() - start)

    def quit(self):
        try:
            self.send("quit")
            self.process.stdin.close()
            self.process.stdout.read()
            return self.process.wait(30)
        except (Failure, OSError, subprocess.TimeoutExpired):
            return None
        finally:
            self.kill()

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
