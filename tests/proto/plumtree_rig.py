"""Bundles for tests of the broadcast core: unsigned, small, of any origin."""

import hashlib

from plumtree_quic.ids import MemberKey
from plumtree_quic.wire import build_bundle


def key(name: str) -> MemberKey:
    return MemberKey(hashlib.sha256(name.encode()).digest()[:16])


def bundle(first, *, origin="o", epoch=1, count=1, payload=b"x"):
    return build_bundle(
        origin=key(origin), epoch=epoch, first=first, messages=[("", payload)] * count
    )
