"""The public API as a user's program writes it. Type-checked in strict mode, never run."""

import os
from pathlib import Path
from typing import assert_type

from plumtree_quic import (
    ConfigError,
    CredentialsError,
    NodeId,
    PlumtreeConfig,
    PlumtreeError,
    QuicConfig,
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
    return config
