"""The jobs of the guest benchmark: what runs, which row of the table it belongs to, and what it needs.

A job is a shell command that writes its result to standard output, the same wherever it runs. /in holds the inputs, /bench the programs built
here; `binaries` come from Debian's packages. Compute jobs take about a second on a CPU of 2022, the others 0.1 to 0.5 s.
"""
import dataclasses

# row -> (what it is, goal for the ratio to native of its geometric mean, and of its worst job)
ROWS = {
    "compute": ("user compute", 1.6, 2.5),
    "exec": ("fork+exec, page faults, mmap", 3.0, None),
    "syscall": ("syscalls, context switches", 3.0, None),
    "short": ("short programs, first run", None, None),
    "warm": ("the same, second run", None, None),
}


@dataclasses.dataclass(frozen=True)
class Job:
    name: str
    row: str
    command: str
    binaries: tuple = ()
    what: str = ""


GCC = ("gcc", "as", "/usr/lib/gcc/x86_64-linux-gnu/12/cc1")
TIMES32 = "f=/in/binary; f=\"$f $f $f $f\"; f=\"$f $f $f $f\"; f=\"$f $f\"; "
CBC = "openssl enc -aes-128-cbc -K 00112233445566778899aabbccddeeff -iv 00 -nosalt -bufsize 1048576 -in /in/binary | tail -c 64"
PLAIN_SHA = "OPENSSL_ia32cap=:~0x20000000"
PLAIN_AES = "OPENSSL_ia32cap=~0x200000200000000"  # neither AES-NI nor PCLMULQDQ
PRIME = ("FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B"
            "302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7EDEE386BFB5A899FA5AE9F24117C4B1FE6"
            "49286651ECE65381FFFFFFFFFFFFFFFF")  # RFC 2409, second Oakley group: a 1024-bit prime

JOBS = [
    # Short programs come first, so that the guest has not translated anything of them yet.
    Job("ls", "short", "ls -l /usr/bin | wc -l", ("ls", "wc")),
    Job("cat-grep", "short", "cat /in/words | grep -c ing", ("cat", "grep")),
    Job("sed", "short", "sed -n '/^a/s/e/E/gp' /in/words | tail -n 3", ("sed", "tail")),
    Job("awk", "short", "mawk '{ n[length($1)]++ } END { print n[5], n[7] }' /in/words", ("mawk",)),
    Job("perl-e", "short", "perl -e 'use strict; my %h; $h{$_ % 17} += $_ for 1..1000; print join(\" \", map { $h{$_} } sort keys %h), \"\\n\"'", ("perl",)),
    Job("python-c", "short", "python3 -I -S -c 'import re, os; print(re.sub(\"a+\", \"b\", \"caaat\"), sum(range(1000)))'", ("python3",)),
    Job("gcc-hello", "short", "gcc -O1 -c /in/hello.c -o /tmp/hello.o && wc -c </tmp/hello.o; rm -f /tmp/hello.o", GCC + ("wc", "rm")),
    Job("openssl-hash", "short", "openssl dgst -sha256 /in/words", ("openssl",)),

    Job("xz", "compute", "head -c 3000000 /in/text | xz -6 -T1 -c", ("xz", "head"), "LZMA compressor"),
    Job("bzip2", "compute", "bzip2 -9 -c /in/text /in/binary", ("bzip2",), "Burrows-Wheeler compressor"),
    Job("zstd", "compute", "zstd -q -12 --single-thread -c /in/text /in/binary", ("zstd",), "LZ77 compressor"),
    Job("gzip", "compute", "gzip -n -6 -c /in/text /in/binary", ("gzip",), "deflate compressor"),
    Job("sha-ni", "compute", TIMES32 + "openssl dgst -sha256 $f $f", ("openssl",), "SHA instructions, where the guest sees them"),
    Job("sha256", "compute", TIMES32 + PLAIN_SHA + " openssl dgst -sha256 $f", ("openssl",), "SHA-256 by AVX2"),
    Job("aes-ni", "compute", TIMES32 + "for i in $f; do " + CBC + "; done | od -x", ("openssl", "tail", "od"), "AES instructions"),
    Job("aes", "compute", "export " + PLAIN_AES + "; for i in 1 2 3 4 5 6 7 8; do " + CBC + "; done | od -x", ("openssl", "tail", "od"), "AES by SSSE3 shuffles"),
    Job("bignum", "compute", "p=" + PRIME + "; p=\"$p $p $p $p\"; p=\"$p $p $p $p\"; openssl prime -hex $p $p $p $p", ("openssl",), "modular exponentiation as in RSA"),
    Job("perl", "compute", "perl /in/perl.pl", ("perl",), "interpreter: hashes, strings, regular expressions"),
    Job("python", "compute", "python3 -I -S /in/python.py", ("python3",), "interpreter: objects, floats, dicts"),
    Job("lua", "compute", "lua5.4 /in/lua.lua", ("lua5.4",), "interpreter: calls, tables"),
    Job("cc1", "compute", "/usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -O2 -o - /in/compile.i | wc -l", GCC + ("wc",), "C compiler, -O2"),
    Job("sqlite", "compute", "sqlite3 :memory: </in/sqlite.sql", ("sqlite3",), "database in memory"),
    Job("oggenc", "compute", "oggenc -Q -s 1 -o - /in/sound.wav", ("oggenc",), "floating-point codec"),
    Job("lame", "compute", "lame --quiet /in/sound.wav -", ("lame",), "floating-point codec"),
    Job("flac", "compute", "flac -s -8 -e -c /in/sound.wav", ("flac",), "integer and SIMD codec"),
    Job("vp8", "compute", "vpxenc -q --codec=vp8 --threads=1 --good --cpu-used=1 --ivf -o - /in/video.y4m", ("vpxenc",), "SIMD video codec"),
    Job("cwebp", "compute", "cwebp -quiet -m 6 -q 90 /in/picture.ppm -o -", ("cwebp",), "SIMD picture codec"),
    Job("sort", "compute", "sort --parallel=1 -S 400M /in/lines /in/lines /in/lines /in/lines | tail -n 1000", ("sort", "tail"), "comparisons, memory"),
    Job("gawk", "compute", "gawk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s += n[w] * length(w); print s }' /in/text /in/text /in/text /in/text /in/text", ("gawk",), "interpreter: fields, hashes"),
    Job("shell", "compute", "/bench/busybox sh -c 'i=0; s=0; while [ $i -lt 700000 ]; do i=$((i+1)); s=$(((s+i*i)%1000003)); done; echo $s'", (), "shell loop"),
    Job("bc", "compute", "echo 'scale=1900; 4*a(1)' | bc -l", ("bc",), "bignums by an interpreter"),
    Job("matmul", "compute", "/bench/micro matmul 600", (), "double matrix products"),

    Job("fork-exec", "exec", "/bench/micro exec 500 /usr/bin/true", ("true",), "a small program with libc"),
    Job("exec-static", "exec", "/bench/micro exec 800 /bench/micro", (), "a small static program"),
    Job("fork", "exec", "/bench/micro fork 2000"),
    Job("faults", "exec", "/bench/micro fault 40", (), "a fresh page each"),
    Job("mmap", "exec", "/bench/micro mmap 40000", (), "mmap, one fault, mprotect, munmap"),

    Job("getppid", "syscall", "/bench/micro getppid 2000000"),
    Job("1-byte-io", "syscall", "/bench/micro byte 500000", (), "read and write of one byte"),
    Job("pipe", "syscall", "/bench/micro pipe 50000", (), "two context switches between processes a turn"),
    Job("yield", "syscall", "/bench/micro yield 200000", (), "context switches between threads"),

    Job("churn", "smp", "/bench/micro churn 200000000", (), "what one thread of parallel does"),
    Job("parallel-1", "smp", "/bench/micro parallel 400000000 1"),
    Job("parallel-2", "smp", "/bench/micro parallel 400000000 2"),
]
BY_NAME = {j.name: j for j in JOBS}
# For the test of the benchmark itself.
QUICK = [
    BY_NAME["ls"],
    Job("loop", "compute", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i"),
    Job("few-calls", "syscall", "/bench/micro getppid 20000"),
]
