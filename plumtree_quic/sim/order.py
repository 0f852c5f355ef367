"""Ordered readers beside the journal: one in each life of each node, each holding FIFO to its word.

An observer as the journal is: nothing of it reaches a core. The rules:

- FIFO: what a reader is handed of an origin has ever higher (epoch, number)s, holes included;
- told: what is delivered is handed over, held back, or told as a hole.
"""

from functools import partial

import attrs

from plumtree_quic.ids import MemberKey
from plumtree_quic.proto.effects import Deliver
from plumtree_quic.proto.fifo import HoldBack, Hole
from plumtree_quic.sim.cluster import Cluster, Host
from plumtree_quic.sim.report import Life, Violation

__all__ = ["HOLD_S", "Readers"]

HOLD_S = 60.0
"""How long these readers wait for a message: longer than most partitions of a storm last."""
QUIET_S = 0.5
ITEMS_MAX = 100_000
# Virtual time costs nothing, but looking does.
SETTLE_EVERY_S = 0.25

_Item = tuple[MemberKey, int, int]
"""(origin, epoch, sequence number)."""


@attrs.define(eq=False)
class _Reader:
    """delivered, handed: messages so far. at: of each origin what was handed over last."""

    back: HoldBack[_Item]
    delivered: int = 0
    handed: int = 0
    holes: list[Hole] = attrs.field(factory=list)
    at: dict[MemberKey, tuple[int, int]] = attrs.field(factory=dict)


class Readers:
    """Ordered readers for a cluster; make it before anything is published."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._readers: dict[Life, _Reader] = {}
        cluster.journal.also_delivered = self._on_delivered
        cluster.time.after(SETTLE_EVERY_S, self._settle)

    def _on_delivered(self, life: Life, effect: Deliver, now: float) -> None:
        reader = self._readers.get(life)
        if reader is None:
            back: HoldBack[_Item] = HoldBack(hold_s=HOLD_S, quiet_s=QUIET_S, items_max=ITEMS_MAX)
            reader = self._readers[life] = _Reader(back)
        bundle = effect.bundle
        key, epoch, first, last = bundle.origin, bundle.epoch, bundle.first, bundle.last
        items = [(key, epoch, seq) for seq in range(first, last + 1)]
        reader.delivered += len(items)
        late = reader.back.late
        out = reader.back.put(key, epoch, first, last, items, now, bundle.previous)
        if reader.back.late > late:
            # Told, now or before, and not at its place any more.
            out = []
        self._hand_over(life, reader, out)

    def _settle(self) -> None:
        now = self._cluster.time.now
        for host in self._cluster.hosts.values():
            reader = self._readers.get(host.life)
            if reader is not None and reader.back.is_waiting and host.awake():
                self._settle_one(host, reader, now)
        self._cluster.time.after(SETTLE_EVERY_S, self._settle)

    def _settle_one(self, host: Host, reader: _Reader, now: float) -> None:
        broadcasts = host.core.broadcasts
        out = reader.back.settle(
            broadcasts.seen_through, partial(broadcasts.awaits, now=host.now()), now
        )
        self._hand_over(host.life, reader, out)

    def _hand_over(self, life: Life, reader: _Reader, out: list[_Item | Hole]) -> None:
        for each in out:
            if isinstance(each, Hole):
                origin, epoch, first, last = each.origin, each.epoch, each.first, each.last
                reader.holes.append(each)
            else:
                (origin, epoch, first), last = each, each[2]
                reader.handed += 1
            if (epoch, first) <= reader.at.get(origin, (0, 0)):
                raise Violation(
                    f"FIFO: {life.name} is handed {first} of epoch {epoch} after "
                    f"{reader.at[origin]} of the same origin"
                )
            reader.at[origin] = (epoch, last)
        back = reader.back
        if reader.handed + back.late + back.held != reader.delivered:
            raise Violation(
                f"told: of {reader.delivered} messages {life.name} was handed {reader.handed}, "
                f"{back.held} are held back and {back.late} came too late"
            )

    def held(self) -> int:
        """Messages that wait for their turn at those who live."""
        living = (reader for life, reader in self._readers.items() if life.alive and not life.left)
        return sum(reader.back.held for reader in living)

    def given(self, life: Life) -> tuple[int, tuple[Hole, ...]]:
        """(messages that the reader of `life` was handed, the holes that it was told)."""
        reader = self._readers.get(life)
        return (reader.handed, tuple(reader.holes)) if reader is not None else (0, ())
