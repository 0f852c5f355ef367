"""How good the path of a link is: packets lost of late, and what that costs a frame. No links here.

Whom to ask and whom to take for a parent is decided between links that are equal otherwise, and a
short path that loses every tenth packet is no short one.
"""

__all__ = ["LOSS_MAX", "LossMeter", "crossing_s"]

LOSS_MAX = 0.9
"""Above this a path counts as no worse: what is lost ten times in a row is a matter of silence."""
# Packets to a look: fewer say nothing, and an idle link sends about one a second.
LOOK_PACKETS = 32
# What a look counts against all before it (RFC 9002 smooths round trips by an eighth).
LOOK_SHARE = 1 / 4


class LossMeter:
    """The share of packets that were lost on one path, smoothed.

    Attributes:
        share: 0.0 to 1.0; 0.0 before enough was sent to tell.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._sent = self._lost = 0

    def look(self, sent: int, lost: int) -> float:
        """Return `share`, after what is new in these two counts since the path began."""
        packets = sent - self._sent
        if packets >= LOOK_PACKETS:
            fresh = min(1.0, (lost - self._lost) / packets)
            self.share += (fresh - self.share) * LOOK_SHARE
            self._sent, self._lost = sent, lost
        return self.share


def crossing_s(rtt_s: float, pto_s: float, loss: float) -> float:
    """How long a frame takes to cross in the mean, in seconds.

    Half a round trip, and a probe time-out (RFC 9002, section 6.2) for each time that it is lost:
    loss / (1 - loss) times in the mean.
    """
    loss = min(loss, LOSS_MAX)
    return rtt_s / 2 + pto_s * loss / (1 - loss)
