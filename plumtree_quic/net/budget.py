"""Token buckets: how often a stranger, or one address, may cost us something. Values and `now`."""

from collections import OrderedDict

import attrs

__all__ = ["AcceptBudget", "TokenBucket"]

RETRIES_PER_S = 5_000.0
ADDRESS_PER_S, ADDRESS_BURST = 20.0, 100.0
SOCKET_PER_S, SOCKET_BURST = 200.0, 400.0
ADDRESSES_MAX = 4_096


@attrs.define
class TokenBucket:
    """`rate` a second, `burst` at once; starts full. Times are monotonic seconds."""

    rate: float
    burst: float
    level: float = attrs.field(init=False)
    at: float | None = None

    def __attrs_post_init__(self) -> None:
        self.level = self.burst

    def take(self, now: float) -> bool:
        """Take one; False when there is none."""
        self.refill(now)
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True

    def spend(self, count: float, now: float) -> None:
        """Take `count` whether or not they are there; what is missing has to be earned first."""
        self.refill(now)
        self.level -= count

    def refill(self, now: float) -> None:
        """Count what was earned until `now`."""
        if self.at is None:
            self.at = now
        elif now > self.at:
            self.level = min(self.burst, self.level + (now - self.at) * self.rate)
            self.at = now


class AcceptBudget:
    """Who may make us build a connection. The tables are bounded; the oldest entry goes first."""

    def __init__(self) -> None:
        self._retries = TokenBucket(RETRIES_PER_S, RETRIES_PER_S)
        self._socket = TokenBucket(SOCKET_PER_S, SOCKET_BURST)
        self._addresses: OrderedDict[str, TokenBucket] = OrderedDict()

    def may_retry(self, now: float) -> bool:
        """Whether one more Retry may be sent; charged to nobody, for its address is unproved."""
        return self._retries.take(now)

    def may_accept(self, host: str, now: float) -> bool:
        """Whether `host`, which has proved its address, may cost a handshake."""
        bucket = self._addresses.get(host)
        if bucket is None:
            bucket = self._addresses[host] = TokenBucket(ADDRESS_PER_S, ADDRESS_BURST)
            if len(self._addresses) > ADDRESSES_MAX:
                self._addresses.popitem(last=False)
        else:
            self._addresses.move_to_end(host)
        return bucket.take(now) and self._socket.take(now)
