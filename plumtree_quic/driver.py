"""The driver: one socket, one endpoint, one core, one loop. The only place where cores meet links.

A turn is: read all that the socket holds, feed the endpoint, take its events, give them to the
core, perform the effects, transmit once per link touched, arm one timer. Nothing in a turn
awaits. Whatever must be decided is decided in proto/; whatever an application sees is in node.py.
"""

import asyncio
import datetime
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

import attrs
from cryptography import x509

from plumtree_quic import wire
from plumtree_quic.clocks import Clocks, Jump
from plumtree_quic.config import PlumtreeConfig
from plumtree_quic.errors import ConfigError, LinkError, NodeClosed, PlumtreeError, WireError
from plumtree_quic.ids import MemberKey, NodeId, member_key
from plumtree_quic.ledger import LEDGER_EFFECTS, Ledger
from plumtree_quic.messages import (
    LANE_OF,
    Bundle,
    Chunk,
    Digest,
    Direct,
    Fact,
    Feature,
    Gossip,
    GraftRefused,
    Hello,
    Lane,
    MemberState,
    Message,
    Record,
    RefusedReason,
    Repair,
    chunk_span,
)
from plumtree_quic.net.endpoint import Endpoint
from plumtree_quic.net.events import (
    DatagramReceived,
    DialFailed,
    Event,
    Fresh,
    LinkDown,
    LinkReplaced,
    LinkUp,
    Received,
    SecurityEvent,
    Writable,
)
from plumtree_quic.net.link import Link as NetLink
from plumtree_quic.net.quota import Accounts, Step
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.net.udp import UdpSocket, numeric_address, parse_address
from plumtree_quic.proto.chunks import Chunks
from plumtree_quic.proto.core import Core
from plumtree_quic.proto.effects import (
    Covered,
    Deliver,
    DialSeed,
    Effect,
    Equivocated,
    Link,
    Push,
    Relink,
    Send,
    SendDatagram,
    Strike,
    Superseded,
    TurnAway,
    Unlink,
)
from plumtree_quic.proto.pace import Pace
from plumtree_quic.proto.paths import LossMeter, crossing_s
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.security.gate import Gate, Refusal, Unsigned
from plumtree_quic.security.keyring import KeyRing, Verdict
from plumtree_quic.security.policy import Policy
from plumtree_quic.security.signatures import Kind, Signer, fact_kind, key_id_of
from plumtree_quic.store.contract import Committed, Kept, MessageStore, Recovered
from plumtree_quic.subscription import OrderedSubscription

__all__ = ["Driver", "Sink", "advertised_address"]

logger = logging.getLogger("plumtree_quic")

# A push link without room holds everything back this long; then its bundles are announced
# instead, for trees of several origins may wait for one another in a ring (ARCHITECTURE 4).
BLOCKED_S = 0.25
# A link that goes on moving, slowly, holds back this long at most (a guess).
BLOCKED_S_MAX = 1.0
# Answers to grafts wait in a budget of their own; what is beyond it is answered "busy".
REPAIR_BACKLOG_BYTES = 65_536
# How often certificates and accounts that nothing refers to any more are looked for.
SWEEP_S = 60.0
# The timer fires at least this often, so that a stalled loop notices its own lateness.
HEARTBEAT_S = 1.0
# How often in a retention time a store is asked to let old bundles go.
EXPIRIES = 20
# A message that one bundle does not take is cut into pieces of so many bytes at most: small enough
# that what is small and comes meanwhile hardly waits for one, large enough that a signature for
# each costs little.
CHUNK_BYTES = 32_768
_NO_ROOM = 1 << 62
# Our first bundle is flooded and makes our tree; it holds one message, and what follows waits for
# the prunes: four round trips, within these bounds (guesses, measured on 16 busy processes).
FORMING_S = (0.05, BLOCKED_S)
FORMING_ROUND_TRIPS = 4
LATE_S = 0.1
HEARD_EVERY_S = 0.1
# After an exception that was ours, so that a deadline that fails again and again is no busy loop.
PAUSE_S = 0.1
# Of a name with many addresses (a headless service) so many are dialled at once. A guess.
ADDRESSES_PER_NAME_MAX = 16
# A seed that finds fault with our certificate is left in peace for so long (as in net/settings.py).
REFUSED_FLOOR_S = 30.0
MALFORMED_TOLD_EVERY_S = 10.0
RECORD_VALID_MS = 24 * 3600 * 1000
THROTTLED_TOLD_EVERY_S = 10.0
CLOSE_PROTOCOL_ERROR = 0x15
CLOSE_GOING_AWAY = 0x10
CLOSE_LIMIT_EXCEEDED = 0x16
CLOSE_OVERLOADED = 0x17


_LaneTo = tuple[NodeId, Lane]
"""A lane on which we push, or are pushed to."""


@attrs.frozen(kw_only=True)
class Sink:
    """What the driver tells the node. None of these may block, and only `deliver` may raise.

    deliver: a bundle is due to the application for the first time, or is our own; raises
    WireError when it is malformed. fact: something happened in the cluster or in the tree.
    direct: a message for this node alone. link_up: a link has been greeted, or a seed has turned
    out to be ourselves. security_event: something that an operator's security log wants.
    epoch_raised: we go on under a later start epoch than the one that we were given. superseded: a
    newer start of our own identity lives, so stop.
    """

    deliver: Callable[[Kept], None]
    fact: Callable[[Effect], None]
    direct: Callable[[NodeId, Direct], None]
    link_up: Callable[[], None]
    security_event: Callable[[str, dict[str, object]], None]
    epoch_raised: Callable[[int], None]
    superseded: Callable[[int], None]


@attrs.define
class Counters:
    """What crossed the driver's boundary since the start. Plain integers."""

    bundles_sent: int = 0
    bundles_built: int = 0
    bundle_bytes_built: int = 0
    messages_accepted: int = 0
    chunks_sent: int = 0
    copies_gossip: int = 0
    copies_bulk: int = 0
    copies_repair: int = 0
    bundles_delivered: int = 0
    bundles_malformed: int = 0
    bundles_not_allowed: int = 0
    grafts_busy: int = 0
    strikes: int = 0
    frames_throttled: int = 0
    peers_demoted: int = 0
    peers_cut: int = 0
    blocked: int = 0
    congested: int = 0
    store_full: int = 0
    turns: int = 0
    errors: int = 0


@attrs.define
class _Peer:
    """What the driver keeps per link, in the link's context. What it holds against a peer is in
    an account, which outlives the link.
    """

    heard_at: float = 0.0
    loss: LossMeter = attrs.field(factory=LossMeter)
    throttled_told_at: float = float("-inf")


@attrs.frozen
class _Blocked:
    """A link that we push to and that has no room: since when, and how far it had got when its
    progress was last judged.
    """

    since: float
    judged_at: float
    progress: int


@attrs.define(eq=False)
class _Large:
    """A large message of ours: numbered first .. first + count - 1, and sent piece by piece.

    at: which piece is next. unsafe: pieces that are not in the store yet. done: when all are.
    """

    topic: str
    payload: bytes
    first: int
    count: int
    unsafe: int
    done: asyncio.Future[bool]
    at: int = 0


class Driver:
    """Runs one node on the current event loop.

    Args:
        quic: our identity.
        config: the protocol's settings.
        listen: ``(host, port)`` to bind; port 0 takes a free one.
        advertise: ``host:port`` that others dial, or None for the bound address.
        sink: the node.
        epoch: the start epoch in milliseconds, see MessageId.
        judge: called before a bundle of a known origin is forwarded; False refuses it.
        policy: who may join, relay and publish; None: Policy.default.
        store: opened already; `recovered` is what it said then.
    """

    def __init__(
        self,
        quic: QuicConfig,
        config: PlumtreeConfig,
        *,
        listen: tuple[str, int],
        advertise: str | None,
        sink: Sink,
        epoch: int,
        judge: Callable[[Bundle], bool] | None = None,
        policy: Policy | None = None,
        store: MessageStore | None = None,
        recovered: Recovered | None = None,
        rng: Random | None = None,
    ) -> None:
        self._quic = quic
        self._config = config
        self._listen = listen
        self._advertise = advertise
        self._sink = sink
        self._judge = judge
        self.policy = policy if policy is not None else Policy.default(quic.node_id)
        self._rng = rng or Random(int.from_bytes(os.urandom(16), "big"))
        self.epoch = epoch
        self._recovered = recovered or Recovered()
        self._ledger: Ledger | None = None
        if store is not None:
            # Not a bound method: the core is made anew when our epoch must rise.
            self._ledger = Ledger(store, quic.node_id, lambda: self.core, self)
        # Whether links are held back for the disk's sake, and when old bundles go next.
        self._is_full = False
        self._expire_at = 0.0
        # Broadcasts up to this number are safe; who waits for more of them.
        self._safe_seq = 0
        self._asked: dict[int, asyncio.Future[tuple[bytes, ...]]] = {}
        self._unsafe: dict[asyncio.Future[None], None] = {}
        self._safe_waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._signer: Signer | None = None
        self._ring: KeyRing | None = None
        self._swept_at = 0.0
        if config.sign == "all":
            self._signer = Signer(quic.credentials)
            self._ring = KeyRing(
                quic.credentials,
                wall_ms=_wall_ms,
                retention_s=max(
                    config.message_cache_ttl,
                    config.storage.retention,
                    store.retention_s if store is not None else 0.0,
                ),
                is_revoked=self._is_revoked,
            )
        self._gate = Gate(
            self._ring if self._ring is not None else Unsigned(),
            # Not bound methods: the core is made anew when our epoch must rise.
            seen=lambda bundle: self.core.has_seen(bundle),  # noqa: PLW0108
            differs=lambda bundle: self.core.differs(bundle),  # noqa: PLW0108
        )
        self._gate.use_policy(self.policy)
        self.counters = Counters()
        self.trace_copy: Callable[[Bundle], None] | None = None
        self.started = False
        self.closed = False
        self.address = ""
        self._was_up = False
        self._loop: asyncio.AbstractEventLoop
        self._socket: UdpSocket
        self._endpoint: Endpoint
        self.core: Core
        self._next_seq = 1
        self._formed = False
        self._forming_until = 0.0
        self._outbox: list[tuple[str, bytes]] = []
        self._outbox_bytes = 0
        self._outbox_topics: set[str] = set()
        self._outbox_due = 0.0
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._resume_at = 0.0
        self._closing = False
        self._beat = 0.0
        self._clocks: Clocks
        self._idle_s = 0.0
        # Links that we push to and that are out of room: since when, and which links brought
        # what waits there.
        self._blocked: dict[_LaneTo, _Blocked] = {}
        self._blocked_by: dict[_LaneTo, dict[NodeId, None]] = {}
        self._held: set[_LaneTo] = set()
        self._source: NodeId | None = None
        self._congested: dict[_LaneTo, float] = {}
        # The large message that is being sent; one at a time, so that its numbers are one hole.
        self._large: _Large | None = None
        self._pace = Pace(BLOCKED_S)
        # Whether this turn handled what somebody served to us.
        self._has_repaired = False
        # How much of each link's bulk lane must be acknowledged until its last burst has arrived.
        self._underway: dict[NetLink, int] = {}
        self._large_waiters: deque[asyncio.Future[None]] = deque()
        self._accounts = Accounts()
        self._malformed_told_at = float("-inf")
        self._egress_waiters: deque[asyncio.Future[None]] = deque()
        self._idle_waiters: deque[asyncio.Future[None]] = deque()
        self._direct_waiters: dict[NodeId, deque[asyncio.Future[None]]] = {}
        # Dials to seeds that have neither been greeted nor failed.
        self._dials: dict[NetLink, str] = {}
        self._seed_addresses: list[str] = []
        self._remembered: list[tuple[NodeId, Sequence[str]]] = []
        self.own_seeds: set[str] = set()
        self.last_seed_error: PlumtreeError | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind the socket and begin. Raises LinkError when the address is taken."""
        self._loop = asyncio.get_running_loop()
        self._socket = UdpSocket.bind(*self._listen, self._on_datagrams)
        try:
            self.address = self._advertised()
            settings = NetSettings(
                lane_window=self._config.lane_window,
                loopback=self._socket.is_loopback,
            )
            self._idle_s = settings.idle_s
            now = self._loop.time()
            self._endpoint = Endpoint(
                lambda: self._quic.credentials,
                settings,
                rng=self._rng,
                record=lambda: self.core.record,
                # Not bound methods: the core is made anew when our epoch must rise.
                yours=lambda peer: self.core.yours(peer),  # noqa: PLW0108
                wanted=lambda peer: self.core.wants(peer),  # noqa: PLW0108
                features=0 if self._ring is not None else Feature.UNSIGNED,
                judge_hello=self._judge_hello,
                admit=self._may_link,
                is_revoked=self._is_revoked,
            )
            self.core = self._make_core()
            self._use_store(now)
        except BaseException:
            self._socket.close()
            raise
        self.started = True
        self._beat = now
        self._clocks = Clocks()
        self._perform(self.core.start(now), now)
        self._turn()

    def _use_store(self, now: float) -> None:
        ledger = self._ledger
        if ledger is None:
            return
        if self._ring is not None:
            for chain in self._recovered.chains.values():
                self._ring.offer(chain, now)
        ledger.store.attach(self._loop.call_soon_threadsafe, self._on_commit)
        ledger.recover(self._recovered)

    def _advertised(self) -> str:
        host, port = self._socket.address
        if self._advertise is None:
            if host in ("0.0.0.0", "::"):  # noqa: S104 - the very thing that is refused here
                raise ConfigError(
                    f"listening on {host}:{port} needs an address that others can dial: "
                    "pass advertise='10.0.0.5' (or PLUMTREE_ADVERTISE_ADDR)"
                )
            return _join_address(host, port)
        return advertised_address(self._advertise, port)

    def _make_core(self) -> Core:
        node_id, own_key = self._quic.node_id, member_key(self._quic.node_id)
        epoch, address = self.epoch, self.address

        def make_record(incarnation: int) -> Record:
            signer = self._signer
            return wire.build_record(
                node_id=node_id,
                epoch=epoch,
                incarnation=incarnation,
                addresses=(address,),
                zone=self._config.zone,
                valid_until=_wall_ms() + RECORD_VALID_MS,
                chain=signer.chain if signer is not None else (),
                **self._signed(Kind.RECORD),
            )

        def make_fact(
            subject: MemberKey, subject_epoch: int, incarnation: int, state: MemberState
        ) -> Fact:
            return wire.build_fact(
                subject=subject,
                epoch=subject_epoch,
                incarnation=incarnation,
                state=state,
                signer=own_key,
                **self._signed(fact_kind(state)),
            )

        return Core(
            make_record(0),
            self._config,
            self._rng,
            make_record=make_record,
            make_fact=make_fact,
            wall_ms=_wall_ms,
            judge=self._may_spread,
            is_safe=lambda origin, epoch, *run: (
                self._ledger is None or not self._ledger.is_pending((origin, epoch), run)
            ),
        )

    def use_policy(self, policy: Policy) -> None:
        """Who may join, relay and publish from now on."""
        self.policy = policy
        self._gate.use_policy(policy)
        self.judge_again()

    def judge_again(self) -> None:
        """Whom we trust has changed, by policy, list or date: what is not good any more goes."""
        now = self._loop.time()
        if self._ring is not None:
            self._ring.judge_again()
        self._gate.judge_again()
        self.core.judge_again()
        self._endpoint.judge_links(now)
        self._schedule_turn()

    def is_revoked(self) -> bool:
        """Whether our own certificate is revoked or denied, by what we know."""
        own = self._quic.credentials
        chain = [x509.load_der_x509_certificate(each) for each in own.chain_der]
        return self._is_revoked((own.leaf, *chain), own.node_id)

    def _is_revoked(self, path: Sequence[x509.Certificate], node_id: NodeId) -> bool:
        revocation = self._quic.credentials.revocation
        return self.policy.denies(path, node_id) or revocation.is_revoked(
            path, datetime.datetime.now(datetime.UTC)
        )

    def _may_link(self, peer: NodeId) -> bool:
        return self.policy.may_join(peer) and self._accounts.may_link(peer, self._loop.time())

    def _may_spread(self, bundle: Bundle) -> bool:
        """Asked once about each new bundle, verified, of a member that is known."""
        origin = self.core.node_id_of(bundle.origin)
        if origin is not None and not self.policy.may_publish(origin, bundle.topics):
            self.counters.bundles_not_allowed += 1
            self._sink.security_event(
                "publish.refused",
                {"origin": origin, "topics": ", ".join(bundle.topics), "messages": bundle.count},
            )
            return False
        return self._judge is None or self._judge(bundle)

    def _signed(self, kind: Kind) -> wire.Signed:
        """What wire.build_* needs to sign in our name now."""
        signer = self._signer
        if signer is None:
            # How old something is counts without signatures, too.
            return {"signed_at": _wall_ms()}
        return {
            "algorithm": signer.algorithm,
            "key_id": signer.key_id,
            "signed_at": _wall_ms(),
            "sign": signer.sign(kind),
        }

    def _judge_hello(self, hello: Hello, now: float) -> tuple[Hello, str]:
        hello, verdict = self._gate.check_hello(self._quic.node_id, hello, now)
        if verdict is Verdict.GOOD:
            return hello, ""
        self._note_refusal(hello.record.node_id, Refusal("hello", verdict, hello.record.key_id))
        return hello, verdict.value

    def use_credentials(self) -> None:
        """Our certificate, key or CA have changed: sign and judge by the new ones from now on."""
        now = self._loop.time()
        credentials = self._quic.credentials
        if self._ring is not None:
            self._ring.use(credentials)
            self._ring.judge_again()
            self._gate.judge_again()
            self.core.judge_again()
        if self._signer is not None and self._signer.key_id != key_id_of(credentials.leaf_der):
            # What was accepted under the old key leaves under it.
            self._flush(now)
            self._signer = Signer(credentials)
            self._perform(self.core.renew(now), now)
        self._endpoint.use_credentials(now)
        self._schedule_turn()

    def seeds(self, addresses: Sequence[str]) -> None:
        """Dial these seeds now, and again until they answer."""
        self._seed_addresses += [each for each in addresses if each not in self._seed_addresses]
        now = self._loop.time()
        self._perform(self.core.seeds(addresses, now), now)
        self._schedule_turn()

    def remember(self, peers: Sequence[tuple[NodeId, Sequence[str]]]) -> None:
        """Look for members that a former life knew, beside the seeds, until they are met."""
        self._remembered += peers
        now = self._loop.time()
        self._perform(self.core.remember(peers, now), now)
        self._schedule_turn()

    @property
    def is_rejoined(self) -> bool:
        """Whether a member let us in because a former life of ours knew where it lives."""
        return bool(self._remembered) and self.core.table.alive_count() > 1

    def leave(self) -> None:
        """Announce that we go."""
        now = self._loop.time()
        self._flush(now)
        self._perform(self.core.leave(now), now)
        self._schedule_turn()

    async def idle(self, timeout_s: float) -> bool:
        """Wait until all that was accepted has been acknowledged by the links' other ends."""
        self._flush(self._loop.time())
        deadline = self._loop.time() + timeout_s
        while not self._is_idle():
            remaining = deadline - self._loop.time()
            if remaining <= 0 or self.closed:
                return False
            self._schedule_turn()
            await self._wait(self._idle_waiters, min(remaining, 0.05))
        return True

    def _is_idle(self) -> bool:
        if self._outbox or self._large or (self._ledger is not None and self._ledger.is_waiting):
            return False
        state_of = self.core.table.state_of
        # Who is known to be dead acknowledges nothing any more.
        return all(
            link.unacknowledged() == 0
            or state_of(member_key(link.peer)) in (MemberState.DEAD, MemberState.LEFT)
            for link in self._endpoint.links()
        )

    async def _wait(self, waiters: "deque[asyncio.Future[None]]", timeout_s: float | None) -> None:
        """Wait to be woken, or for `timeout_s`; leave nothing behind in either case."""
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def unsent(self) -> int:
        """Bytes that were accepted and have not left this node."""
        large = self._large
        unsent = self._outbox_bytes
        if large is not None:
            unsent += len(large.payload) * (large.count - large.at) // large.count
        return unsent + sum(
            link.backlog(lane)
            for link in self._endpoint.links()
            for lane in (Lane.GOSSIP, Lane.DIRECT, Lane.BULK)
        )

    async def close(self, timeout_s: float) -> None:
        """Close all links with GOING_AWAY, wait for it to be out, free the socket."""
        if self.closed or not self.started:
            return
        now = self._loop.time()
        self._closing = True
        self._endpoint.close(now, CLOSE_GOING_AWAY, "shutdown")
        try:
            self._turn()
            deadline = now + timeout_s
            while not self._endpoint.closed and self._loop.time() < deadline:
                await asyncio.sleep(0.01)
                self._turn()
        finally:
            self.closed = True
            for handle in (self._timer, self._scheduled):
                if handle is not None:
                    handle.cancel()
            for task in self._resolving:
                task.cancel()
            self._socket.close()
            for _, waiter in self._safe_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            if self._large is not None and not self._large.done.done():
                self._large.done.set_result(False)
            for waiters in (
                self._egress_waiters,
                self._large_waiters,
                self._idle_waiters,
                *self._direct_waiters.values(),
            ):
                self._wake(waiters)

    # --- publishing -----------------------------------------------------------------------------

    @property
    def egress_open(self) -> bool:
        """Whether the links that we push to have room for more."""
        return not self._is_full and self._has_room(Lane.GOSSIP)

    def _has_room(self, lane: Lane) -> bool:
        """Whether most links that we push to take more on this lane, and our tree has formed."""
        if self._loop.time() < self._forming_until:
            return False
        if any(each is lane for _, each in self._blocked):
            return False
        congested = sum(each is lane for _, each in self._congested)
        return congested * 2 <= len(self._endpoint.links())

    async def wait_egress(self) -> None:
        """Wait until there is room again: on links at most BLOCKED_S, for then we announce instead;
        on a disk that is behind for as long as it takes.
        """
        deadline = self._loop.time() + BLOCKED_S
        while not self.closed and not self.egress_open:
            remaining = deadline - self._loop.time()
            if remaining <= 0 and not self._is_full:
                return
            await self._wait(self._egress_waiters, remaining if remaining > 0 else BLOCKED_S)

    def accept(self, topic: str, payload: bytes) -> tuple[int, bool]:
        """Number one message. Returns its seq, and whether a bundle became full with it."""
        size = len(payload) + 8
        config = self._config
        if self._outbox and (
            self._outbox_bytes + size > config.bundle_bytes_max
            or (topic not in self._outbox_topics and len(self._outbox_topics) >= wire.TOPICS_MAX)
        ):
            self._flush(self._loop.time())
        if not self._outbox:
            self._outbox_due = self._loop.time() + config.linger
        self._outbox.append((topic, payload))
        self._outbox_bytes += size
        self._outbox_topics.add(topic)
        self.counters.messages_accepted += 1
        seq = self._next_seq + len(self._outbox) - 1
        full = (
            len(self._outbox) >= config.bundle_messages_max
            or self._outbox_bytes >= config.bundle_bytes_max
        )
        if full or (not self._formed and self._endpoint.links()):
            self._flush(self._loop.time())
        self._schedule_turn()
        return seq, full

    def _flush(self, now: float) -> None:
        if not self._outbox:
            return
        messages, self._outbox = self._outbox, []
        self._outbox_bytes = 0
        self._outbox_topics.clear()
        compression = self._config.compression
        bundle = wire.build_bundle(
            origin=self.core.key,
            epoch=self.epoch,
            first=self._next_seq,
            messages=messages,
            zstd_level=compression.level if compression.enabled else None,
            zstd_bytes_min=compression.min_payload_size,
            previous=self._recovered.last_of(self.core.key) if self._next_seq == 1 else None,
            **self._signed(Kind.BUNDLE),
        )
        self._next_seq += len(messages)
        self._publish(bundle, lambda: self._on_accepted(bundle.last), now)

    def _publish(self, bundle: Bundle, accepted: Callable[[], None], now: float) -> None:
        """Push a bundle of ours; `accepted` is called when it is safe."""
        self.counters.bundles_built += 1
        self.counters.bundle_bytes_built += len(bundle.raw)
        links = self._endpoint.links()
        if links and not self._formed:
            self._formed = True
            slowest = max(link.path().rtt_s for link in links)
            shortest, longest = FORMING_S
            self._forming_until = now + min(max(FORMING_ROUND_TRIPS * slowest, shortest), longest)
        self._perform(self.core.broadcast(bundle, now), now)
        if self._ledger is not None:
            self._ledger.broadcast(bundle, accepted)
        else:
            accepted()
            self.hand_over(Kept(0, bundle, 0, self._quic.node_id))

    # --- large messages -------------------------------------------------------------------------

    async def wait_large(self) -> None:
        """Wait while another large message of ours is being sent."""
        while self._large is not None and not self.closed:
            await self._wait(self._large_waiters, None)

    def accept_large(self, topic: str, payload: bytes) -> tuple[int, int, asyncio.Future[bool]]:
        """Number a message that one bundle does not take; none may be on its way.

        Returns its first and last number, and what is done when all of it is queued, and safe in
        the store: False when we end before. It is sent whatever becomes of who asked for it, as
        links have room.

        All its numbers are taken now. What is broadcast meanwhile has numbers behind them and does
        not wait: for others that is one hole, which closes piece by piece.
        """
        self._flush(self._loop.time())
        count = -(-len(payload) // CHUNK_BYTES)
        first, self._next_seq = self._next_seq, self._next_seq + count
        self._large = _Large(topic, payload, first, count, count, self._loop.create_future())
        self.counters.messages_accepted += 1
        self._schedule_turn()
        return first, self._next_seq - 1, self._large.done

    def _send_piece(self, large: _Large, now: float) -> None:
        """The next piece; one in a turn, so that what is small has its turn in between."""
        index, total = large.at, len(large.payload)
        span = chunk_span(index, large.count, total)
        assert span is not None
        seq = large.first + index
        compression = self._config.compression
        bundle = wire.build_bundle(
            origin=self.core.key,
            epoch=self.epoch,
            first=seq,
            messages=[(large.topic, large.payload[span[0] : span[1]])],
            zstd_level=compression.level if compression.enabled else None,
            zstd_bytes_min=compression.min_payload_size,
            previous=self._recovered.last_of(self.core.key) if seq == 1 else None,
            chunk=(index, large.count, total),
            **self._signed(Kind.BUNDLE),
        )
        large.at += 1
        self.counters.chunks_sent += 1
        if large.at == large.count:
            self._large = None
            self._wake(self._large_waiters)
        self._publish(bundle, lambda: self._on_piece_accepted(large), now)
        if self._pace.sent():
            self._underway = {link: link.written(Lane.BULK) for link in self._endpoint.links()}
        self._schedule_turn()

    def _may_send_piece(self, now: float) -> bool:
        """Whether links have room for a piece, and what is small has had its share."""
        return (
            self.egress_open
            and self._has_room(Lane.BULK)
            and self._pace.may_send(now, self._have_arrived, self._slowest_rtt_s)
        )

    def _have_arrived(self) -> bool:
        """Whether our neighbours have what was sent since the last rest."""
        links = self._endpoint.links()
        return all(
            link.acknowledged(Lane.BULK) >= written or link not in links
            for link, written in self._underway.items()
            if (link.peer, Lane.BULK) not in self._congested
        )

    def _slowest_rtt_s(self) -> float:
        return max((link.path().rtt_s for link in self._endpoint.links()), default=0.0)

    @staticmethod
    def _on_piece_accepted(large: _Large) -> None:
        large.unsafe -= 1
        if not large.unsafe and not large.done.done():
            large.done.set_result(True)

    # --- the store ------------------------------------------------------------------------------

    def _on_accepted(self, seq: int) -> None:
        self._safe_seq = seq
        while self._safe_waiters and self._safe_waiters[0][0] <= seq:
            waiter = self._safe_waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    async def wait_accepted(self, seq: int) -> bool:
        """Wait until our broadcast of this number is in the store; False when we end before."""
        if seq > self._safe_seq and not self.closed:
            waiter = self._loop.create_future()
            self._safe_waiters.append((seq, waiter))
            await waiter
        return seq <= self._safe_seq

    def when_safe(self, ticket: int) -> asyncio.Future[None]:
        """Be told when what the store was told under this ticket is safe."""
        safe: asyncio.Future[None] = self._loop.create_future()
        assert self._ledger is not None

        def done() -> None:
            self._unsafe.pop(safe, None)
            if not safe.done():
                safe.set_result(None)

        self._unsafe[safe] = None
        self._ledger.after(ticket, done)
        return safe

    def give_up(self) -> None:
        """The store is closed: what is not safe by now will not be. Who waits for it is told."""
        for safe in self._unsafe:
            if not safe.done():
                safe.set_exception(
                    NodeClosed("the node was shut down before that was in its store")
                )
                # Most who acknowledge do not await it.
                safe.exception()
        self._unsafe.clear()

    def seen_through(self, origin: MemberKey, epoch: int, seq: int) -> int:
        """The last of the run from `seq` on that was seen and is not on its way to readers."""
        if self._ledger is not None and self._ledger.is_pending((origin, epoch)):
            return seq - 1
        return self.core.broadcasts.seen_through(origin, epoch, seq)

    def settle_order(self, reader: OrderedSubscription, chunks: Chunks[Kept]) -> None:
        """Let an ordered reader look at what it holds back; it has all that was handed over.

        chunks: what it will be given once that is complete.
        """
        broadcasts, ledger, now = self.core.broadcasts, self._ledger, self._loop.time()

        def seen(origin: MemberKey, epoch: int, seq: int) -> int:
            return chunks.clip(origin, epoch, seq, self.seen_through(origin, epoch, seq))

        def awaited(origin: MemberKey, epoch: int, before: int | None) -> bool:
            if ledger is not None and ledger.is_pending((origin, epoch)):
                return True
            return chunks.has(origin, epoch) or broadcasts.awaits(origin, epoch, before, now)

        reader.settle(seen, awaited, time.monotonic(), whole=broadcasts.is_greeted)

    async def ask_who_has(
        self, epoch: int, seq: int, last: int, within_s: float, *, wide: bool
    ) -> tuple[bytes, ...]:
        """The begins of the keys of those who have a message of ours, as far as it is found out."""
        now = self._loop.time()
        number, effects = self.core.ask_who_has(epoch, seq, last, within_s, now, wide=wide)
        asked: asyncio.Future[tuple[bytes, ...]] = self._loop.create_future()
        self._asked[number] = asked
        try:
            self._perform(effects, now)
            self._schedule_turn()
            async with asyncio.timeout(within_s + LATE_S):
                return await asked
        except TimeoutError:
            return ()
        finally:
            del self._asked[number]

    def _on_covered(self, effect: Covered) -> None:
        asked = self._asked.get(effect.number)
        if asked is not None and not asked.done():
            asked.set_result(effect.keys)

    def want_past(self) -> None:
        """Fetch what others hold from before our time."""
        now = self._loop.time()
        self._perform(self.core.want_past(now), now)
        self._schedule_turn()

    def _on_commit(self, commit: Committed) -> None:
        assert self._ledger is not None
        try:
            self._ledger.committed(commit)
        except Exception:
            self._note_error("what is safe could not be handed over; going on")
        self._schedule_turn()

    def _tend_store(self, ledger: Ledger, now: float) -> None:
        """Hold everybody back while the disk is behind; read on for whoever has room."""
        if ledger.is_full != self._is_full:
            self._is_full = ledger.is_full
            self.counters.store_full += self._is_full
            for link in self._endpoint.links():
                self._apply_holds(link)
        if ledger.is_serving:
            ledger.pump()
        if now >= self._expire_at:
            store = ledger.store
            store.expire(_wall_ms())
            self._expire_at = now + max(HEARTBEAT_S, store.retention_s / EXPIRIES)

    def _apply_holds(self, link: NetLink) -> None:
        for lane in (Lane.GOSSIP, Lane.BULK):
            link.hold(lane, self._is_full or (link.peer, lane) in self._held)
        link.hold(Lane.SYNC, self._is_full)

    def hand_over(self, kept: Kept) -> None:
        """A bundle is safe, or need not be: the application has it."""
        try:
            self._sink.deliver(kept)
        except WireError as error:
            self.note_malformed(kept.bundle.origin, str(error))

    def note_malformed(self, origin: MemberKey, reason: str) -> None:
        """Its origin's fault, and no link's: relays do not open what they forward."""
        now = self._loop.time()
        self.counters.bundles_malformed += 1
        if now - self._malformed_told_at >= MALFORMED_TOLD_EVERY_S:
            self._malformed_told_at = now
            self._sink.security_event(
                "bundle.malformed", {"origin": origin.hex(), "reason": reason}
            )

    def note_lie(self, origin: NodeId, reason: str) -> None:
        """What an origin signed contradicts itself: it is told of, and has a strike."""
        self.note_malformed(member_key(origin), reason)
        self._strike(Strike(origin, reason), self._loop.time())

    def sync_backlog(self, peer: NodeId) -> int | None:
        """Bytes that wait for the link to `peer` on its sync lane."""
        link = self._endpoint.link(peer)
        if link is None:
            return None
        # Asked for the sake of its answer being told when it changes.
        return link.backlog(Lane.SYNC) if link.room(Lane.SYNC) > 0 else _NO_ROOM

    def answer(self, peer: NodeId, message: Repair | GraftRefused | Digest) -> None:
        """Queue an answer out of the store."""
        link = self._endpoint.link(peer)
        if link is not None:
            link.send(message)

    def chain_of(self, key_id: bytes) -> tuple[bytes, ...]:
        """Certificates for the store."""
        return (self._ring.chain(key_id) if self._ring is not None else None) or ()

    def wall_ms(self) -> int:
        """The wall clock."""
        return _wall_ms()

    # --- direct messages ------------------------------------------------------------------------

    async def wait_direct(self, peer: NodeId) -> None:
        """Wait while the direct lane to `peer` has no room; returns at once without a link."""
        while not self.closed:
            link = self._endpoint.link(peer)
            if link is None or link.room(Lane.DIRECT) > 0:
                return
            await self._wait(self._direct_waiters.setdefault(peer, deque()), None)

    def send_direct(self, peer: NodeId, message: Direct) -> bool:
        """Queue a direct message; False without a link to `peer`."""
        link = self._endpoint.link(peer)
        if link is None:
            return False
        link.send(message)
        self._schedule_turn()
        return True

    def dial_member(self, peer: NodeId) -> bool:
        """Dial a member that the overlay does not link us with; False when it is unknown."""
        record = self.core.yours(peer)
        if record is None:
            return False

        def dial(found: list[tuple[str, int]]) -> None:
            for numeric in found:
                self._endpoint.dial(numeric, peer, self._loop.time())

        self._with_addresses(record.addresses, dial)
        self._schedule_turn()
        return True

    def net_counters(self) -> dict[str, int]:
        """What the endpoint has counted since the start, by name."""
        return attrs.asdict(self._endpoint.counters)

    def security_counters(self) -> dict[str, int]:
        """What was verified and refused since the start, by name."""
        counters = attrs.asdict(self._gate.counters)
        if self._ring is not None:
            counters |= attrs.asdict(self._ring.counters)
        return counters

    def store_counters(self) -> dict[str, int]:
        """What the store and the ledger have counted, by name; nothing without a store."""
        if self._ledger is None:
            return {}
        return {**self._ledger.store.stats(), **attrs.asdict(self._ledger.counters)}

    def linked(self, peer: NodeId) -> bool:
        """Whether a greeted link to `peer` is up."""
        return self._endpoint.link(peer) is not None

    def rtt_s(self, peer: NodeId) -> float | None:
        """Smoothed round trip of the link to `peer`, in seconds."""
        link = self._endpoint.link(peer)
        return link.path().rtt_s if link is not None else None

    def crossing_s(self, peer: NodeId) -> float | None:
        """What a frame takes to `peer` in the mean, in seconds, lost packets included."""
        link = self._endpoint.link(peer)
        if link is None:
            return None
        path, context = link.path(), link.context
        loss = context.loss.share if isinstance(context, _Peer) else 0.0
        return crossing_s(path.rtt_s, path.pto_s, loss)

    def link_address(self, peer: NodeId) -> str:
        """Where the link to `peer` goes, as host:port; empty without one."""
        link = self._endpoint.link(peer)
        return _join_address(*link.address[:2]) if link is not None else ""

    # --- a turn ---------------------------------------------------------------------------------

    def _schedule_turn(self) -> None:
        if self._scheduled is None and not self.closed:
            self._scheduled = self._loop.call_soon(self._turn)

    def _on_datagrams(self, datagrams: list[tuple[bytes, tuple[str, int]]]) -> None:
        if self.closed or not self.started:
            return
        now = self._loop.time()
        receive = self._endpoint.receive
        for data, address in datagrams:
            receive(data, address, now)
        self._has_repaired = False
        self._turn()
        if self._has_repaired:
            # With all that the packets cost, and other processes that had the processor meanwhile.
            self.core.repaired(self._loop.time() - now)

    def _on_timer(self) -> None:
        self._note_lateness(self._loop.time())
        self._timer = None
        self._timer_at = float("inf")
        self._turn()

    def _note_lateness(self, now: float) -> None:
        """Every turn looks: after a stall packets wait too, and their turn comes first.

        This is how garbage collection is noticed, and another thread that keeps the interpreter:
        a pause in which no timer of ours fell due has harmed no verdict of ours, and one in which
        a timer did shows as lateness. `gc.callbacks` would tell nothing more, at a price.
        """
        if self._closing:
            return
        late = now - self._timer_at
        if late > LATE_S:
            self.core.late(late, now)
        jump = self._clocks.look()
        if jump is not None:
            self._on_jump(jump, now)

    def _on_jump(self, jump: Jump, now: float) -> None:
        """Time has passed for our peers, or may have, that our timers know nothing of."""
        slept_s = max(jump.slept_s, abs(jump.stepped_s))
        logger.warning(
            "clocks jumped: asleep for %.1f s, wall clock stepped by %.1f s",
            jump.slept_s,
            jump.stepped_s,
            extra={"event": "clock.jumped", "slept_s": jump.slept_s, "stepped_s": jump.stepped_s},
        )
        self.core.slept(slept_s, now)
        if jump.slept_s >= self._idle_s:
            # The other ends have given these links up, and our own idle timers stood still.
            for link in self._endpoint.links():
                self._endpoint.replace(link.peer, now)

    def _turn(self) -> None:
        if self._scheduled is not None:
            # Whoever asked for a turn has it now.
            self._scheduled.cancel()
            self._scheduled = None
        if self.closed or not self.started:
            return
        now = self._loop.time()
        self.counters.turns += 1
        for step in (self._decide, self._transmit):
            try:
                step(now)
            except Exception:
                # Nothing that a peer sends may end the node; what got here is a bug of ours.
                self._note_error("a turn of the driver failed; going on")
                self._resume_at = now + PAUSE_S
        self._arm()

    def _note_error(self, text: str) -> None:
        self.counters.errors += 1
        logger.exception(text, extra={"event": "driver.error"})

    def _decide(self, now: float) -> None:
        self._note_lateness(now)
        endpoint = self._endpoint
        deadline = endpoint.next_deadline()
        if deadline is not None and deadline <= now:
            endpoint.advance(now)
        self._take_events(now)
        if self._closing:
            return
        if self._dials:
            self._settle_dials(now)
        deadline = self._gate.next_deadline()
        if deadline is not None and deadline <= now:
            self._gate.advance(now)
        if now >= self._swept_at + SWEEP_S:
            self._swept_at = now
            self._accounts.expire(now)
            if self._ring is not None:
                self._ring.expire(now, {row.record.key_id for row in self.core.table})
        core = self.core
        deadline = core.next_deadline()
        if deadline is not None and deadline <= now:
            self._perform(core.advance(now), now)
        if self._outbox and self._outbox_due <= now:
            self._flush(now)
        if self._blocked:
            self._fire_blocked(now)
        if self._large is not None and self._may_send_piece(now):
            self._send_piece(self._large, now)
        if self._ledger is not None:
            self._tend_store(self._ledger, now)

    def _transmit(self, now: float) -> None:
        datagrams = self._endpoint.transmit(now)
        if datagrams:
            self._socket.send(datagrams)
        if self._endpoint.has_events:
            # A link that ended while it was flushed, for instance.
            self._schedule_turn()
        if self._egress_waiters and self.egress_open:
            self._wake(self._egress_waiters)
        if self._idle_waiters and self._is_idle():
            self._wake(self._idle_waiters)

    def _arm(self) -> None:
        now = self._loop.time()
        if now >= self._beat:
            self._beat = now + HEARTBEAT_S
        deadline = self._beat
        for when in (
            self._endpoint.next_deadline(),
            self.core.next_deadline(),
            self._gate.next_deadline(),
        ):
            if when is not None and when < deadline:
                deadline = when
        if self._outbox and self._outbox_due < deadline:
            deadline = self._outbox_due
        if now < self._forming_until < deadline:
            deadline = self._forming_until
        if self._large is not None:
            piece_at = self._pace.next_deadline(now)
            if piece_at is not None and piece_at < deadline:
                deadline = piece_at
        for state in self._blocked.values():
            deadline = min(deadline, state.judged_at + BLOCKED_S)
            break
        deadline = max(deadline, self._resume_at)
        if self._timer is not None:
            # One that fires a little early costs less than cancelling it every turn.
            if now < self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = max(deadline, now)
        self._timer = self._loop.call_at(self._timer_at, self._on_timer)

    @staticmethod
    def _wake(waiters: "deque[asyncio.Future[None]]") -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        waiters.clear()

    # --- events of the endpoint -----------------------------------------------------------------

    def _take_events(self, now: float) -> None:
        for event in self._endpoint.poll():
            if self._closing:
                # The application has gone: nobody is left to be told.
                continue
            try:
                self._on_event(event, now)
            except Exception:
                self._note_error("an event could not be handled; going on")

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case Received(link, peer, message) | DatagramReceived(link, peer, message):
                quota = self._accounts.quota(peer)
                step = quota.charge(message, now) if quota is not None else Step.LOOK
                if step is not Step.LOOK:
                    self._on_above_quota(link, peer, step, now)
                elif isinstance(message, Direct):
                    self._sink.direct(peer, message)
                else:
                    self._admit(link, peer, message, now)
                self._heard(link, peer, now)
            case Fresh(link, peer):
                self._heard(link, peer, now)
            case Writable(_, peer, lane):
                if lane is Lane.GOSSIP or lane is Lane.BULK:
                    self._on_writable((peer, lane), now)
                elif lane is Lane.DIRECT:
                    self._wake(self._direct_waiters.pop(peer, deque()))
            case LinkUp():
                self._on_link_up(event, now)
            case LinkReplaced(link, peer, _):
                link.context = _Peer()
                self._apply_holds(link)
            case LinkDown(_, peer, code, reason, by_peer):
                logger.info(
                    "link down: %s",
                    peer,
                    extra={"event": "link.down", "peer": peer, "code": code, "reason": reason},
                )
                for lane in (Lane.GOSSIP, Lane.BULK):
                    self._congested.pop((peer, lane), None)
                    self._held.discard((peer, lane))
                if code == CLOSE_PROTOCOL_ERROR and not by_peer:
                    # Honest peers send no such frames, however slow they are.
                    self._accounts.strike(peer, now)
                self._accounts.link_down(peer, now)
                self._gate.link_down(peer)
                if self._ledger is not None:
                    self._ledger.link_down(peer)
                for lane in (Lane.GOSSIP, Lane.BULK):
                    self._unblock((peer, lane))
                self._wake(self._direct_waiters.pop(peer, deque()))
                self._perform(self.core.link_down(peer, now), now)
            case DialFailed():
                self._on_dial_failed(event, now)
            case SecurityEvent(kind, fields):
                if kind == "clock.jump":
                    self.judge_again()
                self._sink.security_event(kind, fields)

    def _admit(self, link: NetLink, peer: NodeId, message: Message, now: float) -> None:
        """Let through what is proved; a bundle is counted as a copy whatever becomes of it."""
        if isinstance(message, Gossip | Chunk | Repair):
            bundle = message.bundle
            if type(message) is Gossip:
                self.counters.copies_gossip += bundle.count
            elif type(message) is Chunk:
                self.counters.copies_bulk += 1
            else:
                self.counters.copies_repair += bundle.count
            if self.trace_copy is not None:
                self.trace_copy(bundle)
        if self._gate.lets_pass(message):
            self._perform(self.core.receive(peer, message, now), now)
            return
        admitted = self._gate.admit(peer, message, now)
        if admitted.checked:
            quota = self._accounts.quota(peer)
            if quota is not None:
                quota.note_signatures(admitted.checked, now)
        for reply in admitted.replies:
            link.send(reply)
        for refusal in admitted.refusals:
            self._note_refusal(peer, refusal)
            if refusal.verdict.is_strike:
                reason = f"{refusal.what}: {refusal.verdict.value}"
                self._perform([Strike(peer, reason)], now)
        if isinstance(message, Repair) and not admitted.messages:
            self.core.came(peer, message.bundle, now)
        for each in admitted.messages:
            if isinstance(each, Gossip | Chunk | Repair):
                self._on_bundle(peer, each, now)
            else:
                self._perform(self.core.receive(peer, each, now), now)

    def _on_above_quota(self, link: NetLink, peer: NodeId, step: Step, now: float) -> None:
        """What is above a limit is not looked at; who goes on is demoted, and then cut."""
        self.counters.frames_throttled += 1
        context, quota = link.context, self._accounts.quota(peer)
        assert isinstance(context, _Peer)
        assert quota is not None
        told = {"peer": peer, "what": quota.above, "frames": quota.refused}
        match step:
            case Step.DEMOTE:
                self.counters.peers_demoted += 1
                self._sink.security_event("quota.demoted", told)
                self._perform(self.core.demote(peer, now), now)
            case Step.CUT:
                self.counters.peers_cut += 1
                self._sink.security_event("quota.cut", told)
                self._accounts.cut(peer, now)
                link.close(CLOSE_LIMIT_EXCEEDED, f"too many {quota.above}"[:32], now)
            case _:
                if now - context.throttled_told_at >= THROTTLED_TOLD_EVERY_S:
                    context.throttled_told_at = now
                    self._sink.security_event("quota.throttled", told)

    def _note_refusal(self, peer: NodeId, refusal: Refusal) -> None:
        self._sink.security_event(
            "signature.refused",
            {
                "peer": peer,
                "what": refusal.what,
                "reason": refusal.verdict.value,
                "key_id": refusal.key_id.hex(),
            },
        )

    def _on_equivocation(self, effect: Equivocated, now: float) -> None:
        """An origin said two things under one number, and signed both: the proof is kept."""
        bundle, held = effect.bundle, effect.held
        origin = self.core.table.node_id_of(bundle.origin)
        self._sink.security_event(
            "origin.equivocated" if origin != self._quic.node_id else "identity.conflict",
            {
                "origin": origin or bundle.origin.hex(),
                "epoch": bundle.epoch,
                "first": bundle.first,
                "last": bundle.last,
                "header": bundle.signed_parts[0].hex(),
                "signature": bundle.signature.hex(),
                "held_header": held.signed_parts[0].hex() if held is not None else "",
                "held_signature": held.signature.hex() if held is not None else "",
            },
        )
        if origin is not None:
            self._strike(Strike(origin, "two bundles under one number"), now)

    def _on_bundle(self, peer: NodeId, message: Gossip | Chunk | Repair, now: float) -> None:
        if self.core.node_id_of(message.bundle.origin) is None:
            name = self._gate.name_of(message.bundle)
            if name is not None:
                self.core.origin_named(name)
        self._source = peer
        self._has_repaired = self._has_repaired or isinstance(message, Repair)
        try:
            self._perform(self.core.receive(peer, message, now), now)
        finally:
            self._source = None

    def _heard(self, link: NetLink, peer: NodeId, now: float) -> None:
        context = link.context
        if not isinstance(context, _Peer) or now - context.heard_at < HEARD_EVERY_S:
            return
        context.heard_at = now
        path = link.path()
        loss = context.loss.look(path.sent, path.lost)
        self.core.heard(peer, now, path.rtt_s, 3 * path.pto_s, loss)

    def _on_link_up(self, event: LinkUp, now: float) -> None:
        link, peer, hello = event.link, event.peer, event.hello
        yours = hello.yours
        seed = self._dials.pop(link, None)
        if yours is not None and not self._was_up and self._is_past(yours):
            # Our clock went back, or our state is lost: start above our own past (section 5).
            self._restart_at(yours.epoch + 1, link, now)
            return
        self._was_up = True
        link.context = _Peer()
        self._apply_holds(link)
        self._accounts.link_up(peer)
        logger.info(
            "link up: %s", peer, extra={"event": "link.up", "peer": peer, "address": link.address}
        )
        self._gate.link_up(peer, now)
        self._perform(self.core.link_up(peer, hello, now, seed), now)
        if seed is not None:
            self._forget_dials(seed)
        self._sink.link_up()

    def _is_past(self, yours: Record) -> bool:
        """Whether a peer's newest record of us is of an earlier life that looks later than ours.

        Of our own epoch it is ourselves: the peer greeted us before, on a link that we never saw
        up. Only with another address it is a start within the same millisecond.
        """
        if yours.epoch == self.epoch:
            return yours.addresses != (self.address,)
        return yours.epoch > self.epoch

    def _settle_dials(self, now: float) -> None:
        """A greeted dial has answered even when another link to that peer is the one that stays."""
        for link, seed in tuple(self._dials.items()):
            if link.greeted and link in self._dials:
                self._forget_dials(seed)
                self.core.seed_answered(seed, now)
                self._sink.link_up()

    def _forget_dials(self, seed: str) -> None:
        """One address of a name has answered; what becomes of the others does not matter."""
        for link in [each for each, name in self._dials.items() if name == seed]:
            del self._dials[link]

    def _restart_at(self, epoch: int, link: NetLink, now: float) -> None:
        if self._next_seq > 1 or self._outbox:
            # Messages were already numbered under this epoch: only the newer start may go on.
            self._sink.superseded(epoch - 1)
            return
        self.epoch = epoch
        self._sink.epoch_raised(epoch)
        self.core = self._make_core()
        if self._ledger is not None:
            self._ledger.recover(self._recovered)
        link.close(CLOSE_GOING_AWAY, "newer epoch", now)
        self._perform(self.core.start(now), now)
        self._perform(self.core.seeds(self._seed_addresses, now), now)
        self._perform(self.core.remember(self._remembered, now), now)

    def _on_dial_failed(self, event: DialFailed, now: float) -> None:
        address, peer, error = event.address, event.peer, event.error
        logger.info(
            "dial failed: %s: %s",
            _join_address(*address[:2]),
            error,
            extra={"event": "dial.failed", "peer": peer, "address": address},
        )
        dial = next((each for each in self._dials if each.ended and each.address == address), None)
        if dial is not None:
            seed = self._dials.pop(dial)
            self.last_seed_error = error
            if seed not in self._dials.values():
                floor_s = REFUSED_FLOOR_S if event.refused else 0.0
                self._perform(self.core.seed_failed(seed, now, floor_s), now)
        if peer is not None:
            self._perform(self.core.unreachable(peer, now), now)

    # --- effects of the core --------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect], now: float) -> None:
        for effect in effects:
            try:
                self._perform_one(effect, now)
            except Exception:
                # The effects behind it are other peers' business.
                self._note_error("an effect could not be performed; going on")

    def _perform_one(self, effect: Effect, now: float) -> None:
        kind = type(effect)
        if kind is Push:
            self._push(effect, now)  # type: ignore[arg-type]
        elif kind is Deliver:
            self._deliver(effect)  # type: ignore[arg-type]
        elif kind is Send:
            self._send(effect)  # type: ignore[arg-type]
        elif kind is SendDatagram:
            link = self._endpoint.link(effect.peer)  # type: ignore[union-attr]
            if link is not None:
                link.send_datagram(effect.message, now + self._config.probe_timeout)  # type: ignore[union-attr,arg-type]
        elif kind is Link:
            self._want(effect, now)  # type: ignore[arg-type]
        elif kind is Unlink:
            self._endpoint.unwant(effect.peer, now)  # type: ignore[union-attr]
        elif kind is Relink:
            self._endpoint.replace(effect.peer, now)  # type: ignore[union-attr]
        elif kind is TurnAway:
            link = self._endpoint.link(effect.peer)  # type: ignore[union-attr]
            if link is not None:
                link.close(CLOSE_OVERLOADED, "too many links", now)
        elif kind is DialSeed:
            self._dial_seed(effect.address)  # type: ignore[union-attr]
        elif kind is Strike:
            self._strike(effect, now)  # type: ignore[arg-type]
        elif kind is Equivocated:
            self._on_equivocation(effect, now)  # type: ignore[arg-type]
        elif kind is Covered:
            self._on_covered(effect)  # type: ignore[arg-type]
        elif kind in LEDGER_EFFECTS:
            if self._ledger is not None:
                self._ledger.note(effect)  # type: ignore[arg-type]
        elif kind is Superseded:
            self._sink.superseded(effect.epoch)  # type: ignore[union-attr]
        else:
            self._sink.fact(effect)

    def _deliver(self, effect: Deliver) -> None:
        bundle = effect.bundle
        self.counters.bundles_delivered += 1
        origin = self.core.node_id_of(bundle.origin)
        assert origin is not None  # the core parks bundles of unknown origins
        if self._ledger is not None:
            self._ledger.delivered(effect, origin)
        else:
            self.hand_over(Kept(0, bundle, effect.hop, origin, link=effect.peer))

    def _send(self, effect: Send) -> None:
        link = self._endpoint.link(effect.peer)
        if link is None:
            return
        message = effect.message
        if self._ledger is not None and self._ledger.holds_back(effect.peer, message):
            return
        if isinstance(message, Repair) and link.backlog(Lane.SYNC) > REPAIR_BACKLOG_BYTES:
            bundle = message.bundle
            self.counters.grafts_busy += 1
            link.send(
                GraftRefused(
                    bundle.origin,
                    bundle.epoch,
                    ((bundle.first, bundle.last),),
                    RefusedReason.BUSY,
                )
            )
            return
        link.send(message)

    def _push(self, effect: Push, now: float) -> None:
        lane = LANE_OF[type(effect.message)]
        for peer in effect.peers:
            link = self._endpoint.link(peer)
            if link is None:
                continue
            link.send(effect.message)
            self.counters.bundles_sent += 1
            if link.room(lane) > 0:
                continue
            to = (peer, lane)
            if to not in self._blocked:
                self._blocked[to] = _Blocked(now, now, link.progress(lane))
                self.counters.blocked += 1
            if self._source is not None:
                self._blocked_by.setdefault(to, {})[self._source] = None
                self._hold((self._source, lane), True)

    def _on_writable(self, to: _LaneTo, now: float) -> None:
        self._unblock(to)
        if self._congested.pop(to, None) is not None:
            self._perform(self.core.drained(to[0], now, to[1]), now)

    def _fire_blocked(self, now: float) -> None:
        while self._blocked:
            to, state = next(iter(self._blocked.items()))
            if state.judged_at + BLOCKED_S > now:
                return
            peer, lane = to
            link = self._endpoint.link(peer)
            progress = link.progress(lane) if link is not None else 0
            if progress > state.progress and now < state.since + BLOCKED_S_MAX:
                # Slow, but it moves: not the ring of trees that BLOCKED_S is for.
                del self._blocked[to]
                self._blocked[to] = _Blocked(state.since, now, progress)
                continue
            self._unblock(to)
            self._congested[to] = now
            self.counters.congested += 1
            self._perform(self.core.congested(peer, now, lane), now)

    def _unblock(self, to: _LaneTo) -> None:
        self._blocked.pop(to, None)
        lane = to[1]
        for source in self._blocked_by.pop(to, ()):
            if not any(
                source in sources for (_, on), sources in self._blocked_by.items() if on is lane
            ):
                self._hold((source, lane), False)

    def _hold(self, source: _LaneTo, held: bool) -> None:
        """While what a parent sends us waits for a child's credit, the parent waits, too."""
        if held == (source in self._held):
            return
        (self._held.add if held else self._held.discard)(source)
        link = self._endpoint.link(source[0])
        if link is not None:
            self._apply_holds(link)

    def _want(self, effect: Link, now: float) -> None:
        peer, addresses = effect.peer, effect.addresses
        numeric = [each for each in map(numeric_address, addresses) if each is not None]
        if numeric:
            self._endpoint.want(peer, numeric, now)
        if len(numeric) == len(addresses):
            return

        def want(found: list[tuple[str, int]]) -> None:
            # DNS took its time: the overlay may have thought better of it.
            if self.core.wants(peer):
                self._endpoint.want(peer, numeric + found, self._loop.time())

        self._with_addresses([each for each in addresses if numeric_address(each) is None], want)

    def _dial_seed(self, address: str) -> None:
        def dial(found: list[tuple[str, int]]) -> None:
            others = [each for each in found if each not in self._own_addresses()]
            if not others:
                # A name in everybody's list of seeds that is our own here.
                self.own_seeds.add(address)
                self._sink.link_up()
            self.own_seeds.difference_update([address] if others else [])
            # Of a name, those whom we have not met; a number is meant as it is.
            is_name = numeric_address(address) is None
            strangers = [
                each
                for each in others
                if not (is_name and self.core.is_served(_join_address(*each[:2])))
            ]
            if others and not strangers:
                # A name of members whom we know: it has answered.
                self.core.seed_answered(address, self._loop.time())
            for numeric in strangers:
                self._dials[self._endpoint.dial(numeric, None, self._loop.time())] = address

        def failed(error: PlumtreeError) -> None:
            self.last_seed_error = error
            later = self._loop.time()
            self._perform(self.core.seed_failed(address, later), later)

        self._with_addresses([address], dial, failed)

    def _own_addresses(self) -> tuple[tuple[str, int] | None, ...]:
        return (self._socket.address, numeric_address(self.address))

    def _with_addresses(
        self,
        addresses: Sequence[str],
        use: Callable[[list[tuple[str, int]]], None],
        failed: Callable[[PlumtreeError], None] | None = None,
    ) -> None:
        """Call `use` with the numeric forms: at once, or when DNS has answered for all names."""
        found = [numeric_address(each) for each in addresses]
        numeric = [each for each in found if each is not None]
        if len(numeric) == len(found):
            use(numeric)
            return
        task = self._loop.create_task(self._resolve(addresses, use, failed))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(
        self,
        addresses: Sequence[str],
        use: Callable[[list[tuple[str, int]]], None],
        failed: Callable[[PlumtreeError], None] | None,
    ) -> None:
        # What our socket cannot reach is not asked for: localhost may be ::1 first.
        is_ipv6 = ":" in self._socket.address[0]
        family = socket.AF_UNSPEC if is_ipv6 else socket.AF_INET
        found: dict[tuple[str, int], None] = {}
        reason: Exception = OSError("no address")
        for address in addresses:
            numeric = numeric_address(address)
            if numeric is not None:
                found[numeric] = None
                continue
            host, _, port = address.rpartition(":")
            try:
                async with asyncio.timeout(5.0):
                    answers = await self._loop.getaddrinfo(
                        host, int(port), family=family, type=socket.SOCK_DGRAM
                    )
            except (OSError, ValueError, OverflowError, TimeoutError) as error:
                reason = error
            else:
                for answer in answers[:ADDRESSES_PER_NAME_MAX]:
                    found[str(answer[4][0]), int(port)] = None
        if self._closing:
            return
        try:
            if found:
                use(list(found))
            elif failed is not None:
                names = ", ".join(addresses)
                why = getattr(reason, "strerror", None) or str(reason) or "no answer in time"
                failed(LinkError(f"{names} does not resolve to an address: {why}"))
        except Exception:
            self._note_error("an address could not be used; going on")
        self._schedule_turn()

    def _strike(self, effect: Strike, now: float) -> None:
        self.counters.strikes += 1
        link = self._endpoint.link(effect.peer)
        if link is None:
            return
        if self._accounts.strike(effect.peer, now):
            self._sink.security_event(
                "limit.hit", {"peer": effect.peer, "what": "strikes", "reason": effect.reason}
            )
            link.close(CLOSE_PROTOCOL_ERROR, "too many strikes", now)


def advertised_address(advertise: str, port: int) -> str:
    """Return "host:port" that others dial; `port` is the bound one, for an `advertise` without.

    Raises:
        ConfigError: `advertise` is neither "host" nor "host:port", or nobody could dial it.
    """
    if advertise.count(":") > 1 and not advertise.startswith("["):
        advertise = f"[{advertise}]"
    if advertise.endswith("]") or ":" not in advertise:
        advertise = f"{advertise}:{port}"
    host, given = parse_address(advertise)
    if host in ("", "0.0.0.0", "::") or "[" in host or " " in host:  # noqa: S104 - refused here
        raise ConfigError(
            f"advertise={advertise!r} is not an address that others can dial: give this host's "
            "own, like 10.0.0.5 or 10.0.0.5:7946"
        )
    return _join_address(host, given or port)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
