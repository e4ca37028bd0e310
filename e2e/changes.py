"""Copies what has changed since a snapshot to another export, with libnbd alone.

usage: changes.py SNAPSHOT_URI BASE TARGET_URI
"""

import sys

import nbd

source_uri, base, target_uri = sys.argv[1:]
bitmap = "qemu:dirty-bitmap:" + base
most = 32 << 20  # of one request


def extents(h, context, offset, length):
    """Yields offset, length and flags of the extents of a range."""
    while length > 0:
        found = []

        def note(name, _, entries, __):
            if name == context:
                found.extend(zip(entries[::2], entries[1::2]))
            return 0

        h.block_status(min(length, 1 << 30), offset, note)
        for n, flags in found:
            n = min(n, length)
            yield offset, n, flags
            offset, length = offset + n, length - n


source, target = nbd.NBD(), nbd.NBD()
source.add_meta_context("base:allocation")
source.add_meta_context(bitmap)
source.connect_uri(source_uri)
target.connect_uri(target_uri)
assert source.can_meta_context(bitmap), "the server does not know what has changed"
copied = 0
for offset, length, dirty in extents(source, bitmap, 0, source.get_size()):
    if not dirty & 1:
        continue
    for at, n, state in extents(source, "base:allocation", offset, length):
        while n > 0:
            part = min(n, most)
            if state & nbd.STATE_ZERO:
                target.zero(part, at)
            else:
                target.pwrite(source.pread(part, at), at)
                copied += part
            at, n = at + part, n - part
target.flush()
target.shutdown()
source.shutdown()
print(copied)
