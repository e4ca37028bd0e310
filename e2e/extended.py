"""Extended headers, through a libnbd that has them. Volume db is there, 1 TiB."""

import nbd

import rig
from rig import BLOCK, ZERO, block, connect, main, refused, tidemark

SIZE = 1 << 40
GIB = 1 << 30
DATA, HOLE = 0, nbd.STATE_HOLE | nbd.STATE_ZERO
BOTH = ["base:allocation", "qemu:allocation-depth"]


def _status(h, count, offset, flags=0, only=None):
    """Block status as {context: [(length, state), ...]}."""
    found = {}

    def note(context, _, entries, __):
        found[context] = entries

    if only is None:
        h.block_status_64(count, offset, note, flags)
    else:
        h.block_status_filter(count, offset, only, note, flags)
    return found


def extended_headers_are_agreed_on_or_left():
    h = connect("db")
    assert h.get_extended_headers_negotiated() and h.get_structured_replies_negotiated()
    assert h.can_block_status_payload() and h.can_df() and h.can_cache()
    h = connect("db", lambda h: h.set_request_extended_headers(False))
    assert not h.get_extended_headers_negotiated() and h.get_structured_replies_negotiated()
    assert not h.can_block_status_payload()
    h.pwrite(block("a"), 0)
    assert h.pread(2 * BLOCK, 0) == block("a") + ZERO


def options_one_by_one():
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_request_structured_replies(False)
    h.set_export_name("db")
    h.connect_unix(rig.SOCKET)
    assert h.opt_structured_reply() and not h.get_extended_headers_negotiated()
    assert h.opt_extended_headers() and h.get_extended_headers_negotiated()
    assert not h.opt_structured_reply()  # it can't be taken back
    h.opt_info()
    assert h.can_block_status_payload()
    h.opt_go()
    assert not h.can_block_status_payload()  # no context was selected
    h.pwrite(block("o"), BLOCK)
    assert h.pread(2 * BLOCK, 0) == ZERO + block("o")


def ranges_beyond_4_gib_are_one_request():
    h = connect("db")
    for at in (0, 5 * GIB, SIZE - BLOCK):
        h.pwrite(block("x"), at)
    assert _status(h, SIZE, 0) == {
        BOTH[0]: [(BLOCK, DATA), (5 * GIB - BLOCK, HOLE), (BLOCK, DATA), (SIZE - 5 * GIB - 2 * BLOCK, HOLE), (BLOCK, DATA)],
        BOTH[1]: [(BLOCK, 1), (5 * GIB - BLOCK, 0), (BLOCK, 1), (SIZE - 5 * GIB - 2 * BLOCK, 0), (BLOCK, 1)],
    }
    h.cache(SIZE, 0)
    h.trim(6 * GIB, 0)
    assert h.pread(BLOCK, 5 * GIB) == ZERO and h.pread(BLOCK, SIZE - BLOCK) == block("x")
    h.zero(SIZE - GIB, GIB, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(BLOCK, SIZE - BLOCK) == ZERO
    assert _status(h, SIZE, 0)[BOTH[0]] == [(SIZE, HOLE)]


def effects_beyond_the_end_are_refused():
    h = connect("db")
    h.set_strict_mode(nbd.STRICT_AUTO_FLAG)
    h.pwrite(block("k"), 0)
    refused("EINVAL", h.trim, SIZE, BLOCK)
    refused("EINVAL", h.cache, SIZE + 1, 0)
    refused("ENOSPC", h.zero, SIZE, 1)
    refused("EINVAL", h.trim, (1 << 63) - 1, 0)
    refused("EINVAL", h.block_status_64, SIZE + 1, 0, lambda *_: 0)
    refused("EINVAL", h.pread, (32 << 20) + 1, 0)
    assert h.pread(BLOCK, 0) == block("k")


def block_status_is_of_the_contexts_that_are_named():
    h = connect("db")
    h.pwrite(block("b"), BLOCK)
    want = {BOTH[0]: [(BLOCK, HOLE), (BLOCK, DATA)], BOTH[1]: [(BLOCK, 0), (BLOCK, 1)]}
    for only in ([BOTH[0]], [BOTH[1]], BOTH):
        assert _status(h, 2 * BLOCK, 0, only=only) == {c: want[c] for c in only}
    assert _status(h, 8 * GIB, 2 * BLOCK, nbd.CMD_FLAG_REQ_ONE, [BOTH[0]]) == {BOTH[0]: [(8 * GIB, HOLE)]}


def writes_and_reads_are_as_ever():
    h = connect("db")
    data = bytes(range(256)) * (1 << 17)  # 32 MiB
    h.pwrite(data, 12345)
    h.flush()
    assert h.pread(len(data), 12345) == data
    h.pwrite(b"f" * 7, 1, nbd.CMD_FLAG_FUA)
    tidemark("preserve", "db", "--name", "p")
    h.pwrite(b"g" * 7, 1)
    assert connect("db@p").pread(9, 0) == b"\0" + b"f" * 7 + b"\0"
    chunks = []
    h.pread_structured(2 * BLOCK, 0, lambda data, offset, status, _: chunks.append((len(data), offset, status)), nbd.CMD_FLAG_DF)
    assert chunks == [(2 * BLOCK, 0, nbd.READ_DATA)]
    old = connect("db@p")
    old.set_strict_mode(nbd.STRICT_AUTO_FLAG)
    refused("EPERM", old.pwrite, b"no", 0)
    refused("EPERM", old.zero, 5 * GIB, 0)


if __name__ == "__main__":
    main(globals())
