"""The known-peer file: whole or not at all, and never a reason not to start."""

import asyncio
import errno
import hashlib
import json
import os
import stat
import threading

import pytest

from plumtree_quic import JoinError, Node, PlumtreeConfig
from plumtree_quic import node as node_module
from plumtree_quic.ids import NodeId
from plumtree_quic.peerfile import ADDRESSES_MAX, FILE_BYTES_MAX, PEERS_MAX, KnownPeer, PeerFile
from tests.node.test_node import node, quic


def peer(name, *addresses, domain="test"):
    return KnownPeer(
        NodeId.parse(f"spiffe://{domain}/node/{name}"), addresses or (f"10.0.0.1:{len(name)}",)
    )


PEERS = [peer("a", "10.0.0.1:7946", "[::1]:7946"), peer("b", "b.example:7946")]


@pytest.fixture
def file(tmp_path):
    return PeerFile(tmp_path / "peers", "test", "default")


def put(tmp_path, value, *, head=b"plumtree-quic peers 1 ", body=None):
    body = json.dumps(value).encode() if body is None else body
    digest = hashlib.sha256(body).hexdigest().encode()
    (tmp_path / "peers").write_bytes(head + digest + b"\n" + body)


def ours(peers):
    return {"trust_domain": "test", "cluster": "default", "peers": peers}


def test_what_is_written_is_read_and_nobody_else_may_read_it(file, tmp_path):
    file.write(PEERS)
    assert file.read() == PEERS
    assert stat.S_IMODE((tmp_path / "peers").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["peers"]


def test_without_a_file_nothing_is_known_and_nothing_is_said(file, caplog):
    assert file.read() == []
    assert not caplog.records


def test_a_file_is_written_flushed_renamed_and_its_directory_flushed(file, tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd):
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        # What is flushed is all there, and under its own name only afterwards.
        if done[-1] == "file":
            assert (tmp_path / "peers.new").stat().st_size > 100
            assert not (tmp_path / "peers").exists()
        fsync(fd)

    def note_replace(*args):
        done.append("rename")
        replace(*args)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "rename", note_replace)
    file.write(PEERS)
    assert done == ["file", "rename", "directory"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_as_it_was(file, monkeypatch, call):
    file.write(PEERS)

    def fail(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            file.write(PEERS[:1])
    assert file.read() == PEERS
    file.write(PEERS[:1])
    assert file.read() == PEERS[:1]


def test_a_torn_write_is_noticed_wherever_it_was_torn(file, tmp_path, caplog):
    file.write(PEERS)
    whole = (tmp_path / "peers").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "peers").write_bytes(whole[:size])
        assert file.read() == []
    # Blocks that never reached the disk read as zeros.
    for size in range(0, len(whole), 16):
        (tmp_path / "peers").write_bytes(whole[:size] + bytes(len(whole) - size))
        assert file.read() == []
    assert len(caplog.records) >= len(whole)
    assert {record.event for record in caplog.records} == {"peers.ignored"}


def test_every_flipped_bit_is_noticed(file, tmp_path):
    file.write(PEERS)
    whole = (tmp_path / "peers").read_bytes()
    for at in range(len(whole)):
        spoiled = bytearray(whole)
        spoiled[at] ^= 1 << at % 8
        (tmp_path / "peers").write_bytes(spoiled)
        assert file.read() == []


@pytest.mark.parametrize(("domain", "cluster"), [("other", "default"), ("test", "other")])
def test_the_file_of_another_cluster_is_ignored(file, tmp_path, caplog, domain, cluster):
    PeerFile(tmp_path / "peers", domain, cluster).write([peer("a", domain=domain)])
    assert file.read() == []
    assert "another cluster" in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'{"peers": []}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 100_000,
        b'{"trust_domain": "test", "cluster": "default", "peers": {}}',
        b'{"trust_domain": "test", "cluster": "default", "peers": "abc"}',
        b"\xff\xfe",
        b"NaN",
    ],
)
def test_a_hostile_file_with_a_good_checksum_gives_nothing_and_raises_nothing(
    file, tmp_path, caplog, body
):
    put(tmp_path, None, body=body)
    assert file.read() == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        [],
        ["spiffe://test/node/x"],
        ["spiffe://test/node/x", "10.0.0.1:1"],
        ["spiffe://test/node/x", []],
        ["spiffe://test/node/x", [7, None, {}, ["10.0.0.1:1"]]],
        ["spiffe://test/node/x", ["10.0.0.1"]],
        ["spiffe://test/node/x", ["10.0.0.1:0"]],
        ["spiffe://test/node/x", [":7946"]],
        ["spiffe://test/node/x", ["10.0.0.1:7946\n"]],
        ["spiffe://test/node/x", ["a b:7946"]],
        ["spiffe://test/node/x", ["\ud800:7946"]],
        ["spiffe://test/node/x", ["a" * 300 + ":7946"]],
        ["spiffe://elsewhere/node/x", ["10.0.0.1:7946"]],
        ["http://test/node/x", ["10.0.0.1:7946"]],
        ["spiffe://test/node/\ud800", ["10.0.0.1:7946"]],
        ["spiffe://test/" + "x" * 5_000, ["10.0.0.1:7946"]],
    ],
)
def test_an_entry_that_cannot_be_a_member_is_left_out_and_the_others_are_taken(
    file, tmp_path, entry
):
    good = ["spiffe://test/node/a", ["10.0.0.1:7946", "[::1]:7946"]]
    put(tmp_path, ours([entry, good, entry]))
    assert file.read() == PEERS[:1]


def test_members_and_addresses_are_bounded_both_ways(file, tmp_path):
    many = [peer(f"n{number}") for number in range(PEERS_MAX + 5)]
    file.write(many)
    assert file.read() == many[:PEERS_MAX]
    put(tmp_path, ours([[str(each.node_id), list(each.addresses)] for each in many]))
    assert file.read() == many[:PEERS_MAX]
    addresses = [f"10.0.0.1:{port}" for port in range(1, 30)]
    put(tmp_path, ours([["spiffe://test/node/a", addresses]]))
    assert file.read() == [peer("a", *addresses[:ADDRESSES_MAX])]


def test_the_largest_file_that_we_write_is_one_that_we_read(file, tmp_path):
    addresses = [f"{number}{'x' * 255}:7946" for number in range(ADDRESSES_MAX)]
    many = [peer(f"{number:04}{'y' * 100}", *addresses) for number in range(PEERS_MAX)]
    file.write(many)
    assert (tmp_path / "peers").stat().st_size < FILE_BYTES_MAX
    assert file.read() == many


def test_a_file_that_is_too_large_is_not_read_to_its_end(file, tmp_path, caplog):
    with (tmp_path / "peers").open("wb") as out:
        out.truncate(FILE_BYTES_MAX * 1_000)
    assert file.read() == []
    assert "larger than" in caplog.text


def test_addresses_that_nobody_could_dial_are_not_written(file):
    file.write([peer("a", "10.0.0.1:1", "no port", "ü:7"), peer("b", "nowhere")])
    assert file.read() == [peer("a", "10.0.0.1:1")]


def make_directory(path):
    path.mkdir()


def make_link(path):
    (path.parent / "elsewhere").write_text("x")
    path.symlink_to(path.parent / "elsewhere")


def make_unreadable(path):
    path.write_text("x")
    path.chmod(0)


@pytest.mark.parametrize("make", [make_directory, make_link, os.mkfifo, make_unreadable])
def test_what_is_no_regular_file_of_ours_is_ignored_and_reading_never_waits(file, tmp_path, make):
    make(tmp_path / "peers")
    got = []
    reader = threading.Thread(target=lambda: got.append(file.read()), daemon=True)
    reader.start()
    reader.join(20)
    assert got == [[]]


def test_a_link_where_the_new_file_is_to_be_is_not_written_through(file, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "peers.new").symlink_to(tmp_path / "precious")
    file.write(PEERS)
    assert (tmp_path / "precious").read_text() == "precious"
    assert file.read() == PEERS


# --- the node -----------------------------------------------------------------------------------


def told(tmp_path):
    return [each.node_id.name for each in PeerFile(tmp_path / "peers", "test", "default").read()]


async def restarted(pki, name, address, **options):
    return Node(quic(pki, name), PlumtreeConfig.lan(), listen=address, **options)


async def test_a_restarted_node_finds_its_cluster_without_a_seed(pki, tmp_path):
    async with node(pki, "a") as a:
        async with node(pki, "b", state_dir=tmp_path) as b:
            await b.join([a.address])
            await b.wait_for_peers(1)
        assert told(tmp_path) == ["a"]
        async with node(pki, "b", state_dir=tmp_path) as b:
            await b.wait_for_peers(1, timeout=15)
            await a.wait_for_peers(1, timeout=15)


async def test_join_is_content_when_a_remembered_member_answers_and_no_seed_does(pki, tmp_path):
    async with node(pki, "a") as a:
        async with node(pki, "b", state_dir=tmp_path) as b:
            await b.join([a.address])
            await b.wait_for_peers(1)
        async with node(pki, "b", state_dir=tmp_path) as b:
            assert await b.join(["127.0.0.1:1"], timeout=20) == 0
            assert b.peer_count() == 1


@pytest.mark.parametrize("content", [b"", b"damaged", b"plumtree-quic peers 1 0\n{}"])
async def test_a_bad_file_never_stops_a_node_which_then_writes_a_good_one(pki, tmp_path, content):
    (tmp_path / "peers").write_bytes(content)
    async with node(pki, "a") as a, node(pki, "b", state_dir=tmp_path) as b:
        await b.join([a.address])
        await b.wait_for_peers(1)
    assert told(tmp_path) == ["a"]


async def test_a_file_of_nobody_does_not_replace_one_of_somebody(pki, tmp_path):
    PeerFile(tmp_path / "peers", "test", "default").write([peer("gone", "127.0.0.1:1")])
    async with node(pki, "b", state_dir=tmp_path) as b:
        with pytest.raises(JoinError):
            await b.join(["127.0.0.1:1"], timeout=0.2)
    assert told(tmp_path) == ["gone"]


async def test_changes_are_written_while_the_node_runs(pki, tmp_path, monkeypatch):
    monkeypatch.setattr(node_module, "PEERS_EVERY_S", 0.05)
    async with node(pki, "a") as a, node(pki, "b", state_dir=tmp_path) as b:
        await b.join([a.address])
        async with asyncio.timeout(15):
            while told(tmp_path) != ["a"]:
                await asyncio.sleep(0.02)
        written = (tmp_path / "peers").stat().st_mtime_ns
        await asyncio.sleep(0.3)
        assert (tmp_path / "peers").stat().st_mtime_ns == written


async def test_a_directory_that_became_unwritable_costs_a_log_line(pki, tmp_path, caplog):
    state = tmp_path / "state"
    async with node(pki, "a") as a:
        async with node(pki, "b", state_dir=state) as b:
            await b.join([a.address])
            await b.wait_for_peers(1)
            (state / "peers").mkdir()
            (state / "peers" / "x").touch()
        assert any(getattr(each, "event", "") == "node.peers_not_kept" for each in caplog.records)
