"""NetSettings: limits and timers of links. Values only; identity is security's business."""

import attrs

__all__ = ["NetSettings"]


@attrs.frozen(kw_only=True)
class NetSettings:
    """Limits of one endpoint. Times in seconds, sizes in bytes.

    Attributes:
        lane_window: what may be on its way on the gossip, sync, direct or bulk lane unconsumed; at
            least 139,264 (two of the largest frames), above 2 MiB it counts as 2 MiB. The ends of
            a link need not agree on it.
        loopback: our socket is bound to a loopback address: large packets pass there.
        handshake_s, welcome_s, close_s: absolute deadlines; welcome runs from the handshake's end
            to the other side's hello.
        idle_s: a link on which nothing came for so long is gone.
        ping_s: a link pings when nothing came for so long.
        incumbent_s: how long the older of two links has to answer a PING, at least.
        drain_s: how long a link that was replaced may take to deliver what it holds.
        half_open_max, links_per_address_max, links_max: connections that are kept at most when
            somebody dials us; the first counts those that have not greeted, half of which one
            address may hold; on loopback, where all have one address, neither that half nor the
            second is asked.
        datagram_bytes_max: the largest UDP payload that we take and send, None for the default:
            1,452 (an Ethernet frame with IPv6 headers), 16,000 on loopback.
        redial_s: first and largest back-off between dials of a wanted peer.
        refused_floor_s: least wait after the peer's alert said that our certificate is at fault.
        rate_limits: charge proved addresses against the accept budget (off for loopback).
    """

    lane_window: int = 262_144
    loopback: bool = False
    handshake_s: float = 5.0
    welcome_s: float = 5.0
    close_s: float = 1.0
    idle_s: float = 15.0
    ping_s: float = 5.0
    incumbent_s: float = 1.0
    drain_s: float = 5.0
    half_open_max: int = 64
    links_per_address_max: int = 64
    links_max: int = 256
    datagram_bytes_max: int | None = None
    redial_s: tuple[float, float] = (1.0, 60.0)
    refused_floor_s: float = 30.0
    rate_limits: bool = True

    @property
    def packet_bytes(self) -> int:
        """The largest UDP payload that we take."""
        if self.datagram_bytes_max is not None:
            return self.datagram_bytes_max
        return 16_000 if self.loopback else 1_452
