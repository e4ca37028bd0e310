"""Scopes of an I/O process, through libnbd. Volumes db and wal are there."""

import subprocess
import sys

from rig import BLOCK, ZERO, Wire, awaitable, begin, block, connect, cut, end, main, preserve, read, refused, settle, show, tidemark


def a_request_holds_no_preserve_and_a_connection_writes_on_into_the_next_image():
    h = connect("db")
    assert h.can_multi_conn() and connect("db:request").can_multi_conn()
    h.pwrite(block("a"), 0)
    report = preserve("db", name="p")
    assert report["processesWaited"] == 0, report
    assert report["snapshots"][0]["consistency"] == "process", report
    h.pwrite(block("b"), 0)
    assert read("db@p", 0) == block("a") and read("db", 0) == block("b")


def a_session_begun_before_the_cut_writes_to_the_first_image_and_the_snapshot_holds_it():
    old = connect("db:session")
    assert not old.can_multi_conn()
    old.pwrite(block("a"), 0)
    cut("db", name="p")
    new = connect("db")
    new.pwrite(block("n"), 16 * BLOCK)
    old.pwrite(block("b"), BLOCK)
    # The view of a snapshot that drains, the live one, and the session's own.
    assert read("db@p", 0, 2 * BLOCK) == block("a") + block("b")
    assert read("db@p", 16 * BLOCK) == ZERO
    assert read("db", 0, 2 * BLOCK) == block("a") + block("b")
    assert read("db", 16 * BLOCK) == block("n")
    assert old.pread(BLOCK, 16 * BLOCK) == ZERO
    [p] = tidemark("process", "list")["processes"]
    assert p["scope"] == "session" and p["bound"] == ["db@p"] and p["waitedFor"] == ["db@p"], p
    assert show("db@p")["waitsFor"] == [p["token"]]
    old.shutdown()  # ends the session
    settle("db")
    s = show("db@p")
    assert (s["state"], s["consistency"], s["tornProcesses"], s["conflicts"]) == ("sealed", "process", [], 1), s
    assert read("db@p", 0, 2 * BLOCK) == block("a") + block("b") and read("db@p", 16 * BLOCK) == ZERO


def a_session_begun_after_the_cut_is_in_no_part_in_the_snapshot():
    old = connect("db:session")
    cut("db", name="p")
    new = connect("db:session")
    new.pwrite(block("n"), 0)
    old.pwrite(block("o"), BLOCK)
    old.shutdown()
    new.pwrite(block("n"), 2 * BLOCK)
    cut("db", name="q")
    assert read("db@p", 0, 3 * BLOCK) == ZERO + block("o") + ZERO
    assert read("db@q", 0, 3 * BLOCK) == block("n") + block("o") + block("n")
    new.shutdown()
    settle("db")
    assert show("db@q")["consistency"] == "process"


def the_last_write_wins_in_the_live_view_also_through_an_older_one():
    old = connect("db:session")
    cut("db", name="p")
    new = connect("db")
    new.pwrite(block("n"), 0)
    new.pwrite(block("n"), BLOCK)
    new.zero(BLOCK, 2 * BLOCK)
    old.pwrite(block("o"), 0)  # a whole block
    old.pwrite(b"o" * 100, BLOCK + 50)  # a part: the rest stays, in either view
    old.pwrite(b"o" * 100, 2 * BLOCK + 50)
    old.trim(BLOCK, 3 * BLOCK)
    assert read("db", 0) == block("o")
    assert read("db", BLOCK) == b"n" * 50 + b"o" * 100 + b"n" * (BLOCK - 150)
    assert read("db", 2 * BLOCK) == bytes(50) + b"o" * 100 + bytes(BLOCK - 150)
    for name in "db@p", "db:session":  # a new session sees the live view
        assert read(name, 0) == block("o")
    part = bytes(50) + b"o" * 100 + bytes(BLOCK - 150)
    assert read("db@p", BLOCK, 2 * BLOCK) == part + part
    old.shutdown()
    settle("db")
    assert show("db@p")["conflicts"] == 3
    assert read("db@p", BLOCK, 2 * BLOCK) == part + part


def the_scope_of_the_volume_is_that_of_a_plain_connection():
    tidemark("volume", "create", "jobs", "--size", "1MiB", "--scope", "session")
    request = connect("jobs:request")
    assert tidemark("process", "list")["processes"] == []
    session = connect("jobs")
    [p] = tidemark("process", "list")["processes"]
    assert p["volumes"] == ["jobs"] and p["connections"] == 1, p
    cut("jobs", name="p")
    session.pwrite(block("s"), 0)
    request.pwrite(block("r"), BLOCK)
    assert read("jobs@p", 0, 2 * BLOCK) == block("s") + ZERO


def a_connection_opened_after_the_cut_under_the_older_token_writes_to_the_first_image():
    token = begin("db")
    first = connect("db:process:" + token)
    assert first.can_multi_conn()
    first.pwrite(block("a"), 0)
    cut("db", name="p")
    connect("db").pwrite(block("n"), 8 * BLOCK)
    second = connect("db:process:" + token)
    second.pwrite(block("b"), BLOCK)
    first.shutdown()  # a connection is not the process
    second.pwrite(block("c"), 2 * BLOCK)
    second.shutdown()
    third = connect("db:process:" + token)
    third.pwrite(block("d"), 3 * BLOCK)
    assert third.pread(4 * BLOCK, 0) == block("a") + block("b") + block("c") + block("d")
    assert show("db@p")["state"] == "draining"
    tidemark("process", "end", token)
    refused("EPERM", third.pwrite, block("e"), 0)
    settle("db")
    s = show("db@p")
    assert (s["consistency"], s["tornProcesses"]) == ("process", []), s
    assert read("db@p", 0, 4 * BLOCK) == block("a") + block("b") + block("c") + block("d")
    assert read("db@p", 8 * BLOCK) == ZERO


def two_volumes_under_one_token_are_in_one_preserve_whole():
    token = begin("db", "wal")
    connect("wal:process:" + token).pwrite(block("a"), 0)  # db is not touched yet
    waiting = awaitable("db", "wal", name="p")
    for volume in "db", "wal":
        connect(volume).pwrite(block("n"), 8 * BLOCK)
        connect(f"{volume}:process:{token}").pwrite(block("b"), BLOCK)
    tidemark("process", "end", token)
    report = end(waiting)
    assert report["processesWaited"] == 1 and len(report["snapshots"]) == 2, report
    assert read("wal@p", 0, 2 * BLOCK) == block("a") + block("b")
    assert read("db@p", 0, 2 * BLOCK) == ZERO + block("b")
    assert read("wal@p", 8 * BLOCK) == read("db@p", 8 * BLOCK) == ZERO
    assert read("wal", 8 * BLOCK) == read("db", 8 * BLOCK) == block("n")


def a_preserve_waits_for_a_process_that_named_the_volume_and_never_touched_it():
    token = begin("wal", "db")
    waiting = awaitable("db", name="p")
    assert show("db@p")["waitsFor"] == [token]
    tidemark("process", "end", token)
    assert end(waiting)["snapshots"][0]["consistency"] == "process"


def what_may_not_be_opened_is_refused_with_what_is_allowed():
    token = begin("wal")
    ended = begin("db")
    tidemark("process", "end", ended)
    preserve("db", name="p")
    allowed = "allowed are VOLUME, VOLUME:request, VOLUME:session, VOLUME:process:TOKEN and VOLUME@SNAPSHOT"
    for export, kind, words in [
        ("nope", 6, "volume nope not found"),
        ("db@nope", 6, "snapshot db@nope not found"),
        ("db:process:nope", 6, "process nope not found: it is unknown, or has ended"),
        ("db:process:" + ended, 6, f"process {ended} not found: it is unknown, or has ended"),
        ("db:process:" + token, 3, f"process {token} did not name volume db at its begin"),
        ("db:process:a b", 3, "allowed are 1 to 64 of A-Z a-z 0-9 . _ -"),
        ("db:process:", 3, "allowed are 1 to 64 of A-Z a-z 0-9 . _ -"),
        ("db:sesion", 3, allowed),
        ("db:", 3, allowed),
        ("db@p:session", 3, allowed),
        ("db@", 3, allowed),
        ("@p", 3, allowed),
        ("", 3, allowed),
    ]:
        w = Wire()
        got, text = w.go(export)
        assert got == (1 << 31) + kind and words in text.decode(), (export, hex(got), text)
        assert w.go("db")[0] == 1  # the connection lives on
        refused({3: "EINVAL", 6: "ENOENT"}[kind], connect, export)


def the_death_of_a_client_tears_its_session():
    client = _holder("db:session")
    [p] = tidemark("process", "list")["processes"]
    waiting = awaitable("db", name="p")
    client.kill()  # no NBD_CMD_DISC
    client.wait()
    report = end(waiting)
    assert report["snapshots"][0]["consistency"] == "mixed", report
    settle("db")
    s = show("db@p")
    assert (s["tornProcesses"], s["consistency"]) == ([p["token"]], "mixed"), s
    assert read("db@p", 0) == block("h")  # what it had written is there


def the_death_of_a_client_does_not_tear_the_explicit_process_of_its_token():
    token = begin("db")
    client = _holder("db:process:" + token)
    waiting = awaitable("db", name="p")
    client.kill()
    client.wait()
    connect("db:process:" + token).pwrite(block("i"), BLOCK)
    tidemark("process", "end", token)
    assert end(waiting)["snapshots"][0]["consistency"] == "process"
    assert read("db@p", 0, 2 * BLOCK) == block("h") + block("i")


def _hold(export):
    """Write, say so, and stay connected until killed."""
    h = connect(export)
    h.pwrite(block("h"), 0)
    print("written", flush=True)
    sys.stdin.read()


def _holder(export):
    """A client of its own that has written and stays connected."""
    pipe = subprocess.PIPE
    client = subprocess.Popen([sys.executable, "-B", __file__, "_hold", export], stdin=pipe, stdout=pipe, text=True)
    assert client.stdout.readline() == "written\n"
    return client


def a_process_that_ends_as_torn_is_listed():
    token = begin("db")
    waiting = awaitable("db", name="p")
    tidemark("process", "end", token, "--torn")
    assert end(waiting)["snapshots"][0]["consistency"] == "mixed"
    assert show("db@p")["tornProcesses"] == [token]


def a_preserve_aborted_by_its_deadline_leaves_no_name_and_the_session_goes_on():
    old = connect("db:session")
    old.pwrite(block("a"), 0)
    report = preserve("db", name="p", wait="100ms", code=6)
    assert report["snapshots"] == [], report
    tidemark("snapshot", "show", "db@p", code=3)
    connect("db").pwrite(block("n"), BLOCK)
    old.pwrite(block("b"), 2 * BLOCK)
    assert old.pread(3 * BLOCK, 0) == block("a") + block("n") + block("b")  # it is in the live image now
    old.shutdown()
    preserve("db", name="p")  # the name is free
    assert read("db@p", 0, 3 * BLOCK) == block("a") + block("n") + block("b")


def a_degraded_preserve_cuts_again_and_waits_for_requests_only():
    old = connect("db:session")
    old.pwrite(block("a"), 0)
    report = preserve("db", name="p", wait="100ms", more=["--on-timeout", "degrade"])
    assert report["snapshots"][0]["consistency"] == "request", report
    old.pwrite(block("b"), 0)
    assert read("db@p", 0) == block("a") and read("db", 0) == block("b")
    assert old.pread(BLOCK, 0) == block("b")
    report = preserve("db", name="q", wait="1ms", more=["--on-timeout", "degrade"])
    assert report["snapshots"][0]["consistency"] == "request", report
    assert read("db@q", 0) == block("b")


def a_kept_preserve_drains_until_its_session_ends_and_later_ones_wait_for_it():
    old = connect("db:session")
    preserve("db", name="p", wait="100ms", more=["--on-timeout", "keep"], code=5)
    preserve("db", name="q", wait="100ms", more=["--on-timeout", "keep"], code=5)
    assert "db@p" in show("db@q")["waitsFor"]
    old.pwrite(block("a"), 0)
    assert read("db@p", 0) == read("db@q", 0) == read("db", 0) == block("a")
    old.shutdown()
    settle("db")
    assert show("db@p")["state"] == show("db@q")["state"] == "sealed"
    assert read("db@p", 0) == read("db@q", 0) == block("a")


def on_conflict_abort_gives_the_preserve_up_before_a_stale_read_is_served():
    old = connect("db:session")
    waiting = awaitable("db", name="p", more=["--on-conflict", "abort"])
    connect("db").pwrite(block("n"), 0)
    assert old.pread(BLOCK, BLOCK) == ZERO  # no newer image has this one
    assert waiting.poll() is None
    assert old.pread(BLOCK, 0) == block("n")
    end(waiting, code=6)
    tidemark("snapshot", "show", "db@p", code=3)
    old.pwrite(block("o"), 0)
    assert read("db", 0) == block("o")


def a_write_on_one_connection_is_flushed_by_another_and_read_by_a_third():
    a, b, c = connect("db"), connect("db"), connect("db")
    for i in range(64):
        a.pwrite(block(chr(ord("A") + i % 26)), i * BLOCK)
        b.flush()
        assert c.pread(BLOCK, i * BLOCK) == block(chr(ord("A") + i % 26))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _hold(sys.argv[2])
    main(globals())
