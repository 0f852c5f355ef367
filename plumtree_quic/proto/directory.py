"""A member list as a value: what many cores can share, in a simulation of thousands.

Whoever starts with a directory knows all of its members, alive, as if it had met them long ago. It
holds nothing that a core could change: a core keeps what it has learnt since for itself. Real
nodes start without one.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import MemberState, Record

__all__ = [
    "BUCKETS",
    "HASH_BYTES",
    "Directory",
    "Holders",
    "hash_row",
    "is_zoned",
    "key_positions",
    "new_row_hash",
    "ring_positions",
]

BUCKETS = 256
HASH_BYTES = 8
# Both sides must hash alike; the key only keeps these hashes apart from all others.
_HASH_KEY = b"plumtree-quic/1 member rows"


def new_row_hash() -> "hashlib.blake2b":
    """The hash of an empty bucket, to be fed with rows in order of their keys."""
    return hashlib.blake2b(digest_size=HASH_BYTES, key=_HASH_KEY)


def hash_row(key: MemberKey, epoch: int, incarnation: int, state: MemberState) -> bytes:
    """What one row adds to the hash of its bucket."""
    return key + epoch.to_bytes(8, "big") + incarnation.to_bytes(8, "big") + bytes((state.value,))


@lru_cache(maxsize=65536)
def key_positions(key: MemberKey, rings: int) -> tuple[int, ...]:
    """Where a member stands on each ring: BLAKE2b(member key, ring number), as 64-bit integers.

    Of the key, not of the NodeId: who joins finds its neighbours among rows, before any record.
    """
    return tuple(
        int.from_bytes(
            hashlib.blake2b(key, digest_size=8, salt=ring.to_bytes(2, "big")).digest(), "big"
        )
        for ring in range(rings)
    )


@lru_cache(maxsize=65536)
def ring_positions(node_id: NodeId, rings: int) -> tuple[int, ...]:
    """Where `node_id` stands on each ring."""
    return key_positions(member_key(node_id), rings)


def is_zoned(ring: int, rings: int) -> bool:
    """Whether ring number `ring` of so many is one ring a zone: half of them, and at least two.

    Never the first: it holds everybody, and so the cluster together.
    """
    return 1 <= ring <= max(2, rings // 2) and ring < rings


Holders = dict[str, list[tuple[int, NodeId]]]
"""Who stands on one ring number: (position, NodeId) in order, by zone; under "" on the rings that
hold everybody."""


class Directory:
    """All members at the start, ourselves among them. Never changed once it is made.

    records: by member key. addresses, served: as the overlay and the seeds keep them. zones: of
    those that name one. holders: per ring; made once for each number of rings that is asked for.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records: dict[MemberKey, Record] = {
            member_key(record.node_id): record for record in records
        }
        self.addresses: dict[NodeId, tuple[str, ...]] = {
            record.node_id: record.addresses for record in self.records.values()
        }
        self.zones: dict[NodeId, str] = {
            record.node_id: record.zone for record in self.records.values() if record.zone
        }
        self.served: dict[str, int] = {}
        for addresses in self.addresses.values():
            for address in addresses:
                self.served[address] = self.served.get(address, 0) + 1
        buckets: list[list[MemberKey]] = [[] for _ in range(BUCKETS)]
        for key in sorted(self.records):
            buckets[key[0]].append(key)
        self.buckets = tuple(tuple(each) for each in buckets)
        self.hashes = tuple(self._hash(each) for each in self.buckets)
        self._holders: dict[int, tuple[Holders, ...]] = {}

    def _hash(self, keys: tuple[MemberKey, ...]) -> bytes:
        digest = new_row_hash()
        for key in keys:
            record = self.records[key]
            digest.update(hash_row(key, record.epoch, record.incarnation, MemberState.ALIVE))
        return digest.digest()

    def holders(self, rings: int) -> tuple[Holders, ...]:
        """Everybody on each of so many rings; to be copied before it is changed."""
        made = self._holders.get(rings)
        if made is None:
            made = self._holders[rings] = tuple({} for _ in range(rings))
            for node_id in self.addresses:
                zone = self.zones.get(node_id, "")
                for ring, position in enumerate(ring_positions(node_id, rings)):
                    holders = made[ring].setdefault(zone if is_zoned(ring, rings) else "", [])
                    holders.append((position, node_id))
            for each in made:
                for holders in each.values():
                    holders.sort()
        return made
