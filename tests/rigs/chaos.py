"""Real node processes with stores in bad weather: loss, kill -9 and restarts, partitions, at once.

``python -m tests.rigs.chaos --seed N --minutes M`` (``scripts/soak chaos``) starts them behind a
relay (relay.py) whose addresses they advertise, lets all of them publish and read, and goes through
what `weather_of` draws from the seed. Then the weather clears, publishing stops, and all logs must
agree. What a node did is in the log that chaos_worker.py writes across all of its lives; the
verdict is `broken_rules`, of nothing but these logs and of what did not come about.

It ends by itself, ends only processes that it started, and exits with 1 when a rule was broken.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import shutil
import statistics
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from plumtree_quic.cli.cluster import WorkerProcess, swarm
from plumtree_quic.errors import PlumtreeError
from tests.rigs.relay import RelayProcess, free_port
from tests.rigs.waiting import ASIDE

ROOT = Path(__file__).parents[2]
LOSS = 0.2
DELAY_S = 0.1
JITTER_S = 0.05
# How long a node is down, and the weather of a whole run lasts at its longest; a short run has
# shorter ones, in proportion to its length.
DOWN_S = (0.5, 20.0)
APART_S = (1.0, 60.0)
LONGEST_SHARE = 0.25
# On the average, between two of them.
KILL_EVERY_S = 8.0
PART_EVERY_S = 15.0
# Who was killed is killed once more while it catches up, so often and so soon.
AGAIN_SHARE = 0.3
AGAIN_S = (0.5, 5.0)
# How many die at once: this share of the nodes, and at least one.
AT_ONCE = ((0.0, 0.6), (0.3, 0.25), (0.6, 0.1), (1.0, 0.05))
# The last of the weather comes so long before its end.
QUIET_END_SHARE = 0.05
POLL_S = 1.0
TELL_S = 10.0
TOLD_MAX = 20
# Counters of the last lives that are told; the first ones must be 0 among honest nodes.
NEVER = ("errors", "strikes", "tree_equivocations")
COUNTERS = (*NEVER, "tree_ids_lost", "order_gaps", "order_late", "repairs_from_store")


@attrs.frozen(kw_only=True)
class Plan:
    """What to go through.

    rate: messages a second, in all. patience_s: how long the end waits for agreement.
    start_s: how long the start, or a restart at the end, may take. gap_timeout_s: what ordered
    readers wait for a hole; None: longer than the run.
    """

    nodes: int = 7
    minutes: float = 10.0
    rate: float = 10.0
    seed: int = 1
    patience_s: float = 120.0
    start_s: float = 60.0
    gap_timeout_s: float | None = None

    @property
    def storm_s(self):
        return self.minutes * 60.0

    @property
    def limit_s(self):
        return 2 * self.start_s + self.storm_s + self.patience_s + 30.0


# --- the weather --------------------------------------------------------------------------------


@attrs.frozen
class Kill:
    """kill -9 of `name` at this time, in seconds of the storm; started again after down_s."""

    at: float
    name: str
    down_s: float


@attrs.frozen
class Cut:
    """Nothing passes between `some` and the others from this time on, for so long."""

    at: float
    some: tuple[str, ...]
    lasts_s: float


def weather_of(plan, names):
    """All kills and cuts of a run, in order of time; the same for the same plan."""
    rng = random.Random(plan.seed)
    end = plan.storm_s * (1.0 - QUIET_END_SHARE)
    longest_s = LONGEST_SHARE * plan.storm_s
    down_most, apart_most = (min(most, longest_s) for _, most in (DOWN_S, APART_S))
    out = []
    up_at = dict.fromkeys(names, 0.0)
    at = rng.expovariate(1 / KILL_EVERY_S)
    while at < end:
        share = rng.choices(*zip(*AT_ONCE, strict=True))[0]
        standing = [name for name in names if up_at[name] < at]
        count = min(len(standing), max(1, round(share * len(names))))
        for name in rng.sample(standing, count):
            kill = Kill(at, name, rng.uniform(DOWN_S[0], down_most))
            out.append(kill)
            if rng.random() < AGAIN_SHARE:
                again_at = kill.at + kill.down_s + rng.uniform(*AGAIN_S)
                kill = Kill(again_at, name, rng.uniform(DOWN_S[0], down_most))
                out.append(kill)
            up_at[name] = kill.at + kill.down_s
        at += rng.expovariate(1 / KILL_EVERY_S)
    at = rng.expovariate(1 / PART_EVERY_S)
    while at < end:
        some = rng.sample(names, rng.randint(1, len(names) - 1))
        # Short ones are as frequent as long ones, in the order of their length.
        lasts_s = math.exp(rng.uniform(math.log(APART_S[0]), math.log(apart_most)))
        out.append(Cut(at, tuple(sorted(some)), lasts_s))
        at += rng.expovariate(1 / PART_EVERY_S)
    return sorted((each for each in out if each.at < end), key=lambda each: each.at)


# --- what the nodes wrote down ------------------------------------------------------------------


@attrs.frozen
class Life:
    """One start of a node, under this epoch."""

    life: int
    epoch: int
    at: float


@attrs.frozen
class Tried:
    """Somebody is about to broadcast what has this digest."""

    life: int
    digest: str


@attrs.frozen
class Accepted:
    """broadcast() returned, after took_s."""

    life: int
    epoch: int
    seq: int
    digest: str
    took_s: float = 0.0
    at: float = 0.0


@attrs.frozen
class Got:
    """A message was handed over. origin: the name of its node."""

    life: int
    origin: str
    epoch: int
    seq: int
    digest: str
    redelivered: bool = False
    at: float = 0.0

    @property
    def id(self):
        return self.origin, self.epoch, self.seq


@attrs.frozen
class Acked:
    """Its acknowledgement was safe."""

    life: int
    origin: str
    epoch: int
    seq: int


@attrs.frozen
class Hole:
    """The ordered subscription said that first .. last will not come."""

    life: int
    origin: str
    epoch: int
    first: int
    last: int


@attrs.frozen
class Failed:
    """Reading or publishing ended with an error."""

    life: int
    text: str


ENTRIES = {
    "life": Life,
    "tried": Tried,
    "accepted": Accepted,
    "got": Got,
    "acked": Acked,
    "gap": Hole,
    "failed": Failed,
}


class Log:
    """A node's log, read on as it grows. torn: lines that a kill had left half written."""

    def __init__(self, path, name_of):
        self._path, self._name_of = path, name_of
        self._offset = 0
        self.entries = []
        self.torn = 0

    def read_on(self):
        """Take the whole lines that were added."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
            self._offset += len(whole)
            for line in whole.splitlines():
                if line:
                    self._take(line)

    def _take(self, line):
        try:
            what, *fields = json.loads(line)
            entry = ENTRIES[what](*fields)
        except (ValueError, TypeError, KeyError):
            self.torn += 1
            return
        if isinstance(entry, Got | Acked | Hole):
            entry = attrs.evolve(entry, origin=self._name_of.get(entry.origin, entry.origin))
        self.entries.append(entry)


@attrs.define(kw_only=True)
class Record:
    """What happened; `broken_rules` judges it.

    logs: by node, the entries of all of its lives in order. counters: of each node's last life.
    unmet: what did not come about.
    """

    names: list[str]
    logs: dict[str, list] = attrs.field(factory=dict)
    counters: dict[str, dict[str, int]] = attrs.field(factory=dict)
    unmet: list[str] = attrs.field(factory=list)
    figures: dict = attrs.field(factory=dict)

    def each(self, kind):
        """(node, entry) of all entries of this kind."""
        for name in self.names:
            for entry in self.logs.get(name, ()):
                if isinstance(entry, kind):
                    yield name, entry

    def accepted(self):
        """The ids that broadcast() has accepted."""
        return {(name, each.epoch, each.seq) for name, each in self.each(Accepted)}


# --- the verdict --------------------------------------------------------------------------------


def spoken(identity):
    return "{}/{}/{}".format(*identity)


def lacking(record, ids=None):
    """(node, ids) of what was accepted and is not in the log of a node that it was owed to."""
    ids = record.accepted() if ids is None else ids
    found = []
    for name in record.names:
        has = {each.id for each in record.logs.get(name, ()) if isinstance(each, Got)}
        missing = {identity for identity in ids - has if identity[0] != name}
        if missing:
            found.append((name, sorted(missing)))
    return found


def broken_rules(record):
    """What went against the rules, in sentences; none when all went well."""
    broken = list(record.unmet)
    for name, missing in lacking(record):
        shown = ", ".join(map(spoken, missing[:5])) + (", ..." if len(missing) > 5 else "")
        broken.append(f"{name} lacks {len(missing)} accepted messages: {shown}")
    for name in record.names:
        broken += _wrong_in(name, record)
    broken += _wrong_names(record)
    accepted = defaultdict(set)
    for origin, epoch, seq in record.accepted():
        accepted[origin, epoch].add(seq)
    for name, hole in record.each(Hole):
        # Whoever waits as long as it takes has no excuse: what was accepted comes.
        lost = sorted(accepted[hole.origin, hole.epoch] & set(range(hole.first, hole.last + 1)))
        if lost:
            broken.append(
                f"{name} was told in life {hole.life} that {len(lost)} accepted messages of "
                f"{hole.origin}/{hole.epoch} will not come, such as {lost[0]}"
            )
    for name, failure in record.each(Failed):
        broken.append(f"{name} failed in life {failure.life}: {failure.text}")
    for name, counters in record.counters.items():
        broken += [
            f"{name} counted {counters[each]} {each} among honest nodes"
            for each in NEVER
            if counters.get(each)
        ]
    return broken


def _wrong_in(name, record):
    """What one log breaks by itself: repetitions, and the order of things."""
    broken = []
    acked, got, newest, life = set(), {}, {}, None
    for each in record.logs.get(name, ()):
        if isinstance(each, Acked):
            acked.add((each.origin, each.epoch, each.seq))
            continue
        if not isinstance(each, Got):
            continue
        if each.life != life:
            life, newest = each.life, {}
        what = f"{name} was given {spoken(each.id)}"
        if each.origin == name:
            broken.append(f"{what}, its own message")
        before = got.get(each.id)
        if before == life:
            broken.append(f"{what} a second time in life {life}")
        elif each.id in acked:
            broken.append(f"{what} in life {life}, though it had acknowledged it")
        elif before is not None and not each.redelivered:
            broken.append(f"{what} in lives {before} and {life}, and not as redelivered")
        if (each.epoch, each.seq) < newest.get(each.origin, (0, 0)):
            last = spoken((each.origin, *newest[each.origin]))
            broken.append(f"{what} after {last} in life {life}")
        got[each.id] = life
        newest[each.origin] = max(newest.get(each.origin, (0, 0)), (each.epoch, each.seq))
    return broken


def _wrong_names(record):
    """Messages that nobody broadcast, and numbers that stand for more than one message."""
    tried = defaultdict(set)
    for name, each in record.each(Tried):
        tried[name].add(each.digest)
    broken = []
    digests = defaultdict(set)
    for name, each in record.each(Accepted):
        digests[name, each.epoch, each.seq].add(each.digest)
    for name, each in record.each(Got):
        digests[each.id].add(each.digest)
        if each.digest not in tried[each.origin]:
            broken.append(f"{name} was given {spoken(each.id)}, which nobody had broadcast")
    ids = defaultdict(set)
    for identity, contents in digests.items():
        if len(contents) > 1:
            broken.append(f"{spoken(identity)} names {len(contents)} different messages")
        for digest in contents:
            ids[digest].add(identity)
    broken += [
        f"one message has {len(names)} names: {', '.join(map(spoken, sorted(names)))}"
        for names in ids.values()
        if len(names) > 1
    ]
    return broken


# --- figures ------------------------------------------------------------------------------------


def percentiles(values, digits=3):
    """Median, 99th percentile and largest, or None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), digits),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], digits),
        "most": round(ordered[-1], digits),
    }


def catch_ups(record):
    """For each restart: seconds until the node had what was accepted before it and it had not."""
    accepted_at = {(name, each.epoch, each.seq): each.at for name, each in record.each(Accepted)}
    out = []
    for name in record.names:
        log = record.logs.get(name, ())
        first_got = {}
        for each in log:
            if isinstance(each, Got):
                first_got.setdefault(each.id, each.at)
        starts = [each.at for each in log if isinstance(each, Life)]
        for at, until in zip(starts[1:], [*starts[2:], math.inf], strict=False):
            owed = [
                first_got.get(identity, math.inf)
                for identity, then in accepted_at.items()
                if then < at and identity[0] != name and first_got.get(identity, math.inf) > at
            ]
            # Killed before it had it all: the next life's.
            if owed and max(owed) < until:
                out.append(max(owed) - at)
    return out


def figures_of(record):
    """What the logs say beside the verdict."""
    accepted = record.accepted()
    given = Counter(each.id for _, each in record.each(Got))
    accepted_at = {(name, each.epoch, each.seq): each.at for name, each in record.each(Accepted)}
    untold = {identity for identity in given if identity not in accepted}
    return {
        "accepted": len(accepted),
        "deliveries": sum(given.values()),
        "lives": sum(1 for _ in record.each(Life)),
        "redelivered": sum(each.redelivered for _, each in record.each(Got)),
        "given_again": sum(given.values()) - len({(n, e.id) for n, e in record.each(Got)}),
        "acked": sum(1 for _ in record.each(Acked)),
        "gaps": sum(1 for _ in record.each(Hole)),
        "delivered_though_broadcast_did_not_return": len(untold),
        "of_these_not_at_everybody": len({i for _, ids in lacking(record, untold) for i in ids}),
        "accept_s": percentiles([each.took_s for _, each in record.each(Accepted)]),
        "latency_s": percentiles(
            [
                each.at - accepted_at[each.id]
                for _, each in record.each(Got)
                if each.id in accepted_at and not each.redelivered
            ]
        ),
        "catch_up_s": percentiles(catch_ups(record)),
    }


# --- the run ------------------------------------------------------------------------------------


class _Rig:
    def __init__(self, plan, made, relay, record, say):
        self.plan, self.made, self.relay, self.record, self.say = plan, made, relay, record, say
        self.real, self.addresses, self.name_of = {}, {}, {}
        self.lives = Counter()
        self.running = {}
        self.cuts = []
        self.publishing = False
        self.ending = False
        self.counts = Counter()
        self.logged = {}
        self.logs = {}

    # --- processes --------------------------------------------------------------------------

    async def spawn(self, name):
        """Start a life of `name`; at its address, over its directory."""
        plan, made = self.plan, self.made
        self.lives[name] += 1
        directory = made.directory / name
        gap_timeout_s = plan.limit_s if plan.gap_timeout_s is None else plan.gap_timeout_s
        options = {
            "name": name,
            "life": self.lives[name],
            "seed": plan.seed,
            "directory": str(directory),
            "cert": str(made.directory / f"{name}.crt"),
            "key": str(made.directory / f"{name}.key"),
            "ca": str(made.directory / "ca.crt"),
            "listen": self.real[name],
            "advertise": self.addresses[name],
            "seeds": [self.addresses[each] for each in self.record.names if each != name],
            "gap_timeout_s": gap_timeout_s,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.rigs.chaos_worker",
            json.dumps(options),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        worker = WorkerProcess(name, process)
        made.workers.append(worker)
        self.running[name] = worker
        if self.publishing:
            self.publish(worker)
        return worker

    def publish(self, worker):
        worker.tell("publish", rate=self.plan.rate / self.plan.nodes)

    async def kill(self, name):
        worker = self.running.pop(name, None)
        if worker is None:
            return
        if worker.process.returncode is not None:
            raise PlumtreeError(f"{name} ended by itself: {await worker.why()}")
        await worker.kill()
        self.counts["kills"] += 1

    # --- phases -----------------------------------------------------------------------------

    async def go(self):
        plan = self.plan
        self.say(f"start: {plan.nodes} processes")
        await self.start()
        await self.relay.ask("faults", loss=LOSS, delay_s=DELAY_S, jitter_s=JITTER_S)
        self.publishing = True
        for worker in self.running.values():
            self.publish(worker)
        self.say(f"storm: {plan.storm_s:g} s")
        await self.storm(weather_of(plan, self.record.names))
        self.say("calm: everything is carried, all nodes run, nothing is published")
        await self.calm()

    async def start(self):
        taken = set()
        for name in self.record.names:
            # Until it is bound, the kernel may name the same port again.
            while (port := free_port(ASIDE)) in taken:
                pass
            taken.add(port)
            self.real[name] = f"{ASIDE}:{port}"
            answer = await self.relay.ask("add", name=name, real=self.real[name])
            self.addresses[name] = answer["address"]
            self.made.ca.issue(name)
            directory = self.made.directory / name
            directory.mkdir()
            self.logs[name] = Log(directory / "log", self.name_of)
        for name in self.record.names:
            await self.spawn(name)
        for name in self.record.names:
            ready = await self.running[name].wait("ready", timeout_s=self.plan.start_s)
            self.name_of[ready["node_id"]] = name
        await self.linked()

    async def linked(self):
        """Until everybody knows everybody."""
        async with asyncio.timeout(self.plan.start_s):
            while True:
                statuses = await self.statuses()
                if all(each["peers"] == self.plan.nodes - 1 for each in statuses.values()):
                    return
                await asyncio.sleep(POLL_S / 4)

    async def statuses(self):
        for worker in self.running.values():
            worker.forget("status")
            worker.tell("status")
        return {
            name: await worker.wait("status", timeout_s=self.plan.start_s)
            for name, worker in self.running.items()
        }

    async def storm(self, weather):
        began = time.monotonic()
        restarts = []

        async def until(at):
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))

        async def live_again(kill):
            await until(kill.at + kill.down_s)
            if kill.name not in self.running:
                await self.spawn(kill.name)

        async def mend(cut):
            await until(cut.at + cut.lasts_s)
            self.cuts.remove(cut)
            await self.part()

        async with asyncio.TaskGroup() as group:
            for each in weather:
                await until(each.at)
                if isinstance(each, Kill):
                    self.say(f"   kill -9 of {each.name}, for {each.down_s:.1f} s")
                    await self.kill(each.name)
                    restarts.append(group.create_task(live_again(each)))
                else:
                    names = ", ".join(each.some)
                    self.say(f"   {names} apart from the others, for {each.lasts_s:.1f} s")
                    self.counts["partitions"] += 1
                    self.cuts.append(each)
                    await self.part()
                    restarts.append(group.create_task(mend(each)))
            await until(self.plan.storm_s)
            # What has not ended ends now.
            for task in restarts:
                task.cancel()

    async def part(self):
        """Let the relay cut what is cut at the moment."""
        await self.relay.ask("heal")
        for cut in self.cuts:
            others = [name for name in self.record.names if name not in cut.some]
            await self.relay.ask("part", some=list(cut.some), others=others)

    async def calm(self):
        plan, record = self.plan, self.record
        self.publishing = False
        self.cuts.clear()
        await self.relay.ask("heal")
        record.figures["relay"] = (await self.relay.ask("counts"))["counts"]
        await self.relay.ask("faults")
        for name in record.names:
            if name not in self.running:
                await self.spawn(name)
        for worker in self.running.values():
            worker.tell("hush")
            await worker.wait("ready", timeout_s=plan.start_s)
        # A broadcast that was on its way counts as well; the answer comes behind the hush.
        await self.statuses()
        began = told_at = time.monotonic()
        while True:
            self.read_logs()
            missing = lacking(record)
            now = time.monotonic()
            if not missing or now - began > plan.patience_s:
                break
            if now - told_at > TELL_S:
                told_at = now
                count = sum(len(ids) for _, ids in missing)
                self.say(f"   {now - began:.0f} s: {count} deliveries to go")
            await asyncio.sleep(POLL_S)
        record.figures["agreed_after_s"] = None if missing else round(now - began, 1)
        # What is written too late, or too often, is in the logs a moment later.
        await asyncio.sleep(3 * POLL_S)
        for name, status in (await self.statuses()).items():
            stats = status["stats"]
            record.counters[name] = {each: stats[each] for each in COUNTERS if each in stats}
        self.read_logs()

    def read_logs(self):
        for name, log in self.logs.items():
            log.read_on()
            self.record.logs[name] = log.entries


async def run(plan, say=lambda text: None, keep=None):
    """Go through all of it, or up to what fails; return the record.

    keep: a directory that is given the logs and stores of a run that broke a rule.
    """
    record = Record(names=[f"n{number}" for number in range(plan.nodes)])
    # What else the machine was doing explains many a figure.
    record.figures["machine"] = {
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    began = time.monotonic()
    async with (
        RelayProcess(seed=plan.seed, life_s=plan.limit_s + 60.0) as relay,
        swarm() as made,
    ):
        rig = _Rig(plan, made, relay, record, say)
        try:
            async with asyncio.timeout(plan.limit_s):
                await rig.go()
        except TimeoutError:
            record.unmet.append(f"all of it takes longer than {plan.limit_s:g} s")
        except (PlumtreeError, ConnectionError) as error:
            record.unmet.append(str(error))
        except ExceptionGroup as group:
            record.unmet += map(str, group.exceptions)
        rig.read_logs()
        record.figures |= rig.counts
        record.figures["torn_lines"] = sum(log.torn for log in rig.logs.values())
        record.figures |= figures_of(record)
        logged = defaultdict(list)
        for worker in made.workers:
            logged[worker.name] += worker.complaints
        record.figures["logged"] = {name: lines for name, lines in logged.items() if lines}
        if keep is not None and broken_rules(record):
            for worker in rig.running.values():
                await worker.close()
            shutil.copytree(made.directory, keep, dirs_exist_ok=True)
    record.figures["seconds"] = round(time.monotonic() - began, 1)
    return record


# --- the command --------------------------------------------------------------------------------


def summary(plan, record):
    """Everything that was measured, and the verdict, as one object."""
    return {
        "plan": attrs.asdict(plan),
        "broken_rules": broken_rules(record),
        "lacking": sum(len(ids) for _, ids in lacking(record)),
        "counters": {
            name: sum(each.get(name, 0) for each in record.counters.values()) for name in COUNTERS
        },
        **record.figures,
    }


def show(console, result):
    """Print the figures as a table."""
    plan = result["plan"]
    table = Table("figure", "value", title=f"{plan['nodes']} node processes, seed {plan['seed']}")
    for name, value in result.items():
        if name in ("plan", "broken_rules", "logged"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items())
        table.add_row(name, f"{value}")
    console.print(table)


def command_of(plan):
    """What goes through the same weather once more."""
    return (
        f"scripts/soak chaos --seed {plan.seed} --minutes {plan.minutes:g} --nodes {plan.nodes} "
        f"--rate {plan.rate:g}"
    )


def main():
    plan = Plan()
    parser = argparse.ArgumentParser(
        description="Real node processes with stores through loss, kill -9 and partitions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=plan.seed, help="what happens, and when")
    parser.add_argument("--minutes", type=float, default=plan.minutes, help="of bad weather")
    parser.add_argument("--nodes", type=int, default=plan.nodes)
    parser.add_argument("--rate", type=float, default=plan.rate, help="messages a second in all")
    parser.add_argument("--patience", type=float, default=plan.patience_s, help="s, for the end")
    parser.add_argument("--keep", type=Path, help="where logs and stores go when a rule was broken")
    parser.add_argument("--json", action="store_true", help="one object, the last line of stdout")
    options = parser.parse_args()
    if not 3 <= options.nodes <= 32:
        parser.error("--nodes: 3 to 32")
    if options.minutes <= 0 or options.rate <= 0:
        parser.error("--minutes, --rate: more than nothing")
    plan = Plan(
        nodes=options.nodes,
        minutes=options.minutes,
        rate=options.rate,
        seed=options.seed,
        patience_s=options.patience,
    )
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    began = time.monotonic()

    def say(text):
        console.print(f"[{time.monotonic() - began:6.1f} s] {text}")

    try:
        record = asyncio.run(run(plan, say, options.keep))
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
    console.print(f"the same weather: {command_of(plan)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
