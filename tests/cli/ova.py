#!/usr/bin/env python3
"""`doppel import` and `doppel export`: a machine goes out and comes back the same; qemu-img reads the VMDKs inside; archives that lie are
refused with one line, and leave nothing behind.

usage: ova.py DOPPEL
"""
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET

from harness import Checks, Directory, one_line_error, run, skip

DOPPEL = sys.argv[1]
check = Checks()
d = Directory()
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"


def doppel(*args):
    return run(DOPPEL, *args)


def make_raw(name, size, seed):
    rng = random.Random(seed)
    path = d / name
    with open(path, "wb") as f:
        f.truncate(size)
        for i in range(12):
            f.seek(rng.randrange(size - 600_000))
            f.write(rng.randbytes(rng.randrange(1, 500_000)) if i % 2 else bytes([i]) * 300_000)
    return path


def members(path):
    with tarfile.open(path, "r:") as t:
        return [(m.name, t.extractfile(m).read()) for m in t]


def write_ova(path, files, **header):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as t:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for k, v in header.items():
                setattr(info, k, v)
            t.addfile(info, io.BytesIO(data))
    return path


def manifest(files, algorithm="sha256", form="{a}({n})= {h}\n"):
    return "".join(form.format(a=algorithm.upper(), n=n, h=hashlib.new(algorithm, b).hexdigest()) for n, b in files).encode()


def make_machine():
    home = d / "machines/web"
    os.makedirs(home)
    raw = make_raw("first.raw", 24 << 20, 1), make_raw("second.raw", (9 << 20) + 512, 2)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw[0], f"{home}/root.qcow2"], check=True)
    shutil.copy(raw[1], f"{home}/data, more.raw")
    config = {"memory": "2G", "cpus": 3, "disk": ["root.qcow2", "data,, more.raw,ro"], "net": ["user,mac=52:54:00:12:34:56", "user"]}
    with open(f"{home}/config.json", "w") as f:
        json.dump(config, f)
    return home, raw


def check_export(box, raw):
    files = members(box)
    names = [n for n, _ in files]
    check(names == ["web.ovf", "web.mf", "web-disk1.vmdk", "web-disk2.vmdk"], "the members, in the order of the standard", str(names))
    by_name = dict(files)
    lines = re.findall(r"SHA256\((.*)\)= ([0-9a-f]{64})\n", by_name["web.mf"].decode())
    check(sorted(n for n, _ in lines) == sorted(n for n in names if n != "web.mf") and
          all(hashlib.sha256(by_name[n]).hexdigest() == h for n, h in lines), "the manifest is right")
    root = ET.fromstring(by_name["web.ovf"])
    for i, disk in enumerate(root.iter(OVF + "Disk")):
        path = d.file(f"inside{i}.vmdk", by_name[f"web-disk{i + 1}.vmdk"])
        q = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw[i], path], capture_output=True, text=True)
        check(q.returncode == 0, f"qemu-img reads disk {i + 1}", q.stdout + q.stderr)
        q = json.loads(subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True).stdout)
        check(q["format-specific"]["data"]["create-type"] == "streamOptimized" and
              q["virtual-size"] == int(disk.get(OVF + "capacity")), f"disk {i + 1} is what the OVF says")
    sizes = {f.get(OVF + "href"): int(f.get(OVF + "size")) for f in root.iter(OVF + "File")}
    check(sizes == {n: len(b) for n, b in files if n.endswith(".vmdk")}, "sizes in the OVF", str(sizes))
    items = [{c.tag.replace(RASD, ""): c.text for c in item} for item in root.iter(OVF + "Item")]
    ids = [i["InstanceID"] for i in items]
    kinds = [i["ResourceType"] for i in items]
    check(len(set(ids)) == len(ids) and kinds.count("17") == 2 and kinds.count("10") == 2, "hardware in the OVF", str(items))
    check(all(list(i) == sorted(i) for i in items), "elements in the order that the schema wants")


def test_round_trip():
    home, raw = make_machine()
    box = d / "box.ova"
    r = doppel("export", home, box)
    check(r.returncode == 0, "export", r.stderr)
    check_export(box, raw)
    r = doppel("import", box, "--dir", d / "new")
    check(r.returncode == 0 and r.stdout.strip() == d / "new/web" and not r.stderr, "import", r.stdout + r.stderr)
    with open(d / "new/web/config.json") as f:
        config = json.load(f)
    check(config == {"memory": "2048M", "cpus": 3, "disk": ["disk1.qcow2", "disk2.qcow2"],
                     "net": ["user,mac=52:54:00:12:34:56", "user"]}, "the configuration came back", str(config))
    for i in 0, 1:
        q = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw[i], d / f"new/web/disk{i + 1}.qcow2"],
                           capture_output=True, text=True)
        check(q.returncode == 0, f"disk {i + 1} came back", q.stdout + q.stderr)
        q = subprocess.run(["qemu-img", "check", d / f"new/web/disk{i + 1}.qcow2"], capture_output=True)
        check(q.returncode == 0, f"disk {i + 1} is clean")
    check(sorted(os.listdir(d / "new/web")) == ["config.json", "disk1.qcow2", "disk2.qcow2"], "nothing else is there")
    one_line_error(check, doppel("import", box, "--dir", d / "new"), "exists already", "--name")
    r = doppel("import", box, "--dir", d / "new", "--name", "other", "-q")
    check(r.returncode == 0 and not r.stdout and os.path.exists(d / "new/other/config.json"), "import under another name", r.stderr)
    env = dict(os.environ, XDG_DATA_HOME=d / "data", HOME=d.path)
    if os.geteuid():
        r = run(DOPPEL, "import", box, "--name", "mine", env=env)
        check(r.returncode == 0 and os.path.exists(d / "data/doppel/machines/mine/config.json"), "import among the user's machines", r.stderr)
        r = run(DOPPEL, "export", "mine", d / "mine.ova", env=env)
        check(r.returncode == 0, "export by name", r.stderr)
    return box


def import_of(files, name="bad.ova", **header):
    return doppel("import", write_ova(d / name, files, **header), "--dir", d / "in")


def nothing_left():
    left = os.listdir(d / "in") if os.path.exists(d / "in") else []
    check(not left, "nothing is left behind", str(left))


def accepted(files, what):
    r = import_of(files)
    check(r.returncode == 0, f"accepted: {what}", r.stderr)
    if os.path.exists(d / "in"):
        shutil.rmtree(d / "in")
    return r


def test_manifests(box):
    files = members(box)
    ovf, _, *disks = files
    rest = [ovf, *disks]
    for algorithm in "sha1", "sha256", "sha512":
        accepted([ovf, ("web.mf", manifest(rest, algorithm)), *disks], f"manifest with {algorithm}")
    accepted([ovf, *disks, ("web.mf", manifest(rest, "sha1", "{a} ({n}) = {h}\r\n"))], "manifest at the end, other spaces")
    r = accepted([ovf, ("web.mf", manifest(rest)), ("web.cert", b"x"), *disks], "certificate")
    check("certificate" in r.stderr, "the certificate is noted", r.stderr)
    r = accepted([ovf, *disks], "no manifest")
    check("no manifest" in r.stderr, "and that is noted", r.stderr)
    for victim in rest:
        bad = manifest([(n, b + b"x" if n == victim[0] else b) for n, b in rest])
        one_line_error(check, import_of([ovf, ("web.mf", bad), *disks]), victim[0], "manifest")
    one_line_error(check, import_of([ovf, ("web.mf", manifest(rest[:-1])), *disks]), "does not list")
    one_line_error(check, import_of([ovf, ("web.mf", manifest(rest + [("ghost", b"")])), *disks]), "ghost")
    one_line_error(check, import_of([ovf, ("web.mf", b"MD5(web.ovf)= 00\n"), *disks]), "manifest")
    nothing_left()


# The shape of what VirtualBox and VMware write: other namespaces, a CD drive without a disc, sound, USB, old units, sizes in GB.
FOREIGN = """<?xml version="1.0"?>
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
 <References><File ovf:href="one.vmdk" ovf:id="file1"/><File ovf:id="iso" ovf:href="cd.iso"/></References>
 <DiskSection><Info>List</Info>
  <Disk ovf:capacity="24" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk1" ovf:fileRef="file1" vbox:uuid="x"/>
  <Disk ovf:capacity="1" ovf:capacityAllocationUnits="GigaBytes" ovf:diskId="empty"/></DiskSection>
 <VirtualSystem ovf:id="My Machine / 1"><Info>x</Info>
  <VirtualHardwareSection><Info>x</Info>
   <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>768</rasd:VirtualQuantity></Item>
   <Item><rasd:Caption>2 virtual CPU</rasd:Caption><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:ResourceType>20</rasd:ResourceType><rasd:ResourceSubType>AHCI</rasd:ResourceSubType></Item>
   <Item ovf:required="false"><rasd:ElementName>sound</rasd:ElementName><rasd:ResourceType>35</rasd:ResourceType></Item>
   <Item><rasd:ElementName>cdrom</rasd:ElementName><rasd:ResourceType>15</rasd:ResourceType></Item>
   <Item><rasd:HostResource>/disk/vmdisk1</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>
   <StorageItem><rasd:HostResource>ovf:/disk/empty</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></StorageItem>
   <EthernetPortItem><rasd:Connection>NAT</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></EthernetPortItem>
  </VirtualHardwareSection><vbox:Machine name="x"><a/></vbox:Machine></VirtualSystem></Envelope>"""


def test_foreign(box):
    _, _, disk, _ = members(box)
    files = [("box.ovf", FOREIGN.encode()), ("one.vmdk", disk[1]), ("cd.iso", b"x" * 2048)]
    files.insert(1, ("box.mf", manifest(files, "sha1")))
    for form in tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT:
        path = d / "foreign.ova"
        with tarfile.open(path, "w", format=form) as t:
            for name, data in files:
                info = tarfile.TarInfo("./" + name if form == tarfile.GNU_FORMAT else name)
                info.size = len(data)
                t.addfile(info, io.BytesIO(data))
        r = doppel("import", path, "--dir", d / "in")
        made = d / "in/My-Machine---1"
        check(r.returncode == 0 and r.stdout.strip() == made and "sound" in r.stderr, "another program's OVA", r.stderr + r.stdout)
        with open(made + "/config.json") as f:
            check(json.load(f) == {"memory": "768M", "cpus": 2, "disk": ["disk1.qcow2", "disk2.qcow2"], "net": ["user"]}, "its configuration")
        q = json.loads(subprocess.run(["qemu-img", "info", "--output=json", made + "/disk2.qcow2"], capture_output=True).stdout)
        check(q["virtual-size"] == 1 << 30, "its empty disk")
        shutil.rmtree(d / "in")


def test_hostile(box):
    ovf, _, *disks = members(box)
    text = ovf[1].decode()

    def with_ovf(new, extra=()):
        return import_of([("web.ovf", new.encode()), *disks, *extra])

    for name in "../evil.vmdk", "/etc/evil.vmdk", "a/b.vmdk", ".hidden":
        one_line_error(check, import_of([ovf, (name, b"x"), *disks]), "plain")
        one_line_error(check, with_ovf(text.replace("web-disk1.vmdk", name)), "not")
    one_line_error(check, import_of([ovf, disks[0]]), "not in the archive")
    one_line_error(check, import_of([ovf, disks[0], *disks]), "two members")
    one_line_error(check, import_of([*disks, ovf]), "begin")
    one_line_error(check, import_of([]), "empty")
    one_line_error(check, import_of([ovf, *disks], type=tarfile.SYMTYPE, linkname="/etc/passwd"), "plain")
    one_line_error(check, import_of([ovf, *disks], type=tarfile.DIRTYPE), "plain")
    bomb = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">]>'
    one_line_error(check, with_ovf(text.replace("<ovf:Envelope", bomb + "<ovf:Envelope", 1)), "document type")
    xxe = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    one_line_error(check, with_ovf(text.replace("<ovf:Envelope", xxe + "<ovf:Envelope", 1).replace(">web<", ">&x;<")), "document type")
    one_line_error(check, import_of([("web.ovf", text.replace("UTF-8", "UTF-16", 1).encode("utf-16")), *disks]), "OVF")
    one_line_error(check, with_ovf("<a>" * 100000), "XML")
    one_line_error(check, with_ovf(text[:-30]), "XML")
    one_line_error(check, with_ovf("<Envelope/>"), "VirtualSystem")
    one_line_error(check, with_ovf(text.replace(">2048<", ">99999999999999999999<")), "memory")
    one_line_error(check, with_ovf(text.replace(">2048<", ">-1<")), "memory")
    one_line_error(check, with_ovf(text.replace('<rasd:VirtualQuantity>3<', '<rasd:VirtualQuantity>0<')), "CPU")
    one_line_error(check, with_ovf(re.sub(r'ovf:capacity="\d+"', 'ovf:capacity="18446744073709551615"', text)), "size")
    one_line_error(check, with_ovf(text.replace('ovf:fileRef="file2"', 'ovf:fileRef="file1"')), "two disks")
    one_line_error(check, with_ovf(text.replace('ovf:fileRef="file2"', 'ovf:fileRef="file9"')), "file9")
    one_line_error(check, with_ovf(text.replace("vmdisk1</rasd", "vmdisk7</rasd")), "vmdisk7")
    one_line_error(check, with_ovf(text.replace('ovf:id="file1"', 'ovf:id="file1" ovf:compression="gzip"')), "gzip")
    one_line_error(check, import_of([ovf, (disks[0][0], disks[0][1][: len(disks[0][1]) // 2]), disks[1]]), "cut short")
    one_line_error(check, import_of([ovf, (disks[0][0], b"\0" * 100000), disks[1]]), "VMDK")
    flat = b'# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/hostname" 0\n'
    one_line_error(check, import_of([ovf, (disks[0][0], flat), disks[1]]), "outside")
    nothing_left()


def test_huge_members(box):
    """Sizes that the archive cannot have, and an archive that ends early."""
    with open(box, "rb") as f:
        data = bytearray(f.read())
    at = data.index(b"web-disk1.vmdk")
    while at % 512:
        at = data.index(b"web-disk1.vmdk", at + 1)
    data[at + 124:at + 136] = b"\x80" + b"\0" * 3 + (1 << 60).to_bytes(8, "big")
    data[at + 148:at + 156] = b" " * 8
    data[at + 148:at + 156] = b"%06o\0 " % sum(data[at:at + 512])
    one_line_error(check, doppel("import", d.file("huge.ova", bytes(data)), "--dir", d / "in"), "larger than the archive")
    with open(box, "rb") as f:
        data = f.read()
    for part in 0.001, 0.3, 0.7:
        r = doppel("import", d.file("cut.ova", data[: int(len(data) * part)]), "--dir", d / "in")
        check(r.returncode == 125 and len(r.stderr.splitlines()) == 1, f"cut to {part}", r.stderr)
    one_line_error(check, doppel("import", d.file("zip.ova", b"PK\3\4" + os.urandom(5000)), "--dir", d / "in"), "zip.ova")
    one_line_error(check, doppel("import", d / "absent.ova", "--dir", d / "in"), "No such file")
    one_line_error(check, doppel("import", box, "--dir", d / "in", "--name", "../x"), "name")
    one_line_error(check, doppel("export", d / "nowhere/x", d / "y.ova"), "no machine")
    one_line_error(check, doppel("export", d / "machines/web", d / "no/such/y.ova"), "cannot be made")
    nothing_left()
    check(not [n for n in os.listdir(d.path) if n.startswith(".")], "no temporary names are left")


def main():
    if not shutil.which("qemu-img"):
        skip("no qemu-img here (package qemu-utils)")
    try:
        box = test_round_trip()
        test_manifests(box)
        test_foreign(box)
        test_hostile(box)
        test_huge_members(box)
    finally:
        d.remove()
    check.finish()


main()
