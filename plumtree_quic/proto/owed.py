"""Announcements that are owed and not yet sent: one open batch for all links. Sends nothing itself.

What is owed is settled at delivery, a bit per link: whatever becomes of a link's place in the
tree before the batch closes, it is told. (Whoever reads the lazy set when the batch closes loses
messages without a trace.)
"""

import attrs

from plumtree_quic.messages import Announcement, Range
from plumtree_quic.proto.missing import StreamKey

__all__ = ["PIECES_MAX", "Owed", "OwedBatch"]

# Into how many pieces the announcements of one stream in one batch may be cut.
PIECES_MAX = 64


@attrs.define(eq=False)
class Owed:
    """first .. last of a stream, which came over `hop` links, is owed to the links in `mask`."""

    key: StreamKey
    first: int
    last: int
    hop: int
    mask: int


class OwedBatch:
    """What is owed since the last batch closed, in order.

    Each stream keeps the list of its own entries and hands it in, so that nothing is searched.
    """

    def __init__(self) -> None:
        self._entries: list[Owed] = []
        self._shared: tuple[int, int, tuple[Announcement, ...]] | None = None

    def __len__(self) -> int:
        """Return the number of entries; one covers bundles that follow each other."""
        return len(self._entries)

    def owe(self, own: list[Owed], key: StreamKey, run: Range, *, hop: int, mask: int) -> None:
        """`run` was delivered; `own` is the list of its stream."""
        if own:
            entry = own[-1]
            if entry.last + 1 == run[0] and entry.mask == mask and entry.hop == hop:
                entry.last = run[1]
                return
        entry = Owed(key, run[0], run[1], hop, mask)
        own.append(entry)
        self._entries.append(entry)

    def settle(self, own: list[Owed], bit: int, first: int, last: int) -> None:
        """The link `bit` has first .. last: it is owed nothing of that."""
        for entry in tuple(own):
            if not entry.mask & bit or entry.first > last or entry.last < first:
                continue
            cuts = entry.first < first or entry.last > last
            if cuts and len(own) >= PIECES_MAX:
                # Announcing too much is harmless; a list without end is not.
                continue
            if entry.first < first:
                self._split(own, entry, bit, (entry.first, first - 1))
            if entry.last > last:
                self._split(own, entry, bit, (last + 1, entry.last))
            entry.mask &= ~bit

    def _split(self, own: list[Owed], entry: Owed, bit: int, run: Range) -> None:
        rest = Owed(entry.key, run[0], run[1], entry.hop, bit)
        # Not at the end, where the next bundle looks for the entry that it continues.
        own.insert(0, rest)
        self._entries.append(rest)

    def forget_link(self, bit: int) -> None:
        """The link is down, and its bit may become another's."""
        for entry in self._entries:
            entry.mask &= ~bit

    def forget(self, own: list[Owed]) -> None:
        """The epoch is over."""
        for entry in own:
            entry.mask = 0

    def announcements(self, bit: int) -> tuple[Announcement, ...]:
        """What the link `bit` is owed; call only when the batch has closed."""
        if self._shared is None:
            entries = [entry for entry in self._entries if entry.mask]
            common, union = -1, 0
            for entry in entries:
                common &= entry.mask
                union |= entry.mask
            # Most links are owed the same: made once for all of them.
            self._entries = entries
            self._shared = (common, union, tuple(_announcement(entry) for entry in entries))
        common, union, everything = self._shared
        if not union & bit:
            return ()
        if common & bit:
            return everything
        return tuple(
            announcement
            for entry, announcement in zip(self._entries, everything, strict=True)
            if entry.mask & bit
        )

    def streams(self) -> list[StreamKey]:
        """The streams of which something is owed."""
        return [entry.key for entry in self._entries]


def _announcement(entry: Owed) -> Announcement:
    origin, epoch = entry.key
    return Announcement(origin, epoch, entry.first, entry.last, entry.hop)
