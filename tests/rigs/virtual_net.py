"""A network of endpoints in virtual time: latency, loss, reordering, corruption, all from a seed.

Real endpoints, links and handshakes; only the clock and the wire are made up. Certificates are
made once a process, for they cost more than everything else here.
"""

import datetime
import functools
import heapq
import random

from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Direct, DirectKind
from plumtree_quic.net.endpoint import Endpoint
from plumtree_quic.net.events import (
    DialFailed,
    LinkDown,
    LinkReplaced,
    LinkUp,
    Received,
    SecurityEvent,
)
from plumtree_quic.net.link import LinkState
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.wire import build_record
from tests.rigs.pki import Pki

EPOCH = 1_790_000_000_000
START = 1_000.0
PKI = Pki("test")


@functools.cache
def credentials(name, cluster="default"):
    """Credentials of a good node; the same ones for the same name."""
    cert = PKI.node(name)
    return QuicConfig.from_pem(
        cert=cert.cert_pem, key=cert.key_pem, ca=PKI.ca_pem, cluster=cluster
    ).credentials


def credentials_of(cert, pki=PKI):
    """Credentials from a certificate that a test made."""
    return QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem).credentials


class Node:
    """One endpoint with an address, and what it has told.

    wall_offset_s: how far its wall clock is from the real one, plus virtual time.
    """

    def __init__(self, net, name, *, host=None, epoch=EPOCH, creds=None, settings=None, **options):
        self.net = net
        self.name = name
        self.address = (host or f"192.0.2.{len(net.nodes) + 1}", 7946)
        self.epoch = epoch
        self.creds = creds if creds is not None else credentials(name)
        self.id = self.creds.node_id
        self.settings = settings if settings is not None else NetSettings(rate_limits=False)
        self.wall_offset_s = 0.0
        self.record_of = self.id
        self.up = True
        self.events = []
        self.timer_at = None
        self.endpoint = Endpoint(
            lambda: self.creds,
            self.settings,
            rng=random.Random(f"{net.seed} {name} {epoch}"),
            record=self.record,
            yours=lambda peer: None,
            wanted=lambda peer: False,
            wall=self.wall,
            **options,
        )

    def wall(self):
        seconds = self.net.now - START + self.wall_offset_s
        return self.net.wall_start + datetime.timedelta(seconds=seconds)

    def record(self):
        return build_record(
            node_id=NodeId(self.record_of),
            epoch=self.epoch,
            incarnation=0,
            addresses=(f"{self.address[0]}:{self.address[1]}",),
            valid_until=EPOCH + 86_400_000,
        )

    def dial(self, other, *, expect=True):
        link = self.endpoint.dial(other.address, other.id if expect else None, self.net.now)
        self.pump()
        return link

    def want(self, other):
        self.endpoint.want(other.id, [other.address], self.net.now)
        self.pump()

    def link(self, other):
        return self.endpoint.link(other.id)

    def send(self, other, message):
        """As the driver does it: on the link that sends go to now; False without one."""
        link = self.link(other)
        if link is None:
            return False
        link.send(message)
        return True

    def pump(self):
        """Let out what the endpoint has to send, and arm its timer."""
        if not self.up:
            return
        now = self.net.now
        self.events += self.endpoint.poll()
        for data, address in self.endpoint.transmit(now):
            self.net.carry(self, data, address)
        self.events += self.endpoint.poll()
        due = self.endpoint.next_deadline()
        if due is not None and (self.timer_at is None or due < self.timer_at):
            self.timer_at = due
            # A real clock has moved on when a timer fires; aioquic's loss timer relies on that.
            self.net.at(max(due, now) + 1e-6, self._fire, due)

    def _fire(self, due):
        if not self.up or self.timer_at != due:
            return
        self.timer_at = None
        self.endpoint.advance(self.net.now)
        self.pump()

    def deliver(self, data, source):
        if self.up:
            self.endpoint.receive(data, source, self.net.now)
            self.pump()

    def crash(self):
        """Vanish: nothing comes out, nothing goes in."""
        self.up = False

    # --- what was told ---

    def of(self, kind):
        return [each for each in self.events if isinstance(each, kind)]

    @property
    def ups(self):
        return self.of(LinkUp)

    @property
    def downs(self):
        return self.of(LinkDown)

    @property
    def replaced(self):
        return self.of(LinkReplaced)

    @property
    def failures(self):
        return self.of(DialFailed)

    def messages(self, kind=Direct):
        return [each.message for each in self.of(Received) if isinstance(each.message, kind)]

    def security(self, kind):
        return [each for each in self.of(SecurityEvent) if each.kind == kind]

    def open_links(self):
        """Links of any kind that have not ended."""
        return [
            each
            for each in self.endpoint._links
            if each.state not in (LinkState.CLOSING, LinkState.CLOSED)
        ]

    def tables(self):
        """Sizes of everything that a connection could leave behind."""
        endpoint = self.endpoint
        return {
            "cids": len(endpoint._by_cid),
            "links": len(endpoint._links),
            "half_open": len(endpoint._half_open),
            "per_address": len(endpoint._per_address),
            "pairs": len(endpoint._pairs),
            "touched": len(endpoint._touched),
            "timers": len(endpoint._timers),
            "outgoing": len(endpoint._outgoing),
        }


class Net:
    """The wire and the clock. Same seed and same calls: same order of everything.

    latency_s: one way; jitter_s is added at random, so packets overtake one another. loss and
    corruption: probability for each datagram; burst: how many in a row a loss takes.
    path(source, destination, data) may return False to drop a datagram: cuts, path MTU.
    """

    def __init__(
        self, seed=0, *, latency_s=0.005, jitter_s=0.0, loss=0.0, corruption=0.0, burst=1, path=None
    ):
        self.seed = seed
        self.rng = random.Random(seed)
        self.latency_s, self.jitter_s = latency_s, jitter_s
        self.loss, self.corruption, self.burst = loss, corruption, burst
        self.path = path
        self.now = START
        self.wall_start = datetime.datetime.now(datetime.UTC)
        self.nodes = {}
        self.carried = 0
        self.wiretap = None
        self._losing = {}
        self._queue = []
        self._number = 0

    def node(self, name, **options):
        node = Node(self, name, **options)
        self.nodes[node.address] = node
        return node

    def pair(self, **options):
        """Nodes a and b; a's NodeId is the smaller."""
        return self.node("a", **options), self.node("b", **options)

    def linked(self, **options):
        """Nodes a and b with a link that a has dialled, idle."""
        a, b = self.pair(**options)
        a.dial(b)
        self.run(0.5)
        assert len(a.ups) == len(b.ups) == 1
        return a, b

    def at(self, when, call, *args):
        self._number += 1
        heapq.heappush(self._queue, (when, self._number, call, args))

    def carry(self, source, data, address):
        self.carried += 1
        if self.wiretap is not None:
            self.wiretap(source, data, address)
        destination = self.nodes.get(address)
        if destination is None or self._is_lost(source, destination, data):
            return
        if self.corruption and self.rng.random() < self.corruption:
            at = self.rng.randrange(len(data))
            data = data[:at] + bytes((data[at] ^ 1 << self.rng.randrange(8),)) + data[at + 1 :]
        delay_s = self.latency_s + self.rng.random() * self.jitter_s
        self.at(self.now + delay_s, destination.deliver, data, source.address)

    def _is_lost(self, source, destination, data):
        if self.path is not None and self.path(source, destination, data) is False:
            return True
        way = (source.address, destination.address)
        if self._losing.get(way, 0):
            self._losing[way] -= 1
            return True
        if self.loss and self.rng.random() < self.loss / self.burst:
            self._losing[way] = self.burst - 1
            return True
        return False

    def inject(self, data, to, source=("198.51.100.9", 9)):
        """A datagram from nowhere."""
        to.deliver(data, source)

    def run(self, seconds):
        """Let so much virtual time pass."""
        end = self.now + seconds
        steps = 0
        while self._queue and self._queue[0][0] <= end:
            when, _, call, args = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            call(*args)
            steps += 1
            assert steps < 2_000_000, "the network does not come to rest"
        self.now = end
        return self

    def until(self, condition, seconds, step_s=0.05):
        """Run until `condition()`, at most so long; returns whether it came true."""
        end = self.now + seconds
        while not condition():
            if self.now >= end:
                return False
            self.run(min(step_s, end - self.now) or step_s)
        return True


def direct(number, size=0):
    """A numbered message on the direct lane."""
    return Direct(DirectKind.MESSAGE, number, number.to_bytes(4, "big").ljust(size, b"."))
