"""`plumtree-quic connect` against real nodes: what it says, and when it exits with 0."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from plumtree_quic import Node, QuicConfig
from plumtree_quic.cli.main import run
from plumtree_quic.security.certs import DevCa
from plumtree_quic.security.identity import CHECKS
from tests.rigs.pki import Pki, utc
from tests.rigs.waiting import ASIDE, WAIT_S, linked


@pytest.fixture
def ca(tmp_path):
    made = DevCa.create(tmp_path / "certs", trust_domain="test")
    for name in ("a", "b"):
        made.issue(name)
    return made


def flags(ca, name="b", trusts=None):
    at = ca.directory
    return [
        "--cert", str(at / f"{name}.crt"),
        "--key", str(at / f"{name}.key"),
        "--ca", str(trusts or at / "ca.crt"),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def node_of(ca, name="a", *, listen="127.0.0.1:0", trusts=None, **options):
    at = ca.directory
    quic = QuicConfig(at / f"{name}.crt", at / f"{name}.key", trusts or at / "ca.crt", **options)
    async with Node(quic, listen=listen) as node:
        yield node


async def connect(*arguments):
    """Ask somebody who answers, however long that takes on a busy machine."""
    arguments = ["--timeout", WAIT_S, *arguments]
    return await asyncio.to_thread(run, ["connect", *map(str, arguments)])


def both(first, second, path):
    """A bundle of two CAs."""
    path.write_bytes(b"".join((each.directory / "ca.crt").read_bytes() for each in (first, second)))
    return path


async def test_a_good_pair_passes_every_step_and_exits_0(ca, capsys):
    async with node_of(ca) as node:
        assert await connect(node.address, *flags(ca), "--expect", node.id) == 0
        out = capsys.readouterr().out
        for check in CHECKS:
            assert f"pass  {check.step:>2}  {check.name}" in out
        assert "pass  14  the peer lets us in" in out
        assert "spiffe://test/node/a would let us in" in out
        assert "FAIL" not in out


async def test_nothing_joins_and_a_running_node_of_that_identity_is_not_disturbed(ca):
    async with node_of(ca) as node, node_of(ca, "b") as other:
        await other.join([node.address])
        await linked([node, other])
        before = [(each.node_id, each.epoch) for each in node.members()]
        links = node.peers()[0].address
        for _ in range(3):
            assert await connect(node.address, *flags(ca)) == 0
        assert [(each.node_id, each.epoch) for each in node.members()] == before
        assert [each.address for each in node.peers()] == [links]


async def test_an_ipv6_address_and_a_host_name_work(ca):
    async with node_of(ca, listen="[::1]:0") as node:
        assert await connect(node.address, *flags(ca)) == 0
    async with node_of(ca) as node:
        port = node.address.rpartition(":")[2]
        assert await connect(f"localhost:{port}", *flags(ca)) == 0


async def test_a_peer_that_refuses_our_certificate_is_named_with_its_alert(ca, tmp_path, capsys):
    stranger = DevCa.create(tmp_path / "other", trust_domain="test")
    stranger.issue("b")
    trusts = both(ca, stranger, tmp_path / "both.crt")
    async with node_of(ca) as node:
        assert await connect(node.address, *flags(stranger, trusts=trusts)) == 1
    out = capsys.readouterr().out
    assert "pass  13" in out
    assert "FAIL  14" in out
    assert "TLS alert 48 (unknown_ca)" in out
    assert "it does not trust the CA of our certificate" in out


async def test_a_strangers_node_fails_at_the_chain_and_names_the_fix(ca, tmp_path, capsys):
    stranger = DevCa.create(tmp_path / "other", trust_domain="strange")
    stranger.issue("a")
    async with node_of(stranger) as node:
        assert await connect(node.address, *flags(ca)) == 1
    out = capsys.readouterr().out
    assert "pass   8" in out
    assert "FAIL   9" in out
    assert "it got TLS alert 48 (unknown_ca)" in out
    assert "which is not in" in out
    assert "----  10" in out
    assert "----  14" in out


async def test_another_trust_domain_under_one_ca_fails_at_the_identity(tmp_path, capsys):
    pki = Pki("test")
    other = pki.node("x", uris=("spiffe://elsewhere/node/x",))
    ours = pki.node("b")
    for name, cert in (("x", other), ("b", ours)):
        (tmp_path / f"{name}.crt").write_bytes(cert.cert_pem)
        (tmp_path / f"{name}.key").write_bytes(cert.key_pem)
    (tmp_path / "ca.crt").write_bytes(pki.ca_pem)
    quic = QuicConfig(tmp_path / "x.crt", tmp_path / "x.key", tmp_path / "ca.crt")
    async with Node(quic, listen="127.0.0.1:0") as node:
        arguments = ["--cert", tmp_path / "b.crt", "--key", tmp_path / "b.key"]
        assert await connect(node.address, *arguments, "--ca", tmp_path / "ca.crt") == 1
    out = capsys.readouterr().out
    assert "FAIL  10" in out
    assert "is of trust domain 'elsewhere'" in out
    assert "TLS alert 42 (bad_certificate)" in out


async def test_the_wrong_node_at_that_address_is_named(ca, capsys):
    async with node_of(ca) as node:
        assert await connect(node.address, *flags(ca), "--expect", "spiffe://test/node/z") == 1
    out = capsys.readouterr().out
    assert "FAIL  12" in out
    assert "it is spiffe://test/node/a, and we meant spiffe://test/node/z" in out
    assert "dial the right address" in out


async def test_our_own_identity_is_refused(ca, capsys):
    async with node_of(ca) as node:
        assert await connect(node.address, *flags(ca, "a")) == 1
    out = capsys.readouterr().out
    assert "that is our own identity" in out
    assert "it runs as spiffe://test/node/a, and so would we" in out
    assert "fix: give every node a certificate of its own" in out


async def test_another_cluster_is_refused_and_both_names_are_said(ca, capsys):
    async with node_of(ca, cluster="blue") as node:
        assert await connect(node.address, *flags(ca), "--cluster", "green") == 1
        out = capsys.readouterr().out
        assert "FAIL  14" in out
        assert "it belongs to cluster 'blue', we to 'green'" in out
        assert await connect(node.address, *flags(ca), "--cluster", "blue") == 0


def silent_socket():
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((ASIDE, 0))
    return bound, f"{ASIDE}:{bound.getsockname()[1]}"


def test_no_answer_at_all(ca, capsys):
    bound, where = silent_socket()
    with bound:
        assert run(["connect", where, *flags(ca), "--timeout", "0.3"]) == 1
    out = capsys.readouterr().out
    assert "no answer within 0.3 s" in out
    assert "firewall" in out


def test_a_closed_port(ca, capsys):
    bound, where = silent_socket()
    bound.close()
    assert run(["connect", where, *flags(ca), "--timeout", "20"]) == 1
    assert "the port is closed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n", b"\x80\0\0\0\0" + bytes(40), b"\xf0\0\0\0\1" + bytes(40)],
    ids=["http", "version negotiation", "retry without a token"],
)
def test_another_service_at_that_address(ca, capsys, answer):
    bound, where = silent_socket()
    with bound:

        def reply():
            bound.settimeout(WAIT_S)
            _, address = bound.recvfrom(65_535)
            bound.sendto(answer, address)

        thread = threading.Thread(target=reply)
        thread.start()
        assert run(["connect", where, *flags(ca), "--timeout", "2"]) == 1
        thread.join()
    assert "not as a plumtree-quic node does" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nowhere.invalid:1", "does not resolve"),
        ("127.0.0.1", "is not host:port"),
        (":7946", "needs a host and a port"),
        ("127.0.0.1:0", "needs a host and a port"),
        ("a" * 300 + ":7946", "does not resolve"),
    ],
)
def test_an_address_that_cannot_be_one_is_a_usage_error(ca, capsys, where, says):
    assert run(["connect", where, *flags(ca)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_our_own_expired_certificate_is_said_before_anything_is_sent(tmp_path, capsys):
    pki = Pki("test")
    old = pki.node("b", not_before=utc(days=-9), not_after=utc(days=-2))
    (tmp_path / "b.crt").write_bytes(old.cert_pem)
    (tmp_path / "b.key").write_bytes(old.key_pem)
    (tmp_path / "ca.crt").write_bytes(pki.ca_pem)
    files = ["--cert", "b.crt", "--key", "b.key", "--ca", "ca.crt"]
    arguments = [str(tmp_path / each) if "." in each else each for each in files]
    assert run(["connect", "127.0.0.1:9", *arguments]) == 1
    assert "expired at" in capsys.readouterr().err


def test_the_command_is_listed_and_explains_itself():
    for arguments in (["--help"], ["connect", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "plumtree_quic", *arguments],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=True,
        )
        assert "connect" in done.stdout
