#!/usr/bin/env python3
"""Work on all CPUs of Debian's cloud kernel for a long time: forks, pipes, sorts, compressors, each with a checked result; then its dmesg.

usage: stress.py DOPPEL SOURCE_ROOT CPUS SECONDS      the suite runs some seconds of the like (boot.py); give it an hour

More CPUs than the host has are welcome. The guest's messages of trouble, a worker's wrong sum or a guest that does not end: status 1.
"""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cli"))
from harness import Directory, kernel_directory, skip  # noqa: E402

doppel, root, cpus, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
TROUBLE = re.compile(r"BUG|WARNING|Oops|Call Trace|Kernel panic|general protection|unable to handle|stall|lockup|nobody cared|segfault|traps:|worker \d+: wrong")
SCRIPT = """
end=$(( $(cut -d. -f1 /proc/uptime) + %d ))
work() {
	n=0
	while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do
		[ "$(seq 1 3000 | sort -r | sort -n | md5sum | cut -c1-8)" = %s ] || echo "worker $1: wrong sort"
		[ "$(dd if=/dev/zero bs=4k count=64 2>/dev/null | gzip -1 | gunzip | md5sum | cut -c1-8)" = %s ] || echo "worker $1: wrong gzip"
		(echo $n | cat | cat | cat >/tmp/w$1; mv /tmp/w$1 /tmp/x$1; [ $(cat /tmp/x$1) = $n ]) || echo "worker $1: wrong file"
		n=$((n + 1))
	done
	echo "worker $1: $n rounds"
}
i=0
while [ $i -lt $(( $(nproc) * 2 )) ]; do work $i & i=$((i + 1)); done
wait
dmesg | tail -n +1 >/dev/console
echo "stress: done"
"""


def sum_of(command):
    return subprocess.run(["busybox", "sh", "-c", command + " | md5sum | cut -c1-8"], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def main():
    where = kernel_directory("cloud")
    if not where:
        skip("the kernel package cannot be fetched")
    d = Directory()
    script = d.file("stress.sh", (SCRIPT % (seconds, sum_of("seq 1 3000"), sum_of("dd if=/dev/zero bs=4k count=64 2>/dev/null"))).encode())
    subprocess.run([os.path.join(root, "tools/make-initramfs"), d / "initrd.gz", where, script], check=True)
    try:
        out = subprocess.run([doppel, "run", "--engine", "soft", "--cpus", str(cpus), "-m", "1G", "--kernel", os.path.join(where, "vmlinuz"),
                              "--initrd", d / "initrd.gz", "--append", "console=ttyS0 quiet"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             timeout=seconds * 3 + 300).stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as e:
        out = (e.stdout or b"").decode(errors="replace") + "\nthe guest does not end"
    d.remove()
    trouble = [line for line in out.splitlines() if TROUBLE.search(line)]
    rounds = sum(int(n) for n in re.findall(r"worker \d+: (\d+) rounds", out))
    print(f"{cpus} CPUs, {seconds} s: {rounds} rounds, {len(trouble)} lines of trouble")
    if trouble or "stress: done" not in out:
        print("\n".join(trouble), out[-4000:], sep="\n")
        sys.exit(1)


main()
