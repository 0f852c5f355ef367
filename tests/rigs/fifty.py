"""Fifty real node processes through what a cluster meets: a start, kill -9, a partition.

``python -m tests.rigs.fifty`` (``scripts/soak fifty``) starts them a few at a time behind a relay
(relay.py) whose addresses they advertise, and goes through its phases:

    start      until everybody knows everybody
    quiet      nothing is sent
    stream     messages to all
    kill       more messages, and kill -9 of some nodes in the middle of them
    apart      the relay parts the survivors into halves; both go on publishing
    heal       until all agree again
    together   messages to all

It ends by itself and exits with 1 when a rule was broken; the rules are in `broken_rules`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from plumtree_quic.cli.cluster import swarm
from plumtree_quic.cli.worker import STAMP_BYTES
from plumtree_quic.config import PRESETS, PlumtreeConfig
from plumtree_quic.errors import PlumtreeError
from plumtree_quic.proto.overlay import MESH_MEMBERS_MAX, SPARE_DIALS_MAX
from tests.rigs.relay import RelayProcess, free_port
from tests.rigs.waiting import ASIDE

POLL_S = 0.5
TELL_S = 10.0
PHASES = ("start", "quiet", "stream", "kill", "apart", "heal", "together")
PUBLISHING_PHASES = ("stream", "kill", "apart", "together")
SEEDS = 3
# So much of the stream has been published when the victims die.
KILL_AT_SHARE = 0.3
# So much of the time apart is published in, so that there is time for the last of it to arrive.
APART_PUBLISHING_SHARE = 0.7
# What a node holds against a peer, or finds wrong with itself: nothing, where all are honest.
BLAME = ("strikes", "frames_throttled", "peers_demoted", "peers_cut", "errors")
COUNTERS = (
    "swim_accusations_made",
    "swim_refutations",
    "swim_probes_failed",
    "swim_links_failed",
    "grafts_sent",
    *BLAME,
)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
TOLD_MAX = 20


@attrs.frozen(kw_only=True)
class Plan:
    """What to go through.

    apart_s: how long the partition lasts at least; it also lasts until each half has declared the
        other one failed. rate: messages a second, in all. at_once: processes that start together.
    quiet_s: how long nothing is sent once all know one another, to see what an idle node costs.
    patience_s: how long anything is waited for. limit_s: how long all of it may take.
    """

    nodes: int = 50
    kill: int = 10
    apart_s: float = 60.0
    messages: int = 200
    size: int = 256
    rate: float = 20.0
    publishers: int = 8
    preset: str = "lan"
    config: dict = attrs.field(factory=dict)
    at_once: int = 4
    quiet_s: float = 10.0
    patience_s: float = 300.0
    limit_s: float = 1_800.0
    seed: int = 1

    def made_config(self):
        make = PlumtreeConfig if self.preset == "default" else getattr(PlumtreeConfig, self.preset)
        return make(**self.config)


@attrs.frozen
class Published:
    """Messages first..last of `origin`, owed to each of `audience` exactly once."""

    phase: str
    origin: str
    first: int
    last: int
    audience: tuple[str, ...]


@attrs.frozen
class Failure:
    """`by` declared `of` failed, at this time of the monotonic clock."""

    by: str
    of: str
    at: float


@attrs.define(kw_only=True)
class Record:
    """What happened. Nodes go by their names; `broken_rules` judges it.

    received: by node and origin, the sequence numbers that were delivered at least once.
    duplicates, foreign: by node, deliveries of what had been delivered, and of what nobody sent.
    blame: by node, counters of BLAME at the end. links_most: the most that any node was seen with
        at any moment. unmet: what did not come about.
    """

    names: list[str]
    killed: list[str] = attrs.field(factory=list)
    halves: list[list[str]] = attrs.field(factory=list)
    published: list[Published] = attrs.field(factory=list)
    received: dict[str, dict[str, set[int]]] = attrs.field(factory=dict)
    duplicates: dict[str, int] = attrs.field(factory=dict)
    foreign: dict[str, int] = attrs.field(factory=dict)
    failures: list[Failure] = attrs.field(factory=list)
    killed_at: float | None = None
    parted_at: float | None = None
    healed_at: float | None = None
    blame: dict[str, dict[str, int]] = attrs.field(factory=dict)
    links_most: int = 0
    links_max: int = 0
    unmet: list[str] = attrs.field(factory=list)
    figures: dict = attrs.field(factory=dict)

    def living(self):
        return [name for name in self.names if name not in self.killed]


# --- the verdict --------------------------------------------------------------------------------


def lacking(record, phase=None):
    """(node, origin, sequence numbers) of what a living node should have and has not."""
    found = []
    for each in record.published:
        if phase is not None and each.phase != phase:
            continue
        owed = set(range(each.first, each.last + 1))
        for name in each.audience:
            if name == each.origin or name in record.killed:
                continue
            if missing := owed - record.received.get(name, {}).get(each.origin, set()):
                found.append((name, each.origin, sorted(missing)))
    return found


def is_wrong(record, failure):
    """Whether a living node was declared failed by somebody who could have reached it."""
    if failure.of in record.killed and record.killed_at is not None:
        return failure.at < record.killed_at
    if record.parted_at is None or failure.at < record.parted_at:
        return True
    if record.healed_at is not None and failure.at > record.healed_at:
        return True
    return any({failure.by, failure.of} <= set(half) for half in record.halves)


def broken_rules(record):
    """What went against the rules, in sentences; none when all went well."""
    broken = list(record.unmet)
    for name, origin, missing in lacking(record):
        numbers = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        broken.append(f"{name} lacks {len(missing)} messages of {origin}: {numbers}")
    for name, count in record.duplicates.items():
        if count:
            broken.append(f"{name} was given {count} messages a second time")
    for name, count in record.foreign.items():
        if count:
            broken.append(f"{name} was given {count} messages that nobody had published")
    for failure in record.failures:
        if is_wrong(record, failure):
            broken.append(
                f"{failure.by} declared {failure.of} failed, which lived and was in reach"
            )
    for name, counters in record.blame.items():
        for counter, count in counters.items():
            if count:
                broken.append(f"{name} counted {count} {counter} among honest nodes")
    if record.links_most > record.links_max:
        broken.append(
            f"a node had {record.links_most} links at once; the most is {record.links_max}"
        )
    return broken


def disagreement(views, living, gone):
    """Why these views do not agree on who lives and who is gone, or None.

    views: by node, the members that it knows and the state of each, by name.
    """
    expected = dict.fromkeys(living, "ALIVE") | dict.fromkeys(gone, "DEAD")
    for name in living:
        view = views.get(name, {})
        wrong = [
            f"{each} is {view.get(each, 'unknown')}"
            for each, state in expected.items()
            if view.get(each) != state
        ]
        wrong += [f"{each}, whom nobody started" for each in view if each not in expected]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            return f"{name} says: " + ", ".join(wrong[:3]) + more
    return None


def restless(links, most):
    """Why these nodes' links, by name, are not those of a cluster at rest, or None."""
    for name, count in links.items():
        if not 0 < count <= most[name]:
            return f"{name} has {count} links, and {most[name]} are the most"
    return None


def links_at_rest(config, members):
    """The most links that the overlay lets one of `members` nodes keep."""
    if members <= (config.max_peers or MESH_MEMBERS_MAX):
        return members - 1
    most = 2 * _rings(config) + 2
    return min(most, members - 1, config.max_peers or most)


def links_at_once(config, members):
    """The most links at any moment: who failed keeps a place beside those that fill it."""
    mesh = (config.max_peers or MESH_MEMBERS_MAX) - 1
    return min(members - 1, max(mesh, (1 + SPARE_DIALS_MAX) * (2 * _rings(config) + 2)))


def _rings(config):
    return -(-(config.eager_fanout + config.lazy_fanout) // 2)


# --- what the kernel says -----------------------------------------------------------------------


def cpu_s(pid):
    """CPU seconds that a process has used; 0 when it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return 0.0


def rss_mib(pid):
    """Resident memory of a process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


# --- the run ------------------------------------------------------------------------------------


class Unmet(Exception):
    """Something did not come about."""


class _Rig:
    def __init__(self, plan, made, relay, record, say):
        self.plan, self.made, self.relay, self.record, self.say = plan, made, relay, record, say
        self.config = plan.made_config()
        self.rng = random.Random(plan.seed)
        self.by_name = {}
        self.name_of = {}
        self.addresses = {}
        self.victims = []
        self.publishers = []
        self.numbers = Counter()
        self.cpu_s_killed = 0.0
        self.phase = ""
        record.links_max = links_at_once(self.config, plan.nodes)

    # --- asking -----------------------------------------------------------------------------

    async def ask(self, names, op):
        """The answer of each of these nodes, by name."""
        for name in names:
            self.by_name[name].forget(op)
            self.by_name[name].tell(op)
        answers = await asyncio.gather(
            *(self.by_name[name].wait(op, timeout_s=self.plan.patience_s) for name in names)
        )
        return dict(zip(names, answers, strict=True))

    async def until(self, what, check):
        """Repeat `check`, which returns what is still wrong or None."""
        began = told_at = time.monotonic()
        while (wrong := await check()) is not None:
            now = time.monotonic()
            if now - began > self.plan.patience_s:
                raise Unmet(f"{what}: not within {self.plan.patience_s:g} s; {wrong}")
            if now - told_at > TELL_S:
                told_at = now
                self.say(f"   {now - began:.0f} s for: {what}; {wrong}")
            await asyncio.sleep(POLL_S)

    async def look(self, names):
        """The status of each of these nodes, with names in place of identities."""
        statuses = await self.ask(names, "status")
        for status in statuses.values():
            status["members"] = {
                self.name_of.get(node_id, node_id): state
                for node_id, state in status["members"].items()
            }
            self.record.links_most = max(self.record.links_most, len(status["peers"]))
        self.note_failures()
        return statuses

    def note_failures(self):
        """Move what the nodes have told of failures into the record."""
        for worker in self.made.workers:
            self.record.failures += [
                Failure(
                    worker.name, self.name_of.get(event["node_id"], event["node_id"]), event["at"]
                )
                for event in worker.events
                if event["event"] == "failed"
            ]
            worker.forget("failed")

    async def agree(self, groups, what):
        """Until everybody in a group knows exactly the group alive, and all others dead."""

        async def check():
            statuses = await self.look([name for group in groups for name in group])
            views = {name: status["members"] for name, status in statuses.items()}
            for group in groups:
                gone = [name for name in self.record.names if name not in group]
                if (wrong := disagreement(views, group, gone)) is not None:
                    return wrong
            return None

        await self.until(what, check)

    async def rest(self, groups):
        """Until each node has links, and none has more than the overlay keeps at rest."""
        most = {name: links_at_rest(self.config, len(group)) for group in groups for name in group}
        links = {}

        async def check():
            for name, status in (await self.look(list(most))).items():
                links[name] = len(status["peers"])
            return restless(links, most)

        await self.until("links come to rest", check)
        bound = max(most.values())
        median, largest = statistics.median(links.values()), max(links.values())
        self.record.figures.setdefault("links", {})[self.phase] = {
            "median": median,
            "most": largest,
            "bound": bound,
        }
        self.say(f"   links a node at rest: median {median:g}, most {largest}, bound {bound}")

    # --- publishing -------------------------------------------------------------------------

    def publish(self, rate, audience_of):
        """Let the publishers send the phase's messages, and note who is to have them."""
        publishers, messages = self.publishers, self.plan.messages
        for number, name in enumerate(publishers):
            count = messages // len(publishers) + (number < messages % len(publishers))
            first = self.numbers[name] + 1
            self.numbers[name] += count
            self.record.published.append(
                Published(self.phase, name, first, first + count - 1, tuple(audience_of(name)))
            )
            worker = self.by_name[name]
            worker.forget("published")
            worker.tell("publish", count=count, size=self.plan.size, rate=rate / len(publishers))

    async def published(self):
        """Until all of it is sent, under the numbers that were noted."""
        for name in self.publishers:
            worker = self.by_name[name]
            told = await worker.wait("published", timeout_s=self.plan.patience_s)
            if told["last_seq"] != self.numbers[name]:
                raise Unmet(f"{name} sent up to {told['last_seq']}, not {self.numbers[name]}")

    async def collect(self):
        """Take from each living node what it was given so far."""
        for name, answer in (await self.ask(self.record.living(), "received")).items():
            self.record.received[name] = {
                self.name_of[origin]: {
                    number for first, last in ranges for number in range(first, last + 1)
                }
                for origin, ranges in answer["ranges"].items()
            }
            self.record.duplicates[name] = answer["duplicates"]
            self.record.foreign[name] = answer["foreign"]

    async def delivered(self):
        """Until everybody has what was published for it in this phase."""

        async def check():
            await self.collect()
            if not (missing := lacking(self.record, self.phase)):
                return None
            count = sum(len(numbers) for _, _, numbers in missing)
            name, origin, numbers = missing[0]
            return f"{count} deliveries to go, such as number {numbers[0]} of {origin} to {name}"

        await self.until("delivery to all", check)
        self.say(f"   {self.plan.messages} messages delivered to all for whom they were")

    # --- figures ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def timed(self, phase, title):
        self.phase = phase
        self.say(f"{phase}: {title}")
        began, before = time.monotonic(), self.cpu()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            nodes, relay = (now - then for now, then in zip(self.cpu(), before, strict=True))
            self.record.figures.setdefault("phases", {})[phase] = {
                "seconds": round(seconds, 1),
                "cpu_s_nodes": round(nodes, 1),
                "cpu_s_relay": round(relay, 1),
            }
            self.say(f"   {seconds:.1f} s; CPU seconds: nodes {nodes:.1f}, relay {relay:.1f}")

    def cpu(self):
        """CPU seconds of (all nodes, the relay), those of killed nodes included."""
        nodes = sum(cpu_s(worker.process.pid) for worker in self.made.live())
        return nodes + self.cpu_s_killed, cpu_s(self.relay.process.pid)

    def memory(self, moment):
        sizes = [rss_mib(self.by_name[name].process.pid) for name in self.record.living()]
        median, most = round(statistics.median(sizes), 1), round(max(sizes), 1)
        self.record.figures.setdefault("rss_mib", {})[moment] = {"median": median, "most": most}
        self.say(f"   memory a node (RSS): median {median:.0f} MiB, most {most:.0f} MiB")

    # --- phases -----------------------------------------------------------------------------

    async def go(self):
        plan, names = self.plan, self.record.names
        async with self.timed("start", f"{plan.nodes} processes, {plan.at_once} at a time"):
            await self.start()
        self.memory("started")
        async with self.timed("quiet", f"nothing is published for {plan.quiet_s:g} s"):
            await asyncio.sleep(plan.quiet_s)
        self.cast()
        await self.expect()
        async with self.timed("stream", f"{plan.messages} messages to all"):
            self.publish(plan.rate, lambda _: names)
            await self.published()
            await self.delivered()
        self.memory("streamed")
        async with self.timed("kill", f"kill -9 of {plan.kill} amid {plan.messages} messages"):
            await self.kill()
        async with self.timed("apart", f"two halves for at least {plan.apart_s:g} s"):
            await self.part()
        async with self.timed("heal", "the relay carries everything again"):
            await self.heal()
        async with self.timed("together", f"{plan.messages} messages to all"):
            self.publish(plan.rate, lambda _: self.record.living())
            await self.published()
            await self.delivered()
        self.memory("ended")
        await self.sum_up()

    async def start(self):
        plan, names = self.plan, self.record.names
        taken = set()

        async def one(name):
            # Until it is bound, the kernel may name the same port again.
            while (port := free_port(ASIDE)) in taken:
                pass
            taken.add(port)
            real = f"{ASIDE}:{port}"
            self.addresses[name] = (await self.relay.ask("add", name=name, real=real))["address"]
            worker = await self.made.spawn(
                name,
                timeout_s=plan.patience_s,
                listen=real,
                advertise=self.addresses[name],
                config=plan.config,
            )
            self.by_name[name], self.name_of[worker.node_id] = worker, name

        for first in range(0, plan.nodes, plan.at_once):
            batch = names[first : first + plan.at_once]
            await asyncio.gather(*(one(name) for name in batch))
            seeds = [self.addresses[name] for name in names[:SEEDS] if name in self.addresses]
            for name in batch:
                self.by_name[name].tell("join", seeds=seeds)
            self.say(f"   {len(self.by_name)} processes run")
        await self.agree([names], "everybody knows everybody")
        await self.rest([names])

    def cast(self):
        """Draw who dies, who is on which side later, and who publishes."""
        names = list(self.record.names)
        self.rng.shuffle(names)
        self.victims, rest = names[: self.plan.kill], names[self.plan.kill :]
        middle = len(rest) // 2
        halves = self.record.halves = [rest[:middle], rest[middle:]]
        self.publishers = [halves[each % 2][each // 2] for each in range(self.plan.publishers)]

    async def expect(self):
        """Let every node keep, for the whole run, what it is given of each publisher."""
        most = len(PUBLISHING_PHASES) * -(-self.plan.messages // len(self.publishers))
        expected = {self.by_name[name].node_id: most for name in self.publishers}
        for worker in self.by_name.values():
            worker.tell("expect", expected=expected, base={}, warm=dict.fromkeys(expected, 0))
        for worker in self.by_name.values():
            await worker.wait("expecting", timeout_s=self.plan.patience_s)

    async def kill(self):
        plan, record = self.plan, self.record
        survivors = [name for name in record.names if name not in self.victims]
        # Slower, so that there is something to deliver for as long as the dead are not known.
        rate = plan.rate / 2
        self.publish(rate, lambda _: survivors)
        await asyncio.sleep(KILL_AT_SHARE * plan.messages / rate)
        self.note_failures()
        victims = [self.by_name[name] for name in self.victims]
        self.cpu_s_killed = sum(cpu_s(worker.process.pid) for worker in victims)
        sending = [self.by_name[name].latest("published") is None for name in self.publishers]
        record.figures["publishers_amid_the_kill"] = sum(sending)
        record.killed, record.killed_at = self.victims, time.monotonic()
        await asyncio.gather(*(worker.kill() for worker in victims))
        self.say(f"   killed while {sum(sending)} publish: {', '.join(sorted(self.victims))}")
        await self.agree([survivors], "the killed are declared failed by all")
        known = [
            each.at - record.killed_at
            for each in record.failures
            if each.of in record.killed and not is_wrong(record, each)
        ]
        record.figures["failure_known_s"] = {
            "first": round(min(known), 1),
            "median": round(statistics.median(known), 1),
            "last": round(max(known), 1),
        }
        self.say(
            f"   declared failed by each after {min(known):.1f} to {max(known):.1f} s, "
            f"median {statistics.median(known):.1f} s"
        )
        await self.published()
        await self.delivered()
        await self.rest([survivors])

    async def part(self):
        plan, record = self.plan, self.record
        halves = record.halves
        side_of = {name: half for half in halves for name in half}
        began = record.parted_at = time.monotonic()
        await self.relay.ask("part", some=halves[0], others=halves[1])
        rate = plan.messages / (APART_PUBLISHING_SHARE * plan.apart_s)
        self.publish(rate, side_of.__getitem__)
        await self.agree(halves, "each half declares the other one failed")
        self.say(f"   each half is alone after {time.monotonic() - began:.1f} s")
        await self.published()
        await self.delivered()
        await self.rest(halves)
        await asyncio.sleep(max(0.0, began + plan.apart_s - time.monotonic()))

    async def heal(self):
        record = self.record
        await self.relay.ask("heal")
        began = record.healed_at = time.monotonic()
        await self.agree([record.living()], "all agree again who lives")
        record.figures["agreed_again_s"] = round(time.monotonic() - began, 1)
        self.say(f"   all agree again after {record.figures['agreed_again_s']} s")
        await self.rest([record.living()])

    async def sum_up(self):
        await self.collect()
        crossed = owed = 0
        for each in self.record.published:
            if each.phase == "apart":
                numbers = set(range(each.first, each.last + 1))
                for name in self.record.living():
                    if name not in each.audience:
                        owed += len(numbers)
                        crossed += len(numbers & self.record.received[name][each.origin])
        figures = self.record.figures
        figures["apart_reached_the_other_half"] = {"deliveries": crossed, "of": owed}
        statuses = await self.look(self.record.living())
        stats = [status["stats"] for status in statuses.values()]
        self.record.blame = {
            name: {counter: status["stats"][counter] for counter in BLAME}
            for name, status in statuses.items()
        }
        figures["counters"] = {name: sum(each[name] for each in stats) for name in COUNTERS}
        figures["late_ms_most"] = max(each["swim_late_ms"] for each in stats)
        figures["relay"] = (await self.relay.ask("counts"))["counts"]


async def run(plan, say=lambda text: None):
    """Go through all phases, or up to the one that fails; return the record."""
    record = Record(names=[f"n{number}" for number in range(plan.nodes)])
    # What else the machine was doing explains many a figure.
    record.figures["machine"] = {
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    began = time.monotonic()
    async with (
        RelayProcess(seed=plan.seed, life_s=plan.limit_s + 60.0) as relay,
        swarm(plan.preset) as made,
    ):
        rig = _Rig(plan, made, relay, record, say)
        try:
            async with asyncio.timeout(plan.limit_s):
                await rig.go()
        except TimeoutError:
            record.unmet.append(f"{rig.phase}: all of it takes longer than {plan.limit_s:g} s")
        except (Unmet, PlumtreeError, ConnectionError) as error:
            record.unmet.append(f"{rig.phase}: {error}")
        rig.note_failures()
        record.figures["logged"] = {
            worker.name: list(worker.complaints) for worker in made.workers if worker.complaints
        }
    record.figures["seconds"] = round(time.monotonic() - began, 1)
    return record


# --- the command --------------------------------------------------------------------------------


def summary(plan, record):
    """Everything that was measured, and the verdict, as one object."""
    return {
        "plan": attrs.asdict(plan),
        "broken_rules": broken_rules(record),
        "publishers": len({each.origin for each in record.published}),
        "duplicates": sum(record.duplicates.values()),
        "lacking": sum(len(numbers) for _, _, numbers in lacking(record)),
        "links_at_once": {"most": record.links_most, "bound": record.links_max},
        **record.figures,
    }


def show(console, result):
    """Print the figures as tables."""
    plan = result["plan"]
    phases = Table("phase", "seconds", "CPU s, nodes", "CPU s, relay", title="phases")
    for name, each in result.get("phases", {}).items():
        phases.add_row(
            name, *(f"{each[key]:.1f}" for key in ("seconds", "cpu_s_nodes", "cpu_s_relay"))
        )
    table = Table("figure", "value", title=f"{plan['nodes']} node processes")
    for moment, each in result.get("rss_mib", {}).items():
        table.add_row(f"RSS a node, {moment}", f"median {each['median']}, most {each['most']} MiB")
    for moment, each in result.get("links", {}).items():
        table.add_row(
            f"links a node, {moment}",
            f"median {each['median']:g}, most {each['most']}, bound {each['bound']}",
        )
    at_once = result["links_at_once"]
    table.add_row("links a node, at once", f"most {at_once['most']}, bound {at_once['bound']}")
    if known := result.get("failure_known_s"):
        table.add_row(
            "killed nodes declared failed after",
            f"{known['first']} to {known['last']} s, median {known['median']} s",
        )
    if "agreed_again_s" in result:
        table.add_row("all agree after the heal in", f"{result['agreed_again_s']} s")
    if crossed := result.get("apart_reached_the_other_half"):
        table.add_row(
            "of the time apart, delivered across", f"{crossed['deliveries']:,} of {crossed['of']:,}"
        )
    if machine := result.get("machine"):
        table.add_row(
            "the machine", f"{machine['cpus']} CPUs, load average before {machine['load_before']}"
        )
    for name, count in result.get("counters", {}).items():
        table.add_row(name, f"{count:,}")
    table.add_row("duplicates", f"{result['duplicates']}")
    table.add_row("lacking", f"{result['lacking']}")
    console.print(phases)
    console.print(table)


def main():
    plan = Plan()
    parser = argparse.ArgumentParser(
        description="Real node processes through a start, kill -9 and a partition.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=plan.nodes)
    parser.add_argument("--kill", type=int, default=plan.kill, help="kill -9 of so many at once")
    parser.add_argument("--apart", type=float, default=plan.apart_s, help="seconds, at least")
    parser.add_argument("--messages", type=int, default=plan.messages, help="in each phase")
    parser.add_argument("--size", type=int, default=plan.size, help="bytes of a message")
    parser.add_argument("--rate", type=float, default=plan.rate, help="messages a second in all")
    parser.add_argument("--publishers", type=int, default=plan.publishers)
    parser.add_argument("--preset", choices=PRESETS, default=plan.preset)
    parser.add_argument("--at-once", type=int, default=plan.at_once, help="started together")
    parser.add_argument("--quiet", type=float, default=plan.quiet_s, help="seconds of nothing")
    parser.add_argument("--patience", type=float, default=plan.patience_s, help="s, for one thing")
    parser.add_argument("--limit", type=float, default=plan.limit_s, help="s, for everything")
    parser.add_argument("--seed", type=int, default=plan.seed, help="who dies, publishes, is where")
    parser.add_argument("--json", action="store_true", help="one object, the last line of stdout")
    options = parser.parse_args()
    if options.size < STAMP_BYTES:
        parser.error(f"--size is at least {STAMP_BYTES}")
    if not 1 <= options.publishers <= options.nodes - options.kill - 1:
        parser.error("--publishers: at least one, and fewer than --nodes less --kill")
    if options.kill < 1 or options.nodes - options.kill < 4:
        parser.error("--kill: at least one, and four nodes must stay")
    plan = Plan(
        nodes=options.nodes,
        kill=options.kill,
        apart_s=options.apart,
        messages=options.messages,
        size=options.size,
        rate=options.rate,
        publishers=options.publishers,
        preset=options.preset,
        at_once=options.at_once,
        quiet_s=options.quiet,
        patience_s=options.patience,
        limit_s=options.limit,
        seed=options.seed,
    )
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    began = time.monotonic()
    try:
        record = asyncio.run(
            run(plan, lambda text: console.print(f"[{time.monotonic() - began:6.1f} s] {text}"))
        )
    except KeyboardInterrupt:
        return 130
    result = summary(plan, record)
    if options.json:
        print(json.dumps(result))
    else:
        show(Console(), result)
    for name, lines in result.get("logged", {}).items():
        console.print(f"{name} logged {len(lines)} lines, the last one: {lines[-1]}")
    broken = result["broken_rules"]
    for each in broken[:TOLD_MAX]:
        console.print(f"BROKEN: {each}")
    if len(broken) > TOLD_MAX:
        console.print(f"... and {len(broken) - TOLD_MAX} more broken rules")
    if not broken:
        console.print("no rule was broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
