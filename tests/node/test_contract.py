"""What `Node` promises to the program that embeds it, one promise a test."""

import asyncio
import logging
import socket

import pytest

from plumtree_quic import ConfigError, JoinError, Node, NodeClosed, PlumtreeConfig
from tests.node.test_node import cluster, node, quic


def files(pki, folder, name="a"):
    """Credentials as files, and the variables that name them."""
    cert = pki.node(name)
    contents = {"cert": cert.cert_pem, "key": cert.key_pem, "ca": pki.ca_pem}
    variables = {}
    for what, pem in contents.items():
        path = folder / f"{name}-{what}.pem"
        path.write_bytes(pem)
        path.chmod(0o600)
        variables[f"PLUMTREE_{what.upper()}"] = str(path)
    return variables


# --- from_env -----------------------------------------------------------------------------------


async def test_from_env_builds_everything(pki, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('[[allow]]\nidentities = ["/node/*"]\nmay = ["join", "relay"]\n')
    log = tmp_path / "security.log"
    environ = {
        **files(pki, tmp_path),
        "PLUMTREE_LISTEN": "127.0.0.1:0",
        "PLUMTREE_ADVERTISE_ADDR": "127.0.0.1",
        "PLUMTREE_CLUSTER": "orders",
        "PLUMTREE_TRUST_DOMAIN": "test",
        "PLUMTREE_PRESET": "wan",
        "PLUMTREE_GRAFT_TIMEOUT": "750ms",
        "PLUMTREE_STATE_DIR": str(tmp_path / "state"),
        "PLUMTREE_POLICY": str(policy),
        "PLUMTREE_SECURITY_LOG": str(log),
        "HOME": "/nowhere",
    }
    async with Node.from_env(environ) as built:
        assert built.id == "spiffe://test/node/a"
        assert built.config == PlumtreeConfig.wan(graft_timeout=0.75)
        assert built.address.startswith("127.0.0.1:")
        assert not built.address.endswith(":0")
        assert built._quic.cluster == "orders"
        assert not built._driver.policy.may_publish(built.id, ("orders",))
        assert (tmp_path / "state" / "epoch").exists()
        assert log.exists()


async def test_from_env_reads_the_process_environment_by_default(pki, tmp_path, monkeypatch):
    for name, value in files(pki, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PLUMTREE_LISTEN", "127.0.0.1:0")
    assert Node.from_env().id == "spiffe://test/node/a"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PLUMTREE_CERT": ""}, "PLUMTREE_CERT is not set"),
        ({"PLUMTREE_KEY": "/nowhere/a.key"}, "/nowhere/a.key"),
        ({"PLUMTREE_TRUST_DOMAIN": "other"}, "trust_domain"),
        ({"PLUMTREE_GRAFT_TIMEOUT": "soon"}, "PLUMTREE_GRAFT_TIMEOUT"),
        ({"PLUMTREE_GRAFT_TIMEOUTS": "1s"}, "did you mean PLUMTREE_GRAFT_TIMEOUT"),
        ({"PLUMTREE_PRESET": "wifi"}, "PLUMTREE_PRESET"),
        ({"PLUMTREE_LISTEN": ""}, "PLUMTREE_ADVERTISE_ADDR"),
        ({"PLUMTREE_POLICY": "/nowhere/policy.toml"}, "/nowhere/policy.toml"),
    ],
)
def test_from_env_names_what_is_wrong(pki, tmp_path, changes, says):
    environ = {**files(pki, tmp_path), "PLUMTREE_LISTEN": "127.0.0.1:0", **changes}
    with pytest.raises(ConfigError) as refused:
        Node.from_env(environ)
    assert says in str(refused.value)


# --- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", [None, ":7946", "0.0.0.0:0", "[::]:7946", "[0:0::0]:0"])
async def test_a_wildcard_without_advertise_says_what_to_write(pki, listen):
    options = {} if listen is None else {"listen": listen}
    with pytest.raises(ConfigError, match="advertise='"):
        await Node(quic(pki, "a"), **options).start()


# --- joining ------------------------------------------------------------------------------------


async def test_after_a_join_error_trying_goes_on_and_needs_no_second_call(pki):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        seed = f"127.0.0.1:{taken.getsockname()[1]}"
    async with node(pki, "a") as a:
        with pytest.raises(JoinError, match=seed):
            await a.join([seed], timeout=0.3)
        async with Node(quic(pki, "b"), PlumtreeConfig.lan(), listen=seed):
            await a.wait_for_peers(1, timeout=30)


async def test_our_own_address_is_no_seed_and_one_answer_of_several_is_enough(pki):
    async with node(pki, "a") as a, node(pki, "b") as b:
        assert await b.join([b.address, "127.0.0.1:9", a.address], timeout=10) == 1


# --- ending -------------------------------------------------------------------------------------


async def test_drain_returns_when_what_was_accepted_is_with_our_peers(pki):
    async with cluster(pki, "abc") as (a, b, c):
        for number in range(300):
            await a.broadcast(b"%d" % number * 50)
        await a.drain()
        assert a._driver.unsent() == 0
        assert all(link.unacknowledged() == 0 for link in a._driver._endpoint.links())
        with pytest.raises(NodeClosed, match="draining"):
            await a.broadcast(b"more")
        # Still a member, which takes and relays what others say.
        await b.broadcast(b"still here")
        async with asyncio.timeout(10):
            while a.stats()["messages_delivered"] < 1 or c.stats()["messages_delivered"] < 301:
                await asyncio.sleep(0.01)
        assert b.peer_count() == c.peer_count() == 2


async def test_shutdown_says_how_much_was_not_sent(pki, caplog):
    async with cluster(pki, "ab") as (a, _):
        await a.broadcast(bytes(60_000))
        # Accepted in this turn of the loop, and nothing leaves before its end.
        with caplog.at_level(logging.WARNING, logger="plumtree_quic"):
            await a.shutdown()
    (told,) = [each for each in caplog.records if getattr(each, "event", "") == "node.unsent"]
    assert "bytes unsent" in told.getMessage()
