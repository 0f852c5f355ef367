"""Every reason for which something is not delivered, or comes late: its code, when to tell of it.

A reason's code is the name of its counter in `Node.stats()`; docs/delivery.md says what each means
and what to do. Whatever counts a loss is named here: a test holds this list, that page and the
counters together.
"""

from collections.abc import Mapping

import attrs

__all__ = ["DELAYS", "LOSSES", "TOLD_EVERY_S", "Loss", "LossWatch"]

LOSSES: dict[str, str] = {
    "subscription_overflows": "a subscription fell too far behind and was ended",
    "subscription_dropped": "messages were dropped for a subscription that fell behind",
    "order_gaps": "an ordered subscription was told of a gap",
    "order_late": "messages came after their gap was told",
    "messages_oversized": "messages above max_message_size came",
    "chunks_dropped_memory": "large messages were given up, for too many were incomplete",
    "chunks_dropped_time": "large messages were given up of which nothing came for long",
    "chunks_dropped_past": "large messages were given up of which a part will not come",
    "chunks_dropped_lie": "large messages came whose pieces contradict one another",
    "chunks_refused": "large messages were refused by Delegate.validate",
    "tree_refused": "bundles were refused by Delegate.validate",
    "bundles_not_allowed": "bundles came on topics that their origin may not publish to",
    "bundles_malformed": "bundles came whose body cannot be read",
    "gate_refused": "bundles, records or facts came whose signature is worth nothing",
    "tree_equivocations": "bundles came that say something else under a number that is taken",
    "tree_stale": "bundles of an epoch came that is too old",
    "tree_ids_lost": "messages were given up that nobody offers any more",
    "store_unacked_evicted": "the store let messages go that a reader had not acknowledged",
    "store_corrupt": "bundles in the store were damaged",
}
"""What is not given to the application, or not to all of it."""

DELAYS: dict[str, str] = {
    "parked_expired": "bundles waited for the record of their origin too long",
    "parked_refused": "bundles of unknown origins found no room to wait",
    "gate_wait_expired": "something waited for a certificate too long",
    "gate_wait_refused": "something that needs a certificate found no room to wait",
    "tree_over_gaps": "bundles would have opened too many holes",
    "announcements_clipped": "more was announced than is taken",
    "grafts_failed": "every announcer was asked in vain",
    "grafts_over_rate": "peers asked too often and were told that we are busy",
    "grafts_busy": "peers that do not read were told that we are busy",
    "congested": "links had no room for pushes",
    "frames_throttled": "frames of peers above their limits were not looked at",
    "peers_cut": "links of peers above their limits were cut",
    "rows_disbelieved": "rows of peers are not believed for a while",
    "store_commit_errors": "the store could not be written",
    "store_read_errors": "the store could not be read",
    "store_full": "the disk was behind, and links were held back",
    "ranges_unserved": "ranges that peers asked of the store were not served",
    "rows_unserved": "peers that do not read were not told what we have",
}
"""What costs time and is not lost."""

# How often one reason is told of at most.
TOLD_EVERY_S = 10.0


@attrs.frozen
class Loss:
    """reason: the code. count: how often since it was told last. is_final: nothing brings it back.
    what: in words.
    """

    reason: str
    count: int
    is_final: bool
    what: str


@attrs.define
class LossWatch:
    """Looks at counters and says what to tell."""

    _told: dict[str, int] = attrs.field(factory=dict)
    _told_at: dict[str, float] = attrs.field(factory=dict)

    def look(self, stats: Mapping[str, int], now: float) -> list[Loss]:
        """What has been lost since it was told last, each reason once in TOLD_EVERY_S at most."""
        out: list[Loss] = []
        for reasons, is_final in ((LOSSES, True), (DELAYS, False)):
            for reason, what in reasons.items():
                count = stats.get(reason, 0) - self._told.get(reason, 0)
                if count and now - self._told_at.get(reason, float("-inf")) >= TOLD_EVERY_S:
                    self._told[reason] = stats[reason]
                    self._told_at[reason] = now
                    out.append(Loss(reason, count, is_final, what))
        return out
