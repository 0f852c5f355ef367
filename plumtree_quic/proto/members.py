"""The member table: who is known, how new it is, in what state. No rules of probing, no links.

A row's rank is (epoch, incarnation) and only grows. At one rank the states follow each other as
alive, suspect, dead; left is final for its epoch. Members that are dead or left stay as tombstones
until the `valid_until` of their newest record: no record of that life can enter after it, so
forgetting them is safe.
"""

from collections.abc import Callable, Iterator

import attrs

from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.messages import Fact, MemberState, Record, Row
from plumtree_quic.proto.directory import BUCKETS, HASH_BYTES, Directory, hash_row, new_row_hash

__all__ = [
    "BUCKETS",
    "EPOCH_AHEAD_MS",
    "INCARNATION_STEP_MAX",
    "MEMBERS_MAX",
    "Member",
    "Members",
]

MEMBERS_MAX = 10_000
# A clock may be wrong, but not by more than a day (ARCHITECTURE section 5).
EPOCH_AHEAD_MS = 24 * 3600 * 1000
# An honest member raises its incarnation by one, and above what a peer showed it of its own past.
INCARNATION_STEP_MAX = 1 << 16
_EMPTY = new_row_hash().digest()

_ALIVE, _SUSPECT = MemberState.ALIVE, MemberState.SUSPECT
_DEAD, _LEFT = MemberState.DEAD, MemberState.LEFT


@attrs.define(eq=False)
class Member:
    """One row. Only `Members` changes rank, record and state.

    record: the newest one; its rank may lag behind the row's, which a bare fact can raise.
    told: the state that the application was told last; None when it never heard of this member.
    spoken: the subject's own newest fact (alive or left).
    relayed: rank of the newest `spoken` that was passed on.
    accusations: votes of this rank, by signer, in order of arrival.
    """

    key: MemberKey
    record: Record
    epoch: int
    incarnation: int
    state: MemberState
    told: MemberState | None = None
    spoken: Fact | None = None
    relayed: tuple[int, int] = (0, -1)
    accusations: dict[MemberKey, Fact] = attrs.field(factory=dict)

    @property
    def node_id(self) -> NodeId:
        """Whose row this is."""
        return self.record.node_id

    @property
    def rank(self) -> tuple[int, int]:
        """(epoch, incarnation); the larger is the newer."""
        return (self.epoch, self.incarnation)

    @property
    def row(self) -> Row:
        """The hint that is compared with other tables."""
        return Row(self.key, self.epoch, self.incarnation, self.state)


class Members:
    """All members of the cluster that we know of, ourselves included.

    Args:
        own: our own record.
        wall_ms: the wall clock in milliseconds since 1970, for validity dates alone.
        directory: members that are known, and alive, from the start. A row of our own takes the
            place of one of these once somebody needs to change it.
    """

    def __init__(
        self, own: Record, wall_ms: Callable[[], int], directory: Directory | None = None
    ) -> None:
        self._wall_ms = wall_ms
        self.me = member_key(own.node_id)
        self._rows: dict[MemberKey, Member] = {}
        self._shared: dict[MemberKey, Record] = {}
        self._shared_buckets: tuple[tuple[MemberKey, ...], ...] = ((),) * BUCKETS
        self._hashes: list[bytes | None] = [_EMPTY] * BUCKETS
        if directory is not None:
            self._shared = directory.records
            self._shared_buckets = directory.buckets
            self._hashes = list(directory.hashes)
        self._joined: bytes | None = None
        # Of the shared rows: those that are forgotten here.
        self._dropped: dict[MemberKey, None] = {}
        self._buckets: dict[int, dict[MemberKey, Member]] = {}
        self._count = self._alive = len(self._shared) - (self.me in self._shared)
        self._tombstones: dict[MemberKey, None] = {}
        self._own = Member(self.me, own, own.epoch, own.incarnation, _ALIVE, told=_ALIVE)
        self._insert(self._own)

    # --- queries --------------------------------------------------------------------------------

    @property
    def own(self) -> Record:
        """Our own newest record."""
        return self._own.record

    @property
    def own_row(self) -> Member:
        """Our own row."""
        return self._own

    def get(self, key: MemberKey) -> Member | None:
        """The row of `key`."""
        row = self._rows.get(key)
        if row is None and key in self._shared and key not in self._dropped:
            row = self._rows[key] = _met(key, self._shared[key])
            self._buckets.setdefault(key[0], {})[key] = row
        return row

    def __iter__(self) -> Iterator[Member]:
        """All rows, to look at."""
        yield from self._rows.values()
        for key, record in self._shared.items():
            if key not in self._rows and key not in self._dropped:
                yield _met(key, record)

    def __len__(self) -> int:
        return self._count

    def members(self) -> list[tuple[Record, MemberState]]:
        """All that the application was told of, ourselves included, in order of their ids."""
        return sorted(
            ((row.record, row.state) for row in self if row.told is not None),
            key=lambda pair: pair[0].node_id,
        )

    def alive_count(self) -> int:
        """Members that are alive or only suspected, ourselves included."""
        return self._alive

    def known_count(self) -> int:
        """Members that are alive, suspected or dead (not: left), ourselves included."""
        return self._alive + sum(self._rows[key].told is _DEAD for key in self._tombstones)

    def state_of(self, key: MemberKey) -> MemberState | None:
        """What we hold `key` for; None for a stranger."""
        row = self._rows.get(key)
        if row is not None:
            return row.state
        return _ALIVE if self._shared_record(key) is not None else None

    def record_of(self, key: MemberKey) -> Record | None:
        """The newest record of `key`."""
        row = self._rows.get(key)
        return row.record if row is not None else self._shared_record(key)

    def _shared_record(self, key: MemberKey) -> Record | None:
        return None if key in self._dropped else self._shared.get(key)

    def node_id_of(self, key: MemberKey) -> NodeId | None:
        """Who `key` stands for, when we know."""
        record = self.record_of(key)
        return record.node_id if record is not None else None

    def is_expired(self, record: Record) -> bool:
        """Whether `record` is past its `valid_until`."""
        return record.valid_until <= self._wall_ms()

    def is_ahead(self, epoch: int) -> bool:
        """Whether `epoch` lies further ahead of our clock than an honest clock can be wrong."""
        return epoch > self._wall_ms() + EPOCH_AHEAD_MS

    def own_valid_s(self) -> float:
        """How long our own record is still valid, in seconds."""
        return (self._own.record.valid_until - self._wall_ms()) / 1000.0

    # --- changes --------------------------------------------------------------------------------

    def refusal(self, record: Record) -> str | None:
        """Why `record` may not enter, or None.

        It may not when it is expired, of an epoch more than 24 h ahead of our clock, collides
        with another member's key, raises an incarnation by more than 2^16 within its epoch, or
        when the table is full.
        """
        if self.is_expired(record):
            return "record expired"
        if self.is_ahead(record.epoch):
            return "epoch more than 24 h ahead"
        row = self.get(member_key(record.node_id))
        if row is None:
            full = self._count >= MEMBERS_MAX and not self._tombstones
            return "table full" if full else None
        if row.record.node_id != record.node_id:
            return "two identities with one key"
        step = record.incarnation - row.incarnation
        if row.epoch == record.epoch and step > INCARNATION_STEP_MAX:
            return "incarnation raised too far"
        return None

    def enter(self, record: Record) -> Member:
        """Take in a stranger, alive; nobody is told yet. `refusal` was asked before."""
        if self._count >= MEMBERS_MAX:
            # Bounded memory wins over a long memory: the oldest tombstone makes room.
            self.forget(next(iter(self._tombstones)))
        key = member_key(record.node_id)
        row = Member(key, record, record.epoch, record.incarnation, _ALIVE)
        self._insert(row)
        return row

    def renew(self, row: Member, record: Record) -> None:
        """Replace a row's record by a newer one; the rank never falls."""
        row.record = record
        if record.rank > row.rank:
            self.rise(row, record.epoch, record.incarnation)

    def rise(self, row: Member, epoch: int, incarnation: int) -> None:
        """A newer statement of the subject about itself: older accusations are void."""
        row.epoch, row.incarnation = epoch, incarnation
        row.accusations.clear()
        self._touch(row.key)

    def become(self, row: Member, state: MemberState) -> None:
        """Change a row's state, and nothing else."""
        was, row.state = row.state, state
        self._alive += (state in (_ALIVE, _SUSPECT)) - (was in (_ALIVE, _SUSPECT))
        if state in (_DEAD, _LEFT):
            self._tombstones[row.key] = None
        else:
            self._tombstones.pop(row.key, None)
        self._touch(row.key)

    def forget(self, key: MemberKey) -> None:
        """Drop a tombstone."""
        del self._tombstones[key]
        del self._rows[key]
        del self._buckets[key[0]][key]
        if key in self._shared:
            self._dropped[key] = None
        self._count -= 1
        self._touch(key)

    def expire(self) -> int:
        """Forget the tombstones whose newest record has expired; return how many."""
        wall = self._wall_ms()
        old = [key for key in self._tombstones if self._rows[key].record.valid_until <= wall]
        for key in old:
            self.forget(key)
        return len(old)

    def _insert(self, row: Member) -> None:
        self._rows[row.key] = row
        self._buckets.setdefault(row.key[0], {})[row.key] = row
        self._count += 1
        self._alive += 1
        self._touch(row.key)

    def _touch(self, key: MemberKey) -> None:
        self._hashes[key[0]] = self._joined = None

    # --- comparing tables -----------------------------------------------------------------------

    def bucket_hashes(self) -> bytes:
        """256 hashes of 8 bytes over the sorted rows of each bucket.

        Tombstones do not count: a newcomer never learns of them, and tables that agree about the
        living are equal.
        """
        if self._joined is None:
            self._joined = b"".join(
                [
                    self._hash_of(bucket) if cached is None else cached
                    for bucket, cached in enumerate(self._hashes)
                ]
            )
        return self._joined

    def _hash_of(self, bucket: int) -> bytes:
        digest = new_row_hash()
        for row in self._bucket(bucket):
            if row.state in (_ALIVE, _SUSPECT):
                digest.update(hash_row(row.key, row.epoch, row.incarnation, row.state))
        self._hashes[bucket] = made = digest.digest()
        return made

    def _bucket(self, bucket: int) -> list[Member]:
        """The rows of a bucket in order of their keys, to look at."""
        own = self._buckets.get(bucket, {})
        shared = self._shared_buckets[bucket]
        keys = sorted({*own, *(key for key in shared if key not in self._dropped)})
        return [own[key] if key in own else _met(key, self._shared[key]) for key in keys]

    def differing(self, hashes: bytes) -> tuple[int, ...]:
        """The buckets in which another table, hashed to `hashes`, differs from ours."""
        own = self.bucket_hashes()
        if own == hashes:
            return ()
        return tuple(
            bucket
            for bucket in range(BUCKETS)
            if own[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES]
            != hashes[bucket * HASH_BYTES : (bucket + 1) * HASH_BYTES]
        )

    def rows(self, bucket: int) -> list[Row]:
        """All rows of a bucket, tombstones included, sorted by key."""
        return [row.row for row in self._bucket(bucket)]


def _met(key: MemberKey, record: Record) -> Member:
    """The row of a member that is known from the start."""
    row = Member(key, record, record.epoch, record.incarnation, _ALIVE, told=_ALIVE)
    # Everybody has heard of it.
    row.relayed = row.rank
    return row
