"""A guest at its serial console, for the drivers of tests/boot."""
import os
import re
import selectors
import subprocess
import time

PROMPT = "doppel / # "
TROUBLE = re.compile(r"BUG|WARNING|Oops|Call Trace|Kernel panic|general protection|unable to handle|stall|lockup|"
                     r"unchecked MSR|nobody cared|spurious|unexpected|failed to|segfault|traps:")


class Guest:
    """A run of doppel whose serial port is a pipe pair."""

    def __init__(self, command):
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        os.set_blocking(self.p.stdout.fileno(), False)
        self.sel = selectors.DefaultSelector()
        self.sel.register(self.p.stdout, selectors.EVENT_READ)
        self.all = ""
        self.at = 0

    def wait(self, text, seconds):
        """What came up to and with `text` since the last wait; None when it does not come."""
        end = time.monotonic() + seconds
        while (found := self.all.find(text, self.at)) < 0:
            if time.monotonic() > end or not self.sel.select(end - time.monotonic()):
                return None
            data = self.p.stdout.read(65536)
            if not data:
                return None
            self.all += data.decode(errors="replace").replace("\r", "")
        out = self.all[self.at:found + len(text)]
        self.at = found + len(text)
        return out

    def send(self, line):
        self.p.stdin.write(line.encode() + b"\n")

    def command(self, line, seconds=60):
        """Output of a shell command, without its echo and the prompt; None when it does not end."""
        self.send(line)
        out = self.wait(PROMPT, seconds)
        return None if out is None else out.split("\n", 1)[-1][:-len(PROMPT)]

    def end(self, seconds=60):
        """Exit status; kills it when it does not end."""
        end = time.monotonic() + seconds
        while self.p.poll() is None and time.monotonic() < end:
            if self.sel.get_map() and self.sel.select(0.2):
                data = self.p.stdout.read(65536)
                if data:
                    self.all += data.decode(errors="replace").replace("\r", "")
                else:
                    self.sel.unregister(self.p.stdout)
            elif not self.sel.get_map():
                time.sleep(0.05)
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()
            return "killed: it did not end"
        return self.p.returncode
