"""What goes wrong, as plain values: the weather on all ways, and storms drawn from a seed.

Nothing here acts; the cluster does what a storm says, when it says so.
"""

from random import Random
from typing import Literal

import attrs

__all__ = ["CALM", "WIDE", "Blow", "Storm", "Weather"]


@attrs.frozen(kw_only=True)
class Weather:
    """What all ways are like.

    Attributes:
        latency_s: one way, each pair of nodes draws its own from this range.
        border_s: so much longer is the way between two zones.
        jitter_s: up to so much is added to each packet.
        loss: share of packets that are lost; delay on lanes, loss for datagrams.
        duplicate: share of datagrams that come twice.
        replay: share of datagrams that come once more, up to five seconds later; and of bundles
            that a peer pushes once more, as a confused or an evil one would.
        bandwidth: bytes per second of each direction of each link; None: no limit.
    """

    latency_s: tuple[float, float] = (0.001, 0.003)
    border_s: float = 0.0
    jitter_s: float = 0.0005
    loss: float = 0.0
    duplicate: float = 0.0
    replay: float = 0.0
    bandwidth: float | None = None


CALM = Weather()
"""A data centre on a good day."""
WIDE = Weather(latency_s=(0.01, 0.12), jitter_s=0.005)
"""Nodes on several continents."""


Kind = Literal[
    "break",
    "silent_break",
    "crash",
    "pause",
    "suspend",
    "slow",
    "clock",
    "cut",
    "partition",
    "weather",
]


@attrs.frozen
class Blow:
    """One thing that goes wrong, `at` so many seconds after the storm's begin.

    names: whom it hits; of a cut, from whom to whom; of a partition one side. seconds: how long a
    pause, a sleep of the machine, slowness, a cut or a partition lasts, or until a crashed node is
    started again (0: never). by_s: of a slow node how long each frame takes, of a wall clock how
    far it is ahead from then on.
    """

    at: float
    kind: Kind
    names: tuple[str, ...] = ()
    seconds: float = 0.0
    by_s: float = 0.0
    weather: Weather | None = None


@attrs.frozen
class Storm:
    """A schedule of blows, in order of time."""

    seconds: float
    blows: tuple[Blow, ...]

    @classmethod
    def draw(cls, rng: Random, names: tuple[str, ...], seconds: float) -> "Storm":
        """Draw a storm: some kinds of fault, each at a rate of its own.

        At most a third of the nodes crash, so that somebody is left to tell.
        """
        hits = {kind: rng.choice((0.0, 0.01, 0.05, 0.2)) for kind in _OF_NODES}
        rates: dict[Kind, float] = {kind: hits[kind] * len(names) / 10 for kind in _OF_NODES}
        rates |= {kind: rng.choice((0.0, 0.02, 0.1)) for kind in _OF_ALL}
        blows: list[Blow] = []
        for kind, rate in rates.items():
            at = 0.0
            while rate and (at := at + rng.expovariate(rate)) < seconds:
                blows.append(_draw_blow(rng, at, kind, names))
        crashes = [blow for blow in blows if blow.kind == "crash"]
        spared = crashes[len(names) // 3 :]
        blows = [blow for blow in blows if blow not in spared]
        return cls(seconds, tuple(sorted(blows, key=lambda blow: blow.at)))


_OF_NODES: tuple[Kind, ...] = (
    "break",
    "silent_break",
    "crash",
    "pause",
    "suspend",
    "slow",
    "clock",
    "cut",
)
_OF_ALL: tuple[Kind, ...] = ("partition", "weather")


def _draw_blow(rng: Random, at: float, kind: Kind, names: tuple[str, ...]) -> Blow:
    match kind:
        case "break" | "silent_break":
            return Blow(at, kind, tuple(rng.sample(names, 2)))
        case "cut":
            return Blow(at, kind, tuple(rng.sample(names, 2)), _draw_seconds(rng))
        case "crash":
            again = rng.choice((0.0, rng.uniform(0.1, 5.0), rng.uniform(5.0, 40.0)))
            return Blow(at, kind, (rng.choice(names),), again)
        case "pause":
            return Blow(at, kind, (rng.choice(names),), rng.choice((0.2, 1.0, 3.0, 20.0)))
        case "suspend":
            return Blow(at, kind, (rng.choice(names),), rng.choice((0.6, 3.0, 10.0, 40.0)))
        case "slow":
            frame_s = rng.choice((0.001, 0.01, 0.05))
            return Blow(at, kind, (rng.choice(names),), rng.uniform(1.0, 20.0), by_s=frame_s)
        case "clock":
            # Signatures allow for a minute between any two clocks.
            return Blow(at, kind, (rng.choice(names),), by_s=rng.choice((-29, -5, -2, 0, 2, 29)))
        case "partition":
            side = tuple(rng.sample(names, rng.randrange(1, len(names))))
            return Blow(at, kind, side, _draw_seconds(rng))
        case "weather":
            return Blow(at, kind, weather=draw_weather(rng))


def _draw_seconds(rng: Random) -> float:
    """Shorter than a probe notices, than a suspicion lasts, or than neither."""
    return rng.choice((rng.uniform(0.05, 0.5), rng.uniform(0.5, 5.0), rng.uniform(5.0, 60.0)))


def draw_weather(rng: Random) -> Weather:
    """Draw some weather, from calm to a fifth of all packets lost."""
    return Weather(
        latency_s=rng.choice((CALM, WIDE)).latency_s,
        jitter_s=rng.choice((0.0, 0.0005, 0.02)),
        loss=rng.choice((0.0, 0.01, 0.05, 0.2)),
        duplicate=rng.choice((0.0, 0.1)),
        replay=rng.choice((0.0, 0.05)),
        bandwidth=rng.choice((None, None, 1e6)),
    )
