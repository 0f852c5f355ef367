"""A cluster of production cores on a virtual network: virtual time, seeded, no sockets.

Links are reliable and ordered; datagrams may be lost. What cannot pass waits, as QUIC would
retransmit it, until the link has been idle for too long. Membership frames cross the real codec.
"""

import heapq
from collections import defaultdict
from random import Random

from plumtree_quic import wire
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import (
    LANE_OF,
    Ack,
    BucketHashes,
    Facts,
    Hello,
    MemberState,
    Ping,
    Records,
    RecordsWanted,
    Rows,
    Wanted,
)
from plumtree_quic.proto.core import Core
from plumtree_quic.proto.effects import (
    DialSeed,
    Link,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
    Push,
    Send,
    SendDatagram,
    Strike,
    Superseded,
    TurnAway,
    Unlink,
)

WALL_MS = 1_700_000_000_000
DAY_MS = 24 * 3600 * 1000
LATENCY_S = 0.002
IDLE_S = 15.0
DIAL_TIMEOUT_S = 3.0
MEMBERSHIP = (Facts, Ping, Ack, BucketHashes, Rows, RecordsWanted, Records)
TOLD = (MemberJoined, MemberUpdated, MemberSuspected, MemberFailed, MemberLeft)


def node_id(name):
    return NodeId.parse(f"spiffe://test/node/{name}")


def address(name):
    return f"{name}.test:7946"


def record(name, *, epoch=1, incarnation=0, addresses=None, valid_until=WALL_MS + DAY_MS, meta=b""):
    return wire.build_record(
        node_id=node_id(name),
        epoch=epoch,
        incarnation=incarnation,
        addresses=(address(name),) if addresses is None else addresses,
        valid_until=valid_until,
        meta=meta,
    )


def fact(subject, state, *, signer=None, epoch=1, incarnation=0):
    return wire.build_fact(
        subject=member_key(node_id(subject)),
        epoch=epoch,
        incarnation=incarnation,
        state=state,
        signer=member_key(node_id(signer or subject)),
    )


def hello(of, *, yours=None, wanted=True):
    return Hello(
        major=1,
        minor=0,
        features=0,
        cluster="default",
        record=of,
        datagram_bytes_max=1_200,
        link_id=bytes(16),
        wanted=wanted,
        yours=yours,
    )


class Host:
    """One process: a core, its links, what it told the application, what it sent."""

    def __init__(self, cluster, name, epoch, config):
        self.cluster = cluster
        self.name = name
        self.id = node_id(name)
        self.epoch = epoch
        self.told = []
        self.sent = defaultdict(int)
        self.strikes = []
        self.superseded = None
        self.links = {}
        self.wanted = {}
        self.timer = None
        self.stalled_until = 0.0
        seed = f"{cluster.seed}/{name}/{epoch}"
        own = member_key(self.id)

        def make_record(incarnation):
            return record(
                name,
                epoch=epoch,
                incarnation=incarnation,
                valid_until=cluster.wall_ms() + DAY_MS,
            )

        def make_fact(subject, subject_epoch, incarnation, state):
            return wire.build_fact(
                subject=subject,
                epoch=subject_epoch,
                incarnation=incarnation,
                state=state,
                signer=own,
            )

        self.core = Core(
            make_record(0),
            config,
            Random(seed),
            make_record=make_record,
            make_fact=make_fact,
            wall_ms=cluster.wall_ms,
        )

    def events(self, kind):
        return [each for _, each in self.told if isinstance(each, kind)]

    def when(self, kind, name):
        """When the application was first told `kind` of `name`."""
        for at, each in self.told:
            if isinstance(each, kind):
                subject = each.record.node_id if hasattr(each, "record") else each.node_id
                if subject == node_id(name):
                    return at
        return None

    def state(self, name):
        return self.core.table.state_of(member_key(node_id(name)))

    def view(self):
        return {
            (rec.node_id.name, state)
            for rec, state in self.core.table.members()
            if state in (MemberState.ALIVE, MemberState.SUSPECT)
        }


class Cluster:
    """The network, the clock, and all hosts by name."""

    def __init__(self, *, seed=1, config=None, loss=0.0):
        self.seed = seed
        self.config = config or PlumtreeConfig.lan()
        self.rng = Random(seed)
        self.now = 1000.0
        self.loss = loss
        self.hosts = {}
        self.crossing = 0
        self.lives = defaultdict(int)
        self._queue = []
        self._count = 0
        self._cut = None
        self.trace = []

    def wall_ms(self):
        return WALL_MS + int(self.now * 1000)

    # --- what tests do --------------------------------------------------------------------------

    def start(self, name, *seeds, config=None):
        self.lives[name] += 1
        host = Host(self, name, WALL_MS + int(self.now * 1000), config or self.config)
        self.hosts[name] = host
        self.perform(host, host.core.start(self.now))
        self.perform(host, host.core.seeds([address(seed) for seed in seeds], self.now))
        self.arm(host)
        return host

    def grow(self, count, *, gap_s=0.0):
        names = [f"n{i:02d}" for i in range(count)]
        for name in names:
            self.start(name, *([] if name == names[0] else [names[0]]))
            self.run(gap_s)
        return [self.hosts[name] for name in names]

    def kill(self, name):
        """SIGKILL: nobody is told."""
        del self.hosts[name]

    def leave(self, name):
        host = self.hosts[name]
        self.perform(host, host.core.leave(self.now))
        self.arm(host)

    def stop(self, name):
        """Close all links and go, as after leave()."""
        host = self.hosts.pop(name)
        for peer in list(host.links):
            other = self.hosts.get(peer.name)
            if other is not None:
                self.after(LATENCY_S, lambda o=other, p=host.id: self.link_down(o, p))

    def partition(self, *groups):
        """Nothing passes between the groups of names; None heals."""
        self._cut = {name: i for i, group in enumerate(groups) for name in group} or None

    def heal(self):
        self._cut = None

    def stall(self, name, seconds):
        """The process does nothing for so long (SIGSTOP, a blocked loop)."""
        self.hosts[name].stalled_until = self.now + seconds

    def run(self, seconds, until=None):
        """Advance virtual time; stop early, and return True, when `until()` holds."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            at, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, at)
            action()
            if until is not None and until():
                return True
        self.now = end
        return until is not None and until()

    def agreed(self, names=None):
        """Whether all running hosts hold exactly the running hosts for alive."""
        running = {(name, MemberState.ALIVE) for name in names or self.hosts}
        return all(self.hosts[name].view() == running for name, _ in running)

    # --- the network ----------------------------------------------------------------------------

    def after(self, seconds, action):
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, action))

    def passes(self, a, b):
        return self._cut is None or self._cut.get(a) == self._cut.get(b)

    def input(self, host, call):
        """Hand something to a host's core, now or when its process runs again."""
        if self.hosts.get(host.name) is not host:
            return
        if host.stalled_until > self.now:
            self.after(host.stalled_until - self.now, lambda: self.input(host, call))
            return
        self.perform(host, call(host.core))
        self.arm(host)

    def arm(self, host):
        deadline = host.core.next_deadline()
        if deadline is None:
            return
        deadline = max(deadline, self.now)
        if host.timer is None or deadline < host.timer:
            host.timer = deadline
            self.after(deadline - self.now, lambda: self.fire(host, deadline))

    def fire(self, host, deadline):
        if self.hosts.get(host.name) is not host or host.timer != deadline:
            return
        if host.stalled_until > self.now:
            # What waits in the socket is read before timers fire.
            wait = host.stalled_until - self.now + 1e-6
            self.after(wait, lambda: self.fire(host, deadline))
            return
        host.timer = None
        self.perform(host, host.core.advance(self.now))
        self.arm(host)

    def perform(self, host, effects):
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self.send(host, peer, message)
                case Push(peers, message):
                    for peer in peers:
                        self.send(host, peer, message)
                case SendDatagram(peer, message):
                    self.send_datagram(host, peer, message)
                case Link(peer, _):
                    self.want(host, peer)
                case Unlink(peer):
                    host.wanted.pop(peer, None)
                    self.send(host, peer, Wanted(False))
                    self.close_unwanted(host, peer)
                case TurnAway(peer):
                    other = self.hosts.get(peer.name)
                    if other is not None and other.links.get(host.id) is host.links.get(peer):
                        self.link_down(other, host.id)
                    if peer in host.links:
                        self.link_down(host, peer)
                case DialSeed(where):
                    self.dial_seed(host, where)
                case Strike(_, reason):
                    host.strikes.append(reason)
                case Superseded(epoch):
                    host.superseded = epoch
                case _ if isinstance(effect, TOLD):
                    host.told.append((self.now, effect))
                    self.trace.append((round(self.now, 6), host.name, repr(effect)[:120]))

    def send(self, host, peer, message):
        link = host.links.get(peer)
        if link is None:
            return
        host.sent[type(message).__name__] += 1
        if isinstance(message, MEMBERSHIP):
            message = wire.decode(LANE_OF[type(message)], wire.encode(message))
        self.carry(host, peer, link, message)

    def carry(self, host, peer, link, message):
        """Deliver in order; what cannot pass now is tried again, until the link is gone."""

        def deliver():
            other = self.hosts.get(peer.name)
            if host.links.get(peer) is not link or self.hosts.get(host.name) is not host:
                return
            if (
                other is None
                or not self.passes(host.name, peer.name)
                or other.links.get(host.id) is not link
                or other.stalled_until > self.now
            ):
                self.after(0.2, deliver)
                return
            self.touch(host, peer)
            self.input(other, lambda core: core.receive(host.id, message, self.now))
            self.touch(other, host.id)

        # One latency for all keeps the order.
        self.after(LATENCY_S, deliver)

    def send_datagram(self, host, peer, message):
        link = host.links.get(peer)
        if link is None:
            return
        host.sent[type(message).__name__] += 1
        assert len(wire.encode(message)) <= 1_100
        message = wire.decode_datagram(wire.encode(message))

        def deliver():
            other = self.hosts.get(peer.name)
            if other is None or other.links.get(host.id) is not link:
                return
            self.input(other, lambda core: core.receive(host.id, message, self.now))
            self.touch(other, host.id)

        if self.passes(host.name, peer.name) and self.rng.random() >= self.loss:
            self.after(LATENCY_S, deliver)

    def touch(self, host, peer):
        """Something fresh came on the link, as the driver would report it."""
        link = host.links.get(peer)
        if link is not None:
            link["heard", host.id] = self.now
            self.input(host, lambda core: core.heard(peer, self.now, 2 * LATENCY_S, 0.05) or [])

    def want(self, host, peer):
        if peer not in host.wanted:
            host.wanted[peer] = True
            self.send(host, peer, Wanted(True))
            self.dial(host, peer, 0)

    def dial(self, host, peer, attempt):
        if self.hosts.get(host.name) is not host or peer not in host.wanted:
            return
        if peer in host.links:
            return

        def done():
            if peer in host.links:
                return
            if self.connect(host, peer.name):
                return
            backoff = self.rng.uniform(0.1, min(10.0, 0.5 * 2**attempt))
            self.input(host, lambda core: core.unreachable(peer, self.now))
            self.after(backoff, lambda: self.dial(host, peer, attempt + 1))

        other = self.hosts.get(peer.name)
        fails = other is None or not self.passes(host.name, peer.name)
        self.after(DIAL_TIMEOUT_S if fails else 3 * LATENCY_S, done)

    def dial_seed(self, host, where):
        host.sent["DialSeed"] += 1
        name = where.partition(".")[0]
        other = self.hosts.get(name)

        def done():
            if node_id(name) in host.links or not self.connect(host, name, where):
                self.input(host, lambda core: core.seed_failed(where, self.now))

        fails = other is None or not self.passes(host.name, name)
        self.after(DIAL_TIMEOUT_S if fails else 3 * LATENCY_S, done)

    def connect(self, host, name, where=None):
        """Greet both ways. Returns False when nobody answers."""
        other = self.hosts.get(name)
        if self.hosts.get(host.name) is not host:
            return True
        if other is None or other is host or not self.passes(host.name, name):
            return False
        if other.stalled_until > self.now or host.stalled_until > self.now:
            return False
        for a, b in ((host, other), (other, host)):
            if b.id in a.links:
                # A newer start of the peer, or a link that only one end has: the new one wins.
                self.link_down(a, b.id)
        link = {("heard", host.id): self.now, ("heard", other.id): self.now}
        greetings = []
        for a, b in ((host, other), (other, host)):
            greetings.append(
                hello(
                    b.core.record,
                    yours=b.core.yours(a.id),
                    wanted=b.core.wants(a.id),
                )
            )
            a.links[b.id] = link
        self.input(host, lambda core: core.link_up(other.id, greetings[0], self.now, where))
        self.input(other, lambda core: core.link_up(host.id, greetings[1], self.now))
        for a, b in ((host, other), (other, host)):
            self.watch_idle(a, b.id, link)
        return True

    def watch_idle(self, host, peer, link):
        def look():
            if self.hosts.get(host.name) is not host or host.links.get(peer) is not link:
                return
            idle_at = link["heard", host.id] + IDLE_S
            if host.stalled_until > self.now:
                self.after(host.stalled_until - self.now + 0.01, look)
            elif idle_at <= self.now:
                self.link_down(host, peer)
            else:
                self.after(idle_at - self.now, look)

        self.after(IDLE_S, look)

    def link_down(self, host, peer):
        if host.links.pop(peer, None) is None:
            return
        self.input(host, lambda core: core.link_down(peer, self.now))
        if peer in host.wanted:
            self.after(0.05, lambda: self.dial(host, peer, 0))

    def close_unwanted(self, host, peer):
        """A link goes when neither end wants it, as the endpoint does."""

        def look():
            other = self.hosts.get(peer.name)
            if other is None or host.links.get(peer) is None or peer in host.wanted:
                return
            if host.id in other.wanted or not self.passes(host.name, peer.name):
                return
            if other.links.get(host.id) is host.links[peer]:
                self.link_down(other, host.id)
            self.link_down(host, peer)

        self.after(2 * LATENCY_S, look)
