#!/usr/bin/env python3
"""Boot configurations on disks: what doppel finds on images that mke2fs, mkfs.vfat and sfdisk made.

usage: disk_test.py PROBE [NAME]...     PROBE: the program of disk_probe.c
"""
import os
import shutil
import subprocess
import sys
import tempfile

PROBE = sys.argv[1]
ONLY = sys.argv[2:]
os.environ["PATH"] += ":/usr/sbin:/sbin"
UUID = "0a1b2c3d-1111-4222-8333-444455556666"
BOOT_UUID = "f00df00d-aaaa-4bbb-8ccc-ddddeeeeffff"
K1, K2, I1, I2 = b"kernel one " * 5000, b"kernel two " * 4000, b"initrd one!" * 9001, b"microcode"
failed = ran = 0


def skip(why):
    print("skipped:", why)
    sys.exit(77)


def run(*command, **more):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)


def fnv(data):
    h = 2166136261
    for b in data:
        h = (h ^ b) * 16777619 & 0xFFFFFFFF
    return f"{h:08x}"


def blob(data):
    return f"{len(data)} {fnv(data)}"


class Image:
    """A raw disk; file systems are dicts of path to bytes, or to str for a symbolic link."""

    def __init__(self):
        self.d = tempfile.mkdtemp(prefix="doppel-disk-")
        self.path = os.path.join(self.d, "disk.raw")

    def tree(self, files):
        top = tempfile.mkdtemp(dir=self.d)
        for name, data in files.items():
            path = top + name
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if isinstance(data, str):
                os.symlink(data, path)
            else:
                with open(path, "wb") as f:
                    f.write(data)
        return top

    def ext(self, files, off=0, mib=8, kind="ext4", uuid=UUID, label="root", options=()):
        with open(self.path, "ab") as f:
            f.truncate(max(os.path.getsize(self.path), off + mib << 20))
        run("mke2fs", "-q", "-F", "-t", kind, "-U", uuid, "-L", label, "-d", self.tree(files), *options,
            "-E", f"offset={off << 20}", self.path, f"{mib}m")

    def fat(self, files, off=0, mib=40, bits=32):
        part = os.path.join(self.d, "fat")
        with open(part, "wb") as f:
            f.truncate(mib << 20)
        run("mkfs.vfat", "-F", str(bits), "-i", "12345678", "-n", "ESP", part)
        for name in sorted(os.listdir(top := self.tree(files))):
            run("mcopy", "-s", "-i", part, os.path.join(top, name), "::/")
        with open(self.path, "ab") as f:
            f.truncate(max(os.path.getsize(self.path), off + mib << 20))
        run("dd", "if=" + part, "of=" + self.path, "bs=1M", f"seek={off}", "conv=notrunc")

    def table(self, label, *parts):
        """Each part: (first MiB, MiB, type). Makes the disk a little larger: GPT's backup lies at its end."""
        with open(self.path, "ab") as f:
            f.truncate(os.path.getsize(self.path) + (1 << 20))
        lines = [f"label: {label}"] + [f"start={a * 2048}, size={n * 2048}, type={t}" for a, n, t in parts]
        run("sfdisk", "--wipe-partitions", "never", self.path, input="\n".join(lines).encode())

    def probe(self):
        p = subprocess.run([PROBE, self.path], stdout=subprocess.PIPE, timeout=100, check=False)
        return dict(line.split(" ", 1) for line in p.stdout.decode(errors="replace").splitlines() if " " in line)

    def remove(self):
        shutil.rmtree(self.d)


def case(name, make, **want):
    """want: title, cmdline, kernel, initrd, error: bytes are compared by checksum, words otherwise must be contained; '=' in front: equal."""
    global failed, ran
    if ONLY and name not in ONLY:
        return
    ran += 1
    image = Image()
    try:
        make(image)
        got = image.probe()
    finally:
        image.remove()
    bad = [] if "but" not in got else ["the two ways differ"]
    for key, value in want.items():
        value = blob(value) if isinstance(value, bytes) else value
        if (got.get(key) != value[1:]) if value.startswith("=") else (value not in got.get(key, "")):
            bad.append(f"{key} is not {value}")
    if ("error" in got) != ("error" in want):
        bad.append("failed" if "error" in got else "did not fail")
    print(f"{'FAILED' if bad else 'ok'}: {name}" + "".join(f"\n   {b}" for b in bad + ([str(got)] if bad else [])))
    failed += bool(bad)


def text(s):
    return s.encode()


KERNELS = {"/boot/vmlinuz-1": K1, "/boot/initrd.img-1": I1, "/boot/vmlinuz-2": K2}

# In the shape of what update-grub writes.
MENU = """
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
else
   set default="@DEFAULT@"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then saved_entry="${chosen}"; save_env saved_entry; fi
}
if loadfont unicode ; then set gfxmode=auto ; load_video ; fi
menuentry 'The first' --class os $menuentry_id_option 'simple' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd0,gpt9'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1  @UUID@
	else
	  search --no-floppy --fs-uuid --set=root @UUID@
	fi
	echo	'Loading ...'
	linux	@DIR@/vmlinuz-1 root=UUID=@UUID@ ro  quiet console=tty0 # a comment
	initrd	@DIR@/initrd.img-1
}
submenu 'More' $menuentry_id_option 'more' {
	menuentry 'First again' --class os $menuentry_id_option 'more-1' {
		linux	@DIR@/vmlinuz-1 root=UUID=@UUID@ ro
	}
	menuentry "It's the second (recovery mode)" --class os $menuentry_id_option 'more-2' {
		search --no-floppy --fs-uuid --set=root @UUID@
		linux	@DIR@/vmlinuz-2 root=UUID=@UUID@ ro single "words with spaces" a\\ b 'c$d' console=ttyS0
	}
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"""


def menu(default="0", uuid=UUID, where="/boot"):
    return text(MENU.replace("@DEFAULT@", default).replace("@UUID@", uuid).replace("@DIR@", where))


def env(**values):
    s = "# GRUB Environment Block\n" + "".join(f"{k}={v}\n" for k, v in values.items())
    return text(s + "#" * (1024 - len(s)))


def gpt_root(files, **more):
    def make(i):
        i.ext(files, off=1, **more)
        i.table("gpt", (1, more.get("mib", 8), "L"))
    return make


def grub(name, config, files=None, **want):
    case("grub: " + name, gpt_root({**KERNELS, **(files or {}), "/boot/grub/grub.cfg": config}), **want)


def grub_cases():
    first = {"kernel": K1, "initrd": I1, "title": "'The first' of partition 1 (ext4): /boot/vmlinuz-1"}
    second = {"kernel": K2, "initrd": b"", "title": "It's the second",
              "cmdline": f"=BOOT_IMAGE=/boot/vmlinuz-2 root=UUID={UUID} ro single \"words with spaces\" \"a b\" c$d console=ttyS0"}
    grub("the default", menu(), **first,
         cmdline=f"=BOOT_IMAGE=/boot/vmlinuz-1 root=UUID={UUID} ro quiet console=tty0")
    grub("entry of a submenu by number", menu("1>1"), **second)
    grub("by identifiers", menu("more>more-2"), **second)
    grub("by titles", menu("More>It's the second (recovery mode)"), **second)
    grub("a submenu", menu("more"), kernel=K1, initrd=b"", title="'First again'")
    grub("an entry that is not there", menu("nobody"), **first)
    grub("saved", menu("${saved_entry}"), {"/boot/grub/grubenv": env(saved_entry="more>more-2")}, **second)
    grub("nothing saved", menu("${saved_entry}"), {"/boot/grub/grubenv": env()}, **first)
    grub("next_entry is left alone", menu(), {"/boot/grub/grubenv": env(next_entry="1>1")}, **first)
    grub("custom.cfg is read", menu("mine"), {"/boot/grub/custom.cfg": b"menuentry mine --id mine { linux /boot/vmlinuz-2 x; }"},
         kernel=K2, cmdline="=BOOT_IMAGE=/boot/vmlinuz-2 x console=ttyS0", title="'mine'")
    grub("several initrds", b"menuentry 'a' { linux /boot/vmlinuz-1\n initrd /boot/ucode /boot/initrd.img-1\n}", {"/boot/ucode": I2},
         kernel=K1, initrd=I2 + bytes(-len(I2) % 4) + I1)
    grub("device names", b"menuentry a {\n linux (hd0,gpt1)/boot/vmlinuz-2\n initrd ($root)/boot/initrd.img-1\n}", kernel=K2, initrd=I1)
    grub("search by label and file", b"set root=x\nmenuentry a {\n search --label --set=root root\n linux /boot/vmlinuz-2\n set root=y\n"
         b" search --file --set=root /boot/initrd.img-1\n initrd /boot/initrd.img-1\n}", kernel=K2, initrd=I1)
    grub("elif, test, not, and, or", b"set a=1\nif [ ! -e /nothing -a $a -eq 2 ]; then x=1\nelif test -f /boot/vmlinuz-2 -a \"$a\" != 2 ; then\n"
         b"x=2; else x=1; fi\nif false ; then set x=1 ; fi\nif ! [ $x = 1 -o $x = 3 ]; then menuentry y { linux /boot/vmlinuz-$x; }; fi",
         kernel=K2)
    grub("functions and loops are not run", b"function f { menuentry x { linux /boot/no; } ; }\nfor i in 1 2; do menuentry z { linux /boot/no; } ;"
         b" done\nwhile true; do if true; then x=1; fi; done\nmenuentry a { linux /boot/vmlinuz-1; }", kernel=K1)
    grub("symbolic links", b"menuentry a { linux /vmlinuz; initrd /initrd.img; }", {"/vmlinuz": "boot/vmlinuz-2", "/initrd.img": "/boot/initrd.img-1"},
         kernel=K2, initrd=I1, title="'a' of partition 1 (ext4): /vmlinuz")
    grub("no kernel", b"menuentry 'a\x1b[31m' { chainloader +1; }", error="entry 'a?[31m': it loads no Linux kernel")
    grub("a missing kernel", b"menuentry a { linux /boot/nothing; }", error="partition 1 (ext4): /boot/nothing: no such file")
    grub("a missing initrd", b"menuentry a { linux /boot/vmlinuz-1; initrd /boot/nothing; }", error="/boot/nothing: no such file")
    grub("a device that cannot be read", b"menuentry a { set root=lvm/x; linux /vmlinuz; }", error="/vmlinuz is on no file system that can be read")
    grub("a kernel that is a directory", b"menuentry a { linux /boot; }", error="/boot: no such file")
    grub("an endless link", b"menuentry a { linux /a; }", {"/a": "b", "/b": "a"}, error="/a: ")
    grub("too long a command line", b"menuentry a { linux /boot/vmlinuz-1 " + b"x " * 3000 + b"; }", error="too long")
    grub("a long command line", b"menuentry a { linux /boot/vmlinuz-1 " + b"x " * 500 + b"; }", cmdline="x " * 500 + "console")
    grub("no menu, but links", b"set x=1", {"/vmlinuz": "boot/vmlinuz-2", "/initrd.img": "boot/initrd.img-1"},
         kernel=K2, initrd=I1, cmdline=f"=root=UUID={UUID} ro console=ttyS0")
    grub("sources itself", b"source $prefix/grub.cfg\nmenuentry a { linux /boot/vmlinuz-1; }", kernel=K1)
    grub("quotes never closed", b"menuentry 'a { linux /boot/vmlinuz-1; }", error="nothing to boot")
    grub("blocks never closed", b"menuentry a { linux /boot/vmlinuz-1\nif true; then", error="nothing to boot")


def layout_cases():
    def separate_boot(i):
        i.ext({"/vmlinuz-1": K1, "/initrd.img-1": I1, "/grub/grub.cfg": menu(uuid=BOOT_UUID, where="")}, off=1, kind="ext2", uuid=BOOT_UUID, label="boot")
        i.ext({"/etc/fstab": b"x"}, off=9)
        i.table("dos", (1, 8, "83"), (9, 8, "83"))
    case("a separate /boot on MBR", separate_boot, kernel=K1, initrd=I1, title="partition 1 (ext2): /vmlinuz-1",
         cmdline=f"=BOOT_IMAGE=/vmlinuz-1 root=UUID={BOOT_UUID} ro quiet console=tty0")
    for kind in "ext2", "ext3", "ext4":
        case(f"no partitions, {kind}", lambda i: i.ext({**KERNELS, "/boot/grub/grub.cfg": b"menuentry a { linux /boot/vmlinuz-1 y; }"}, kind=kind, mib=16),
             kernel=K1, title=f"'a' of no partitions ({kind}): /boot/vmlinuz-1")
    case("ext4 with other features", gpt_root({**KERNELS, "/boot/grub/grub.cfg": menu("1>1")}, mib=24, options=(
        "-b", "4096", "-O", "64bit,metadata_csum,inline_data,bigalloc,meta_bg,^resize_inode", "-I", "1024")), kernel=K2)
    case("1 KiB blocks, no extents", gpt_root({**KERNELS, "/boot/grub/grub.cfg": menu("1>1")}, options=("-b", "1024", "-O", "^extents,^64bit")), kernel=K2)
    case("links only, no initrd", gpt_root({"/boot/vmlinuz-2": K2, "/vmlinuz": "boot/vmlinuz-2"}), kernel=K2, initrd=b"",
         cmdline="=root=/dev/vda1 ro console=ttyS0", title="'the newest kernel'")

    def unclean(i):
        gpt_root({**KERNELS, "/boot/grub/grub.cfg": menu()})(i)
        part = os.path.join(i.d, "part")
        run("dd", "if=" + i.path, "of=" + part, "bs=1M", "skip=1", "count=8")
        run("debugfs", "-w", "-R", "feature needs_recovery", part)
        run("dd", "if=" + part, "of=" + i.path, "bs=1M", "seek=1", "conv=notrunc")
    case("a journal that was not replayed", unclean, kernel=K1)

    def second_disk_part(i):
        i.ext({"/etc/fstab": b"x"}, off=1, uuid=BOOT_UUID)
        i.ext({**KERNELS, "/boot/grub/grub.cfg": menu()}, off=9)
        i.table("gpt", (1, 8, "L"), (9, 8, "L"))
    case("the second partition", second_disk_part, kernel=K1, title="partition 2 (ext4)")

    def empty(i):
        with open(i.path, "wb") as f:
            f.truncate(4 << 20)
    case("an empty disk", empty, error="nothing to boot was found on it: no partitions (nothing known)", hint="--kernel")

    def others(i):
        with open(i.path, "wb") as f:
            f.truncate(12 << 20)
            for at, magic in ((1 << 20), b"XFSB"), ((3 << 20) + 0x218, b"LVM2 001"), ((5 << 20) + 0x10040, b"_BHRfS_M"), ((7 << 20), b"LUKS\xba\xbe"):
                f.seek(at)
                f.write(magic)
        i.table("gpt", (1, 2, "L"), (3, 2, "L"), (5, 2, "L"), (7, 2, "L"))
    case("what cannot be read", others,
         error="partition 1 (XFS), partition 2 (LVM), partition 3 (btrfs), partition 4 (LUKS, encrypted)")


def bls_cases():
    def entry(title, version, key="debian", kernel="/linux-1", more=""):
        return text(f"title {title}\nversion {version}\nsort-key {key}\n# comment\n\nlinux {kernel}\ninitrd /initrd-1\noptions root=UUID={UUID}\n"
                    f"options rw quiet\n{more}")
    entries = {"/linux-1": K1, "/linux-2": K2, "/initrd-1": I1, "/ucode": I2, "/loader/entries/a-9.conf": entry("Nine", "6.1.9"),
               "/loader/entries/a-10+3-1.conf": entry("Ten", "6.1.10", kernel="/linux-2", more="initrd /ucode\n"),
               "/loader/entries/rescue.conf": entry("Rescue", "1", key="zz"), "/loader/entries/broken.conf": b"title x\n"}

    def esp(files, bits=32, mib=40):
        def make(i):
            i.fat(files, off=1, mib=mib, bits=bits)
            i.ext({"/etc/fstab": b"x"}, off=1 + mib)
            i.table("gpt", (1, mib, "U"), (1 + mib, 8, "L"))
        return make
    newest = {"kernel": K2, "initrd": I1 + bytes(-len(I1) % 4) + I2, "title": "'Ten' of partition 1 (FAT): /linux-2",
              "cmdline": f"=root=UUID={UUID} rw quiet console=ttyS0"}
    case("entries: the newest, FAT32", esp(entries), **newest)
    case("entries: FAT16", esp(entries, bits=16), **newest)
    case("entries: FAT12", esp(entries, bits=12, mib=4), **newest)
    for wanted, title in ("a-9", "Nine"), ("a-9.conf", "Nine"), ("resc*", "Rescue"), ("a-10", "Ten"), ("a-10.conf", "Ten"), ("none", "Ten"):
        case("entries: default " + wanted, esp({**entries, "/loader/loader.conf": text(f"timeout 3\ndefault  {wanted}\n")}, bits=12, mib=4), title=f"'{title}'")
    case("entries: long names and folders", esp({"/EFI/Some Folder With A Long Name/Кernel image.efi": K1,
         "/loader/entries/x.conf": "title a\nlinux /efi/some folder with a long name/Кernel image.efi\n".encode()}), kernel=K1)
    case("entries: on ext4 below /boot", gpt_root({"/boot/loader/entries/a.conf": text("title A\nlinux /boot/k\noptions a b\n"), "/boot/k": K2}),
         kernel=K2, cmdline="=a b console=ttyS0", title="'A'")
    case("entries: blscfg with variables", gpt_root({
        "/grub2/grub.cfg": b"load_env -f $prefix/grubenv\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n", "/k1": K1, "/k2": K2,
        "/grub2/grubenv": env(saved_entry="id-1", kernelopts="root=UUID=x ro"),
        "/loader/entries/id-1.conf": b"title one\nversion 1\nlinux /k1\noptions $kernelopts $tuned_params quiet\n",
        "/loader/entries/id-2.conf": b"title two\nversion 2\nlinux /k2\n"}), kernel=K1, cmdline="=root=UUID=x ro  quiet console=ttyS0", title="'one'")


for tool in "mke2fs", "sfdisk", "mkfs.vfat", "mcopy", "debugfs", "dd":
    if not shutil.which(tool):
        skip(f"no {tool} (tools/setup installs it)")
grub_cases()
layout_cases()
bls_cases()
print(f"{ran - failed} of {ran}")
sys.exit(failed > 0)
