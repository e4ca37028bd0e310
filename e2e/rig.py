"""What the libnbd scripts share: the server's exports, and its commands.

A script is a list of cases, one function each, named by what it shows. Called
with a case's name it runs that case; with none it lists them. The environment
says where the server is: TIDEMARK_SOCKET for NBD, TIDEMARK_API for commands.
"""

import inspect
import json
import os
import struct
import socket
import subprocess
import sys

import nbd

SOCKET = os.environ.get("TIDEMARK_SOCKET", "")
BLOCK = 4096


def block(letter):
    """A block full of one letter."""
    return letter.encode() * BLOCK


ZERO = bytes(BLOCK)


def connect(export, prepare=lambda h: None):
    """Open an export; prepare sets up the handle before it connects."""
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.add_meta_context("qemu:allocation-depth")
    h.set_export_name(export)
    prepare(h)
    h.connect_unix(SOCKET)
    return h


def read(export, offset, count=BLOCK):
    """What a new connection reads."""
    h = connect(export)
    data = bytes(h.pread(count, offset))
    h.shutdown()
    return data


def refused(errno, call, *args):
    """call must fail with that errno, as the server's answer or libnbd's."""
    try:
        call(*args)
    except nbd.Error as e:
        assert e.errno == errno, f"{e.errno}: {e.string}, want {errno}"
        return e.string
    raise AssertionError(f"it went well, want {errno}")


def start(*args):
    """Start a command of tidemark."""
    return subprocess.Popen(["tidemark", *args, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process, code=0):
    """Wait for a command; it must exit with code. Returns its JSON, if any."""
    out, err = process.communicate()
    assert process.returncode == code, f"{process.args}: exit code {process.returncode}, want {code}: {out}{err}"
    return json.loads(out) if out else None


def tidemark(*args, code=0):
    """Run a command of tidemark to its end."""
    return end(start(*args), code)


def preserve(*volumes, name, code=0, wait="60s", more=()):
    """Run preserve; its report."""
    return tidemark("preserve", *volumes, "--name", name, "--wait", wait, *more, code=code)


def cut(*volumes, name):
    """Make a cut that older processes hold open: the preserve is kept, draining."""
    report = preserve(*volumes, name=name, wait="1ms", more=["--on-timeout", "keep"], code=5)
    assert all(s["state"] == "draining" for s in report["snapshots"]), report
    return report


def awaitable(*volumes, name, more=()):
    """Start a preserve that will wait, and return when its cut is made."""
    process = start("preserve", *volumes, "--name", name, *more)
    full = f"{volumes[0]}@{name}"
    while full not in (f"{s['volume']}@{s['snapshot']}" for s in tidemark("snapshot", "list")["snapshots"]):
        assert process.poll() is None, end(process)
    return process


def settle(volume):
    """Wait until all snapshots of a volume so far are sealed: they seal in order."""
    tidemark("preserve", volume, "--until", "sealed")


def show(snapshot):
    """A snapshot's JSON."""
    return tidemark("snapshot", "show", snapshot)


def begin(*volumes):
    """Begin an explicit process; its token."""
    flags = [a for v in volumes for a in ("--volume", v)]
    return tidemark("process", "begin", *flags)["token"]


class Wire:
    """A connection by hand, for what libnbd does not send."""

    def __init__(self, flags=3):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(SOCKET)
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        assert struct.unpack(">H", self.take(2)) == (3,)
        self.s.sendall(struct.pack(">I", flags))

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.s.recv(count - len(data))
            assert more, "the server hung up"
            data += more
        return data

    def option(self, number, data=b""):
        """Send an option; the replies as (type, data)."""
        self.s.sendall(struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data)
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, option) == (0x3E889045565A9, number)
            replies.append((kind, self.take(length)))
            if kind == 1 or kind >> 31:
                return replies

    def go(self, export):
        """NBD_OPT_GO; the last reply."""
        name = export.encode()
        return self.option(7, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))[-1]

    def request(self, command, flags=0, offset=0, length=0, payload=b""):
        """Send a command that is answered by a simple reply; its error value."""
        self.s.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, length) + payload)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (0x67446698, 7)
        return error


def main(script):
    """Run the case that the command line names, or list all."""
    cases = {
        name: case
        for name, case in script.items()
        if inspect.isfunction(case) and case.__module__ == "__main__" and not name.startswith("_")
    }
    if len(sys.argv) > 1:
        cases[sys.argv[1]](*sys.argv[2:])
    else:
        print(*cases, sep="\n")
