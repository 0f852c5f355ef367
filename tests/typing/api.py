"""The public API as a user's program writes it. Type-checked in strict mode, never run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import attrs

from plumtree_quic import (
    ConfigError,
    CredentialsError,
    Delegate,
    Gap,
    Health,
    HealthStatus,
    Member,
    Message,
    MessageId,
    Node,
    NodeId,
    OrderedSubscription,
    Peer,
    PlumtreeConfig,
    PlumtreeError,
    Policy,
    QuicConfig,
    Receipt,
    Subscription,
    SyncConfig,
)


def credentials(directory: Path) -> QuicConfig:
    try:
        quic = QuicConfig(
            cert_path=directory / "a.crt",
            key_path="certs/dev/a.key",
            ca_path=str(directory / "ca.crt"),
            key_password=os.environ.get("PASSWORD"),
            trust_domain=None,
            cluster="orders",
        )
    except CredentialsError as error:
        own: ConfigError = error
        value: ValueError = own
        root: PlumtreeError = own
        raise SystemExit(str(root)) from value
    assert_type(quic.node_id, NodeId)
    assert_type(quic.warnings, tuple[str, ...])
    name: str = quic.node_id
    print(name, quic.trust_domain, quic.cluster)
    return quic


def from_memory(pem: bytes, text: str) -> QuicConfig:
    return QuicConfig.from_pem(cert=pem, key=text, ca=pem, key_password=b"secret")


def configuration() -> PlumtreeConfig:
    config = PlumtreeConfig.lan(eager_fanout=4, ihave_interval=0.1)
    assert_type(config, PlumtreeConfig)
    assert_type(PlumtreeConfig.wan(), PlumtreeConfig)
    assert_type(PlumtreeConfig.large_cluster(), PlumtreeConfig)
    assert_type(PlumtreeConfig.from_env(), PlumtreeConfig)
    assert_type(PlumtreeConfig.from_env({"PLUMTREE_LINGER": "2ms"}), PlumtreeConfig)
    assert_type(PlumtreeConfig.from_toml("node.toml"), PlumtreeConfig)
    assert_type(PlumtreeConfig.from_toml(Path("node.toml")), PlumtreeConfig)
    assert_type(attrs.evolve(config, sync=SyncConfig(enabled=False)), PlumtreeConfig)
    none: int | None = config.max_eager_peers
    seconds: float = config.graft_timeout
    print(none, seconds)
    return config


class Shop(Delegate):
    def on_deliver(self, message: Message) -> None:
        print(message.origin.name, message.topic, message.payload, message.hops)

    def on_member_failed(self, node_id: NodeId) -> None:
        print("failed", node_id)

    def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        return payload + sender.encode()

    def on_security_event(self, kind: str, fields: Mapping[str, object]) -> None:
        print(kind, fields.get("peer"))

    def validate(self, message: Message) -> bool:
        return len(message.payload) < 1_000


async def service(quic: QuicConfig) -> None:
    node = Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:7946", delegate=Shop())
    async with node as running:
        assert_type(running, Node)
        assert_type(await running.join(["127.0.0.1:7947"], timeout=5.0), int)
        await running.wait_for_peers(3, timeout=10)
        receipt = await running.broadcast(b"payload", topic="orders")
        assert_type(receipt, Receipt)
        assert_type(receipt.id, MessageId)
        async with running.subscribe("orders", own=True, buffer=100) as messages:
            async for message in messages:
                assert_type(message, Message)
                assert_type(message.id, MessageId)
                break
        assert_type(running.members(), list[Member])
        assert_type(running.peers(), list[Peer])
        assert_type(running.health(), Health)
        if running.health().status is HealthStatus.HEALTHY:
            await running.send(running.members()[0].node_id, b"hello")
            assert_type(await running.request("spiffe://d/node/b", b"?", timeout=1.0), bytes)
        async for event in running.events():
            print(event.kind, event.node_id, event.detail)
            break
        await running.drain()
        await running.leave()
        await running.shutdown()


async def by_hand(quic: QuicConfig, policy: Policy) -> None:
    node = Node(
        quic,
        listen="0.0.0.0:7946",
        advertise="10.0.0.5",
        policy=policy,
        security_log=Path("security.log"),
        state_dir="/var/lib/orders",
    )
    await node.start()
    assert_type(node.id, NodeId)
    assert_type(node.address, str)
    assert_type(node.config, PlumtreeConfig)
    assert_type(node.peer_count(), int)
    assert_type(node.stats(), dict[str, int])
    assert_type(node.reload_credentials(), bool)
    assert_type(node.subscribe(), Subscription)
    assert_type(node.subscribe(when_full="drop_oldest"), Subscription)
    async with node.subscribe("orders", order="fifo", gap_timeout=1.0) as ordered:
        assert_type(ordered, OrderedSubscription)
        async for item in ordered:
            assert_type(item, Message | Gap)
    node.rebalance()
    for peer in node.peers():
        print(peer.node_id, peer.address, peer.eager, peer.rtt_s, peer.score)
    await node.shutdown()


async def from_the_environment() -> None:
    async with Node.from_env(delegate=Shop()) as node:
        assert_type(node, Node)
    assert_type(Node.from_env({"PLUMTREE_CERT": "a.crt"}), Node)
    Node(QuicConfig("a.crt", "a.key", "ca.crt", crl_path="ca.crl"), policy="policy.toml")
