"""`python -m plumtree_quic.sim --seed N`: one storm over one cluster, or many. No rule lives here.

With `--chaos` it is chaos instead (chaos.py): a fifth of all packets lost, kill -9, stores.

Everything follows from the seed: size, settings, weather, who publishes when, what goes wrong. A
safety phase, in which every rule that holds at any time is checked, is followed by a calm one with
a bound, at whose end all who live must agree and have everything (as TigerBeetle's VOPR does).
"""

import argparse
import concurrent.futures
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

import attrs

from plumtree_quic.config import PlumtreeConfig, SyncConfig
from plumtree_quic.sim.chaos import run_chaos
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import Storm, draw_weather
from plumtree_quic.sim.order import HOLD_S, Readers
from plumtree_quic.sim.report import Report, Violation

__all__ = ["Outcome", "main", "weather_a_storm", "weather_chaos"]

STORM_S = (5.0, 60.0)
# After the storm: a dead member is dialled again at the latest after 80 s by each of the others,
# then tables and digests are compared.
CALM_S = 180.0
# So that a seed takes seconds, not minutes.
DELIVERIES_MAX = 8_000
PRESETS = ("default", "lan", "wan", "large_cluster")


@attrs.frozen
class Outcome:
    """One seed's options, and what came of it; `violation` is empty when every rule held."""

    seed: int
    options: str
    report: Report
    violation: str
    chaos: bool = False

    @property
    def replay(self) -> str:
        """The command that runs the same again."""
        chaos = "--chaos " if self.chaos else ""
        return f"python -m plumtree_quic.sim {chaos}--seed {self.seed}"


def weather_a_storm(seed: int) -> Outcome:
    """Run one seed to its end."""
    rng = Random(f"storm {seed}")
    nodes = rng.choice((2, 3, 5, 8, 12, 20, 30))
    preset = rng.choice(PRESETS)
    config = _preset(preset)
    # Histories longer than the cache are another promise (retention); here all can be repaired.
    config = attrs.evolve(
        config,
        message_cache_ttl=3_600.0,
        message_cache_max_size=1_000_000,
        max_eager_peers=rng.choice((config.max_eager_peers, 2, 4)),
        ihave_batch_size=rng.choice((1, config.ihave_batch_size, 64)),
        lane_window=rng.choice((139_264, config.lane_window)),
        sync=SyncConfig(sync_interval=5.0, max_batch_size=rng.choice((2, 100))),
    )
    weather, zones = draw_weather(rng), rng.choice((1, 1, 2, 3))
    if zones > 1:
        weather = attrs.evolve(weather, border_s=rng.choice((0.0, 0.05)))
    cluster = Cluster(
        config=config,
        weather=weather,
        seed=seed,
        zone_of=None if zones == 1 else lambda name: f"zone{int(name[1:]) % zones}",
    )
    seconds = rng.uniform(*STORM_S)
    rate = min(rng.choice((0.5, 5.0, 50.0)), DELIVERIES_MAX / (seconds * nodes))
    size = rng.choice((16, 1_000, 8_000))
    options = (
        f"{nodes} nodes in {zones} zones, {preset}, "
        f"max_eager_peers {config.max_eager_peers}, batches of "
        f"{config.ihave_batch_size}, window {config.lane_window}, {seconds:.0f} s, {rate:g}/s of "
        f"{size} bytes, {cluster.weather}"
    )
    violation = ""
    try:
        _run(cluster, rng, nodes, seconds, rate, size)
    except Violation as error:
        violation = str(error)
    except Exception as error:
        # Whatever a core raises would end a turn of the driver: S10.
        traceback.print_exc()
        violation = f"S10: {type(error).__name__}: {error}"
    return Outcome(seed, options, cluster.report(), violation)


def weather_chaos(seed: int) -> Outcome:
    """Run one seed of chaos to its end."""
    cluster, logs, violation = run_chaos(seed)
    options = (
        f"{len(cluster.identities)} nodes, {len(cluster.accepted)} bundles accepted, "
        f"{len(cluster.journal.crashes)} kills, {logs.again} messages read again, cache of "
        f"{cluster.config.message_cache_ttl:g} s and {cluster.config.message_cache_max_size}"
    )
    return Outcome(seed, options, cluster.report(), violation, chaos=True)


def _preset(name: str) -> PlumtreeConfig:
    match name:
        case "lan":
            return PlumtreeConfig.lan()
        case "wan":
            return PlumtreeConfig.wan()
        case "large_cluster":
            return PlumtreeConfig.large_cluster()
        case _:
            return PlumtreeConfig()


def _run(cluster: Cluster, rng: Random, nodes: int, seconds: float, rate: float, size: int) -> None:
    readers = Readers(cluster)
    cluster.grow(nodes, seeds=min(3, nodes), gap_s=rng.choice((0.0, 0.01, 0.5)))
    cluster.run(rng.choice((0.0, 1.0, 10.0)))
    names = tuple(cluster.hosts)
    storm = Storm.draw(rng, names, seconds)
    cluster.unleash(storm)
    publishers = rng.sample(names, rng.randrange(1, len(names) + 1))
    end = cluster.time.now + seconds
    while cluster.time.now < end:
        cluster.run(rng.expovariate(rate))
        host = cluster.hosts.get(rng.choice(publishers))
        if host is not None and host.awake():
            host.publish(*[rng.randbytes(rng.randrange(size)) for _ in range(rng.choice((1, 3)))])
    cluster.calm()
    cluster.run(CALM_S, lambda: cluster.agreed() and cluster.settled(), look_s=1.0)
    if not cluster.agreed():
        views = {name: sorted(host.view()) for name, host in cluster.hosts.items()}
        raise Violation(f"L1: no agreement {CALM_S:g} s after the storm: {views}")
    missing = cluster.journal.missing()
    if missing:
        life, bundle = missing[0]
        raise Violation(
            f"L2: {len(missing)} deliveries are missing {CALM_S:g} s after the storm, the first "
            f"at {life.name}: {bundle.first}..{bundle.last} of epoch {bundle.epoch}"
        )
    # What does not come is given up by then.
    cluster.run(2 * HOLD_S, lambda: not readers.held(), look_s=1.0)
    if readers.held():
        raise Violation(f"FIFO: {readers.held()} messages are held back when all is calm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds; 0 when every rule held in all of them."""
    parser = argparse.ArgumentParser(prog="python -m plumtree_quic.sim")
    parser.add_argument("--seed", type=int, default=0, help="the (first) seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--minutes", type=float, help="as many as begin within this time instead")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with seeds of its own")
    parser.add_argument("--chaos", action="store_true", help="kill -9, restarts and stores")
    options = parser.parse_args(arguments)
    seeds: Iterable[int]
    if options.minutes is None:
        seeds = range(options.seed, options.seed + options.seeds)
    else:
        seeds = _for_minutes(options.minutes, options.seed)
    outcomes = _swarm(weather_chaos if options.chaos else weather_a_storm, seeds, options.jobs)
    single = options.minutes is None and options.seeds == 1
    count = failed = deliveries = 0
    for outcome in outcomes:
        count += 1
        deliveries += outcome.report.delivered
        print(f"seed {outcome.seed}: {outcome.violation or 'ok'}")
        if single or outcome.violation:
            print(f"  {outcome.options}")
        if single:
            print("\n".join(f"  {line}" for line in outcome.report.lines()))
        if outcome.violation:
            failed += 1
            print(f"  replay: {outcome.replay}")
        sys.stdout.flush()
    print(f"{count} seeds from {options.seed}, {deliveries} deliveries: {failed} failed")
    return 1 if failed else 0


def _for_minutes(minutes: float, seed: int) -> Iterator[int]:
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        yield seed
        seed += 1


def _swarm(weather: Callable[[int], Outcome], seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """The outcomes in order of their seeds; a seed is taken when a process is free for it."""
    if jobs <= 1:
        yield from map(weather, seeds)
        return
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        running: deque[concurrent.futures.Future[Outcome]] = deque()
        for seed in seeds:
            running.append(pool.submit(weather, seed))
            if len(running) > jobs:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


if __name__ == "__main__":
    sys.exit(main())
