"""Options, commands and flags of NBD, through libnbd. Volume db is there, 64 MiB."""

import struct

import nbd

from rig import BLOCK, SOCKET, ZERO, Wire, block, connect, main, refused, tidemark

SIZE = 64 << 20
DATA, HOLE = 0, nbd.STATE_HOLE | nbd.STATE_ZERO


def _extents(h, count, offset, flags=0):
    """Block status as {context: [(length, state), ...]}."""
    found = {}

    def note(context, _, entries, __):
        found[context] = list(zip(entries[::2], entries[1::2]))

    h.block_status(count, offset, note, flags)
    return found


def export_name_is_served_with_and_without_zeroes():
    for flags in 0, nbd.HANDSHAKE_FLAG_NO_ZEROES:
        h = connect("db", lambda h: h.set_handshake_flags(flags))
        assert h.get_protocol() == "newstyle" and h.get_size() == SIZE
        assert not h.get_structured_replies_negotiated()
        h.pwrite(block("e"), 0)
        h.flush()
        assert h.pread(BLOCK, 0) == block("e")
        h.shutdown()
    # There the only refusal is to hang up.
    try:
        connect("nope", lambda h: h.set_handshake_flags(0))
    except nbd.Error:
        return
    raise AssertionError("it connected")


def simple_replies_are_served():
    h = connect("db", lambda h: h.set_request_structured_replies(False))
    assert not h.get_structured_replies_negotiated() and not h.can_df()
    h.pwrite(block("s"), BLOCK)
    assert h.pread(2 * BLOCK, 0) == ZERO + block("s")
    h.set_strict_mode(0)
    refused("EINVAL", h.pread, BLOCK, 0, nbd.CMD_FLAG_DF)
    refused("EINVAL", h.pread, BLOCK, SIZE)
    assert h.pread(BLOCK, BLOCK) == block("s")


def options_are_answered_one_by_one():
    tidemark("preserve", "db", "--name", "p")
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(SOCKET)
    names = []
    assert h.opt_list(lambda name, _: names.append(name)) == 2
    assert names == ["db", "db@p"]

    def contexts(*queries):
        found = []
        h.clear_meta_contexts()
        for q in queries:
            h.add_meta_context(q)
        h.opt_list_meta_context(found.append)
        return found

    h.set_export_name("db")
    both = ["base:allocation", "qemu:allocation-depth"]
    assert contexts() == both
    assert contexts("base:") == both[:1] and contexts("qemu:") == both[1:]
    assert contexts("qemu:allocation-depth") == both[1:]
    assert contexts("base:nope") == contexts("x-nope:") == []
    h.clear_meta_contexts()
    h.add_meta_context("base:allocation")

    h.set_export_name("nope")
    refused("ENOENT", h.opt_info)
    refused("ENOENT", h.opt_go)
    h.set_export_name("db@p")
    h.opt_info()
    assert h.is_read_only() and h.get_size() == SIZE and not h.can_trim()
    h.set_export_name("db")
    h.opt_info()
    assert not h.is_read_only() and h.can_fua() and h.can_fast_zero() and h.can_cache()
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_PREFERRED) == 4096
    h.opt_go()
    assert h.can_meta_context("base:allocation") and not h.can_meta_context("qemu:allocation-depth")
    assert h.pread(BLOCK, 0) == ZERO

    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_unix(SOCKET)
    h.opt_abort()
    assert h.aio_is_closed()


def tls_is_refused_and_a_client_that_may_goes_on_without():
    h = connect("db", lambda h: h.set_tls(nbd.TLS_ALLOW))
    assert not h.get_tls_negotiated() and h.pread(BLOCK, 0) == ZERO
    refused("ENOTSUP", connect, "db", lambda h: h.set_tls(nbd.TLS_REQUIRE))


def an_unknown_or_malformed_option_gets_its_error_and_the_connection_lives_on():
    unsupported, invalid, too_big = (1 << 31) + 1, (1 << 31) + 3, (1 << 31) + 9
    w = Wire()
    for number, data, want in [
        (99, b"", unsupported),
        (4, b"", unsupported),  # NBD_OPT_PEEK_EXPORT, withdrawn
        (0xFFFFFFFF, b"data", unsupported),
        (99, bytes(1 << 20), too_big),
        (3, b"x", invalid),
        (8, b"x", invalid),
        (11, b"x", invalid),
        (6, b"", invalid),
        (6, struct.pack(">I", 0xFFFFFFFF), invalid),
        (7, struct.pack(">I2sH", 2, b"db", 3), invalid),
        (9, struct.pack(">I2sI", 2, b"db", 0), invalid),  # before structured replies
    ]:
        [(got, _)] = w.option(number, data)
        assert got == want, (number, data[:16], hex(got), hex(want))
    assert w.option(8)[-1][0] == 1
    [(got, _)] = w.option(10, struct.pack(">I2sII", 2, b"db", 0xFFFFFFFF, 4))
    assert got == invalid
    w = Wire()
    assert w.option(99)[0][0] == unsupported
    assert w.go("db")[0] == 1
    assert w.request(1, length=2, payload=b"ab") == 0


def unknown_commands_and_flags_get_einval_and_the_connection_lives_on():
    einval, enospc = 22, 28
    w = Wire()
    assert w.go("db")[0] == 1
    for command, flags, offset, length, payload, want in [
        (77, 0, 0, 0, b"", einval),
        (0xFFFF, 0xFFFF, 0, 0, b"", einval),
        (5, 4, 0, BLOCK, b"", einval),  # DF on a cache
        (5, 0, SIZE, BLOCK, b"", einval),
        (8, 0, 0, 0, b"", einval),  # NBD_CMD_RESIZE
        (3, 0, 1, 0, b"", einval),  # a flush of a range
        (1, 1 << 15, 0, 3, b"abc", einval),
        (1, 2, 0, 3, b"abc", einval),  # NO_HOLE on a write
        (4, 8, 0, BLOCK, b"", einval),  # REQ_ONE on a trim
        (7, 0, 0, BLOCK, b"", einval),  # no context was selected
        (1, 0, SIZE, 3, b"abc", enospc),
        (1, 0, 1 << 63, 3, b"abc", enospc),
        (6, 0, SIZE - 1, 2, b"", enospc),
        (4, 0, SIZE - 1, 2, b"", einval),
        (0, 0, SIZE - 1, 2, b"", einval),
        (0, 0, 0, 0xFFFFFFFF, b"", einval),
    ]:
        got = w.request(command, flags, offset, length, payload)
        assert got == want, (command, flags, offset, length, got, want)
    assert w.request(1, length=3, payload=b"xyz") == 0
    assert connect("db").pread(4, 0) == b"xyz\0"


def libnbd_that_is_not_strict_gets_errors_and_lives_on():
    h = connect("db")
    h.set_strict_mode(0)
    h.pwrite(block("k"), 0)
    refused("EINVAL", h.cache, BLOCK, SIZE)
    refused("EINVAL", h.pread, BLOCK, SIZE - 1)
    refused("ENOSPC", h.pwrite, block("x"), SIZE - 1)
    refused("ENOSPC", h.zero, BLOCK, SIZE)
    refused("EINVAL", h.trim, BLOCK, SIZE)
    refused("EINVAL", h.pread, 33 << 20, 0)
    refused("EINVAL", h.pwrite, bytes(33 << 20), 0)
    for flags in nbd.CMD_FLAG_DF, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, 1 << 15:
        refused("EINVAL", h.pwrite, block("x"), 0, flags)
    refused("EINVAL", h.zero, BLOCK, 0, nbd.CMD_FLAG_REQ_ONE)
    refused("EINVAL", h.trim, BLOCK, 0, nbd.CMD_FLAG_NO_HOLE)
    refused("EINVAL", h.block_status, BLOCK, 0, lambda *_: 0, nbd.CMD_FLAG_DF)
    refused("EINVAL", h.block_status, 0, 0, lambda *_: 0)
    h.pwrite(b"", 0)  # no bytes are no error
    h.trim(0, SIZE)
    assert h.pread(0, SIZE) == b""
    h.pwrite(b"u" * 7, 4093)  # any alignment
    assert h.pread(BLOCK + 4, 0) == b"k" * 4093 + b"u" * 7


def a_read_that_must_not_fragment_comes_as_one_chunk():
    h = connect("db")
    h.pwrite(block("d"), BLOCK)  # between holes
    chunks = []

    def note(data, offset, status, _):
        chunks.append((len(data), offset, status))

    data = h.pread_structured(3 * BLOCK, 0, note, nbd.CMD_FLAG_DF)
    assert data == ZERO + block("d") + ZERO
    assert chunks == [(3 * BLOCK, 0, nbd.READ_DATA)], chunks


def block_status_of_one_extent_ends_where_it_ends_or_was_asked_to():
    h = connect("db")
    h.pwrite(block("b") * 4, 4 * BLOCK)
    req_one = nbd.CMD_FLAG_REQ_ONE
    assert _extents(h, SIZE, 0, req_one) == {"base:allocation": [(4 * BLOCK, HOLE)], "qemu:allocation-depth": [(4 * BLOCK, 0)]}
    assert _extents(h, SIZE - 4 * BLOCK, 4 * BLOCK, req_one)["base:allocation"] == [(4 * BLOCK, DATA)]
    assert _extents(h, BLOCK, 5 * BLOCK, req_one)["base:allocation"] == [(BLOCK, DATA)]
    assert _extents(h, 100, 4 * BLOCK - 50, req_one)["base:allocation"] == [(50, HOLE)]
    whole = _extents(h, SIZE, 0)
    assert whole["base:allocation"] == [(4 * BLOCK, HOLE), (4 * BLOCK, DATA), (SIZE - 8 * BLOCK, HOLE)], whole
    assert whole["qemu:allocation-depth"] == [(4 * BLOCK, 0), (4 * BLOCK, 1), (SIZE - 8 * BLOCK, 0)], whole


def cache_changes_nothing():
    h = connect("db")
    h.pwrite(block("c"), BLOCK)
    tidemark("preserve", "db", "--name", "p")
    h.cache(SIZE, 0)
    h.cache(7, 5000)
    assert h.pread(3 * BLOCK, 0) == ZERO + block("c") + ZERO
    assert _extents(h, SIZE, 0)["base:allocation"] == [(BLOCK, HOLE), (BLOCK, DATA), (SIZE - 2 * BLOCK, HOLE)]
    old = connect("db@p")
    assert old.can_cache()
    old.cache(SIZE, 0)
    assert old.pread(BLOCK, BLOCK) == block("c")


def zeroes_trims_and_their_flags():
    h = connect("db")
    for flags, state in [
        (0, HOLE),
        (nbd.CMD_FLAG_NO_HOLE, DATA),
        (nbd.CMD_FLAG_FAST_ZERO, HOLE),
        (nbd.CMD_FLAG_FUA, HOLE),
        (nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE, DATA),
    ]:
        h.pwrite(block("z") * 16, 0, nbd.CMD_FLAG_FUA)
        h.zero(8 * BLOCK, 4 * BLOCK, flags)
        assert h.pread(16 * BLOCK, 0) == block("z") * 4 + bytes(8 * BLOCK) + block("z") * 4
        assert _extents(h, BLOCK, 6 * BLOCK)["base:allocation"] == [(BLOCK, state)], flags
    # To reserve storage is not fast, and must not be done then.
    h.pwrite(block("z"), 0)
    refused("ENOTSUP", h.zero, BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(BLOCK, 0) == block("z")

    h.pwrite(block("t") * 4, 0)
    h.trim(BLOCK, 0)
    h.trim(BLOCK, BLOCK, nbd.CMD_FLAG_FUA)
    h.trim(100, 2 * BLOCK + 50)
    assert h.pread(4 * BLOCK, 0) == 2 * ZERO + b"t" * 50 + bytes(100) + b"t" * (2 * BLOCK - 150)
    assert _extents(h, 4 * BLOCK, 0)["base:allocation"] == [(2 * BLOCK, HOLE), (2 * BLOCK, DATA)]
    h.trim(SIZE, 0)
    assert _extents(h, SIZE, 0)["base:allocation"] == [(SIZE, HOLE)]


if __name__ == "__main__":
    main(globals())
