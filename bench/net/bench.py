#!/usr/bin/env python3
"""Network throughput of a guest: doppel's software engine beside QEMU's (TCG), by iperf3.

usage: bench/net/bench.py [--doppel FILE] [--rounds N] [--seconds N] [--output DIRECTORY]      (as root: it makes a network namespace)

The same Debian cloud kernel and initramfs with iperf3, one CPU. Each contender boots in turn with two virtio cards: the user network (both have
libslirp) and a tap without vhost. iperf3 on the host serves; the guest sends, then receives. CPU time is that of the VMM's process, all
threads, between two lines that the guest prints. Medians of all rounds. Prints a table; writes net.json, net.md and net.svg.
"""
import argparse
import json
import os
import pathlib
import platform
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MEMORY = "512M"
TICKS = os.sysconf("SC_CLK_TCK")
TESTS = {"user, guest sends": ("10.0.2.2", ""), "user, guest receives": ("10.0.2.2", "-R"),
         "tap, guest sends": ("10.9.0.1", ""), "tap, guest receives": ("10.9.0.1", "-R")}


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--doppel", default=ROOT / "build/doppel")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=int, default=5)
    p.add_argument("--output", default=ROOT / "docs/bench", type=pathlib.Path)
    return p.parse_args()


def own_namespace():
    if "DOPPEL_BENCH_NETNS" not in os.environ:
        os.environ["DOPPEL_BENCH_NETNS"] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])
    for line in ("link set lo up", "tuntap add dev dbench mode tap", "addr add 10.9.0.1/24 dev dbench", "link set dbench up"):
        subprocess.run(["ip", *line.split()], check=True)


def guest_script(seconds):
    out = ["ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0",
           "ip link set eth1 up; ip addr add 10.9.0.2/24 dev eth1; sleep 1"]
    for i, (host, flags) in enumerate(TESTS.values()):
        # The first second is TCP's: it does not count.
        out += [f"echo; echo bench-begin {i}; iperf3 -c {host} -O 1 -t {seconds} -f m {flags} | grep receiver; echo; echo bench-end {i}; sleep 0.5"]
    return "\n".join(out) + "\n"


def contenders(doppel, kernel, initrd):
    append = "console=ttyS0 quiet"
    return {
        "doppel soft": [str(doppel), "run", "-q", "--engine", "soft", "-m", MEMORY, "--kernel", kernel, "--initrd", initrd, "--append", append,
                        "--net", "user", "--net", "tap:dbench"],
        "QEMU TCG": ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-nodefaults", "-no-user-config", "-m", MEMORY, "-display", "none",
                     "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", append,
                     "-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u",
                     "-netdev", "tap,id=t,ifname=dbench,script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=t"],
    }


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def run(name, command, seconds):
    """One boot: test -> (Mbit/s, VMM CPU seconds per second)."""
    servers = [subprocess.Popen(["iperf3", "-s", "-B", a], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for a in ("127.0.0.1", "10.9.0.1")]
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    limit = time.monotonic() + 60 + (seconds + 5) * len(TESTS) * 2
    seen, at, begun, results = "", 0, {}, {}
    try:
        while True:
            if not select.select([p.stdout], [], [], max(limit - time.monotonic(), 0))[0]:
                sys.exit(f"bench: {name} does not end:\n{seen[-2000:]}")
            data = os.read(p.stdout.fileno(), 65536)
            if not data:
                break
            seen += data.decode(errors="replace").replace("\r", "")
            while m := re.compile(r"^bench-(begin|end) (\d)$", re.M).search(seen, at):
                which = int(m.group(2))
                if m.group(1) == "begin":
                    begun[which] = (cpu_seconds(p.pid), time.monotonic())
                else:
                    rate = re.search(r"([\d.]+) Mbits/sec", seen[at:m.start()])
                    if not rate:
                        sys.exit(f"bench: {name}: iperf3 failed:\n{seen[-2000:]}")
                    cpu, start = begun[which]
                    results[list(TESTS)[which]] = (float(rate.group(1)), (cpu_seconds(p.pid) - cpu) / (time.monotonic() - start))
                at = m.end()
        p.wait(10)
    finally:
        for q in [p, *servers]:
            if q.poll() is None:
                q.kill()
                q.wait()
    if len(results) != len(TESTS):
        sys.exit(f"bench: {name}: status {p.returncode}\n{seen[-2000:]}")
    return results


def svg(rows, path):
    """Two bars for each test: throughput, its length by the longest."""
    widest = max(r[n]["mbit_s"] for r in rows for n in r["names"])
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{50 + 62 * len(rows)}" font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="22" font-size="15">iperf3 in a guest: Mbit/s, median (more is better)</text>']
    for i, r in enumerate(rows):
        y = 42 + 62 * i
        out.append(f'<text x="10" y="{y + 24}">{r["test"]}</text>')
        for j, (name, colour) in enumerate(zip(r["names"], ("#2a6f97", "#89c2d9"))):
            w = 420 * r[name]["mbit_s"] / widest
            out.append(f'<rect x="160" y="{y + 24 * j}" width="{max(w, 1):.0f}" height="20" fill="{colour}"/>')
            out.append(f'<text x="{165 + w:.0f}" y="{y + 15 + 24 * j}">{r[name]["mbit_s"]:.0f} {name}</text>')
    out.append("</svg>\n")
    path.write_text("\n".join(out))


def table(rows, facts):
    a, b = rows[0]["names"]
    out = [f"| iperf3, Mbit/s | {a} | {b} | ratio | Mbit per VMM CPU-second: {a} | {b} | ratio |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        x, y = r[a], r[b]
        out.append(f"| {r['test']} | {x['mbit_s']:.0f} ({x['min']:.0f}-{x['max']:.0f}) | {y['mbit_s']:.0f} ({y['min']:.0f}-{y['max']:.0f}) | "
                   f"{x['mbit_s'] / y['mbit_s']:.2f} | {x['mbit_cpu_s']:.0f} | {y['mbit_cpu_s']:.0f} | {x['mbit_cpu_s'] / y['mbit_cpu_s']:.2f} |")
    out += ["", f"Medians (lowest-highest) of {facts['rounds']} rounds of {facts['seconds']} s, contenders in turn; {facts['kernel']}, {MEMORY} of RAM, one CPU; "
            f"{facts['host']}, load average {facts['load']} at the start; {facts['qemu']}; {facts['iperf3']}. Made by `bench/net/bench.py`."]
    return "\n".join(out) + "\n"


def host():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{model.group(1) if model else 'unknown CPU'}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def first_line(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]


def main():
    a = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: run it as root: it makes a network namespace and a tap interface")
    own_namespace()
    load = f"{os.getloadavg()[0]:.1f}"
    fetched = subprocess.run([ROOT / "tools/fetch-kernel", "cloud"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    iperf = subprocess.run(["which", "iperf3"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as work:
        script, initrd = os.path.join(work, "script"), os.path.join(work, "initrd.gz")
        pathlib.Path(script).write_text(guest_script(a.seconds))
        subprocess.run([ROOT / "tools/make-initramfs", "--modules", "virtio_net", "--program", iperf, initrd, fetched, script], check=True)
        them = contenders(a.doppel, os.path.join(fetched, "vmlinuz"), initrd)
        got = {test: {name: [] for name in them} for test in TESTS}
        for i in range(a.rounds):
            for name, command in them.items():
                for test, result in run(name, command, a.seconds).items():
                    got[test][name].append(result)
                    print(f"round {i + 1}: {name}: {test}: {result[0]:.0f} Mbit/s, {100 * result[1]:.0f} % CPU", flush=True)
    rows = []
    for test, by_name in got.items():
        row = {"test": test, "names": list(by_name)}
        for name, results in by_name.items():
            rates = [r[0] for r in results]
            row[name] = {"mbit_s": statistics.median(rates), "min": min(rates), "max": max(rates),
                         "mbit_cpu_s": statistics.median(r[0] / r[1] for r in results), "rounds": results}
        rows.append(row)
    facts = {"kernel": (pathlib.Path(fetched) / "package").read_text().strip(), "host": host(), "rounds": a.rounds, "seconds": a.seconds, "load": load,
             "qemu": first_line("qemu-system-x86_64", "--version"), "iperf3": " ".join(first_line("iperf3", "--version").split()[:2])}
    text = table(rows, facts)
    print("\n" + text)
    a.output.mkdir(parents=True, exist_ok=True)
    (a.output / "net.json").write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")
    (a.output / "net.md").write_text("# Network benchmark\n\n" + text + "\n![iperf3 in a guest, Mbit/s](net.svg)\n")
    svg(rows, a.output / "net.svg")


main()
