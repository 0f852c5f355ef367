"""plumtree-quic: secure messaging inside a cluster. The public names, and nothing else."""

import importlib
from typing import TYPE_CHECKING, Any

from plumtree_quic.errors import (
    ConfigError,
    CredentialsError,
    IdentityConflict,
    IdentityError,
    JoinError,
    LinkError,
    LocalProtocolError,
    MessageTooLarge,
    NodeClosed,
    NotAllowed,
    NotCovered,
    PlumtreeError,
    RemoteProtocolError,
    StoreError,
    WireError,
)

if TYPE_CHECKING:
    from plumtree_quic.config import (
        CompressionConfig,
        HealthConfig,
        PlumtreeConfig,
        StorageConfig,
        SyncConfig,
    )
    from plumtree_quic.ids import MessageId, NodeId
    from plumtree_quic.messages import MemberState
    from plumtree_quic.node import (
        ClusterEvent,
        Coverage,
        Delegate,
        Gap,
        Health,
        HealthStatus,
        Loss,
        Member,
        Message,
        Node,
        OrderedSubscription,
        Peer,
        Receipt,
        Subscription,
    )
    from plumtree_quic.security.credentials import QuicConfig
    from plumtree_quic.security.policy import Policy
    from plumtree_quic.store.contract import MessageStore
    from plumtree_quic.store.memory import MemoryStore
    from plumtree_quic.store.sqlite import SqliteStore

__version__ = "0.1.0"

__all__ = [
    "ClusterEvent",
    "CompressionConfig",
    "ConfigError",
    "Coverage",
    "CredentialsError",
    "Delegate",
    "Gap",
    "Health",
    "HealthConfig",
    "HealthStatus",
    "IdentityConflict",
    "IdentityError",
    "JoinError",
    "LinkError",
    "LocalProtocolError",
    "Loss",
    "Member",
    "MemberState",
    "MemoryStore",
    "Message",
    "MessageId",
    "MessageStore",
    "MessageTooLarge",
    "Node",
    "NodeClosed",
    "NodeId",
    "NotAllowed",
    "NotCovered",
    "OrderedSubscription",
    "Peer",
    "PlumtreeConfig",
    "PlumtreeError",
    "Policy",
    "QuicConfig",
    "Receipt",
    "RemoteProtocolError",
    "SqliteStore",
    "StorageConfig",
    "StoreError",
    "Subscription",
    "SyncConfig",
    "WireError",
]

# Imported when first used: `plumtree-quic certs` should not load a QUIC stack.
_HOME = {
    "ClusterEvent": "plumtree_quic.node",
    "CompressionConfig": "plumtree_quic.config",
    "Coverage": "plumtree_quic.node",
    "Delegate": "plumtree_quic.node",
    "Gap": "plumtree_quic.node",
    "Health": "plumtree_quic.node",
    "HealthConfig": "plumtree_quic.config",
    "HealthStatus": "plumtree_quic.node",
    "Loss": "plumtree_quic.node",
    "Member": "plumtree_quic.node",
    "MemberState": "plumtree_quic.messages",
    "MemoryStore": "plumtree_quic.store.memory",
    "Message": "plumtree_quic.node",
    "MessageId": "plumtree_quic.ids",
    "MessageStore": "plumtree_quic.store.contract",
    "Node": "plumtree_quic.node",
    "NodeId": "plumtree_quic.ids",
    "OrderedSubscription": "plumtree_quic.node",
    "Peer": "plumtree_quic.node",
    "PlumtreeConfig": "plumtree_quic.config",
    "Policy": "plumtree_quic.security.policy",
    "QuicConfig": "plumtree_quic.security.credentials",
    "Receipt": "plumtree_quic.node",
    "SqliteStore": "plumtree_quic.store.sqlite",
    "StorageConfig": "plumtree_quic.config",
    "Subscription": "plumtree_quic.node",
    "SyncConfig": "plumtree_quic.config",
}


if not TYPE_CHECKING:  # a type checker would take any name for exported

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
