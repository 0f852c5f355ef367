"""Node: what an application embeds. Sockets and links are the driver's, decisions are proto's.

::

    async with Node(quic, PlumtreeConfig.lan(), listen="127.0.0.1:7946") as node:
        await node.join(["127.0.0.1:7947"])
        await node.broadcast(b"payload", topic="orders")
"""

import asyncio
import contextlib
import datetime
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar, cast, get_args, overload

import attrs
from cryptography.hazmat.primitives.hashes import SHA256

from plumtree_quic import wire
from plumtree_quic.assembly import Assembly, Outside
from plumtree_quic.catchup import CatchUp, Place
from plumtree_quic.config import PlumtreeConfig, StorageConfig
from plumtree_quic.driver import Driver, Sink, advertised_address
from plumtree_quic.errors import (
    ConfigError,
    IdentityConflict,
    JoinError,
    LinkError,
    LocalProtocolError,
    MessageTooLarge,
    NodeClosed,
    NotAllowed,
    NotCovered,
    PlumtreeError,
    StoreError,
    WireError,
)
from plumtree_quic.ids import MessageId, NodeId, member_key
from plumtree_quic.intervals import Intervals
from plumtree_quic.losses import Loss, LossWatch
from plumtree_quic.messages import Bundle, Direct, DirectKind, MemberState
from plumtree_quic.net.selftest import self_test
from plumtree_quic.net.udp import parse_address
from plumtree_quic.peerfile import PEERS_MAX, KnownPeer, PeerFile
from plumtree_quic.proto.coverage import KEY_BYTES
from plumtree_quic.proto.effects import (
    Effect,
    GraftFailed,
    GraftSent,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberSuspected,
    MemberUpdated,
    PeerDemoted,
    PeerPromoted,
    PruneSent,
)
from plumtree_quic.proto.health import SCORE_MAX
from plumtree_quic.security.audit import Audit
from plumtree_quic.security.credentials import QuicConfig
from plumtree_quic.security.policy import POLICY_BYTES_MAX, Policy
from plumtree_quic.store.contract import Kept, MessageStore, Recovered
from plumtree_quic.store.memory import MemoryStore
from plumtree_quic.subscription import (
    SUBSCRIPTION_BYTES_MAX,
    SUBSCRIPTION_MESSAGES_MAX,
    Gap,
    Message,
    OrderedSubscription,
    Subscription,
    WhenFull,
)

__all__ = [
    "ClusterEvent",
    "Coverage",
    "Delegate",
    "Gap",
    "Health",
    "HealthStatus",
    "Loss",
    "Member",
    "Message",
    "Node",
    "OrderedSubscription",
    "Peer",
    "Receipt",
    "Subscription",
]

logger = logging.getLogger("plumtree_quic")

_T = TypeVar("_T")

EVENTS_MAX = 1_024
# How long one question who has a message may take, and until it is asked again.
COVERAGE_ROUND_S = 2.0
COVERAGE_PAUSE_S = 0.1
# How often held-back messages are looked at: far below what is waited for, far above a loop's turn.
SETTLE_EVERY_S = 0.05
RATE_WINDOW_S = 60.0
# Failures of others are known up to seven times as late. A guess: one refutation, or a callback
# that takes half a second, is no reason to call an operator.
LOCAL_HEALTH_DEGRADED = 6
# How often files, losses and the disk are looked after.
LOOK_EVERY_S = 1.0
# When one seed has answered, the others have so long to answer, too.
OTHER_SEEDS_S = 0.05
# How often the known peers are written down at most (a guess), and how long the end waits for it.
PEERS_EVERY_S = 30.0
PEERS_LAST_WRITE_S = 1.0
# Our own certificate's end is told this long before (reliability bar, C.9): a week, a day, an hour.
EXPIRING_S = (7 * 86_400, 86_400, 3_600)


@attrs.frozen
class Coverage:
    """Who has a message, of those whom we hold for alive. count: how many. missing: the others.

    Hearsay: whoever passes it on can count whom it likes. Who has refused the message counts.
    """

    count: int
    missing: tuple[NodeId, ...]


@attrs.frozen
class Receipt:
    """A broadcast was accepted: numbered, and on its way to our eager peers."""

    id: MessageId
    # Its last piece, for a large message has several numbers.
    _last: int = attrs.field(eq=False, repr=False)
    _covered: Callable[[MessageId, int, int | float, float], Awaitable[Coverage]] = attrs.field(
        eq=False, repr=False
    )

    async def covered(
        self,
        enough: int | float = 1.0,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> Coverage:
        """Wait until enough other members have this message, and say who has not.

        enough: so many of them (an int), or this part of those who are alive (a float up to 1.0).
        With stores on disks, who has it has it there; from when one other has it, it survives our
        own end. The count is made along the tree, so it costs one answer from each of our
        neighbours. It is advice, see `Coverage`.

        Raises:
            NotCovered: fewer had it after `timeout` seconds; its `missing` are those who had not.
            ConfigError: `enough` is neither a count from 1 nor a part above 0.
            NodeClosed: the node was shut down.
        """
        return await self._covered(self.id, self._last, enough, timeout)


@attrs.frozen
class Member:
    """A node as the membership table knows it."""

    node_id: NodeId
    state: MemberState
    addresses: tuple[str, ...]
    epoch: int
    incarnation: int
    zone: str
    meta: bytes


@attrs.frozen
class Peer:
    """A live link. eager: we push at least one origin to it. rtt_s: smoothed round trip.

    score: larger is better, 1 / (1 + ms that a frame takes there and back in the mean); the round
    trip alone, where no packet is lost. It decides between equal candidates.
    zone: the peer's; "" when it has none, or we have no record of it yet.
    """

    node_id: NodeId
    address: str
    eager: bool
    rtt_s: float
    score: float
    zone: str


@attrs.frozen
class ClusterEvent:
    """Something that happened, for `Node.events`. kind is the name of a Delegate method."""

    kind: str
    node_id: NodeId | None
    at: float
    detail: Mapping[str, object]


class HealthStatus(Enum):
    """HEALTHY; DEGRADED: works, with less margin than configured; UNHEALTHY: does not."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@attrs.frozen
class Health:
    """What `Node.health` found, the worst first."""

    status: HealthStatus
    reasons: tuple[str, ...]


class Delegate:
    """Override what you need. Called on the event loop, in order of arrival; must not block.

    Slow work belongs behind `Node.subscribe`. An exception in a method is logged and counted, and
    never stops the node.
    """

    def on_deliver(self, message: Message) -> None:
        """A message arrived, once."""

    def on_member_joined(self, node_id: NodeId) -> None:
        """A member that was unknown, failed or gone is alive."""

    def on_member_left(self, node_id: NodeId) -> None:
        """A member said goodbye."""

    def on_member_failed(self, node_id: NodeId) -> None:
        """A member's suspicion ran out."""

    def on_member_updated(self, node_id: NodeId) -> None:
        """A member has a newer record."""

    def on_member_suspected(self, node_id: NodeId) -> None:
        """A member is accused of silence and may still refute."""

    def on_eager_promotion(self, node_id: NodeId) -> None:
        """We push to this peer from now on."""

    def on_lazy_demotion(self, node_id: NodeId) -> None:
        """We only announce to this peer from now on."""

    def on_graft_sent(self, node_id: NodeId) -> None:
        """Something announced did not come; this peer was asked for it."""

    def on_prune_sent(self, node_id: NodeId) -> None:
        """This peer was told to push an origin here no more."""

    def on_graft_failed(self, origin: NodeId | None) -> None:
        """Nobody served a range of this origin; anti-entropy goes on with it."""

    def on_loss(self, loss: Loss) -> None:
        """Something was not delivered, or was put off; `Loss.reason` names the counter. Told within
        a second, and of one reason every 10 s at most.
        """

    def on_security_event(self, kind: str, fields: Mapping[str, object]) -> None:
        """A refusal, a strike, a conflict. All peer text in `fields` is escaped."""

    def on_direct(self, sender: NodeId, payload: bytes) -> None:
        """A message that `sender` sent to this node alone (`Node.send`)."""

    def on_request(self, sender: NodeId, payload: bytes) -> bytes:
        """A request (`Node.request`); what is returned is the reply.

        Without an override, or after an exception, there is no reply and the other side times out.
        """
        raise NotImplementedError

    def validate(self, message: Message) -> bool:
        """Override to judge messages before they are forwarded; False refuses the whole bundle.

        A large message is forwarded as its pieces come. It is judged when it is whole, before each
        reader that is fed from the store, and once for all others.
        """
        raise NotImplementedError


class Node:
    """One member of the cluster.

    Args:
        quic: identity and trust.
        config: protocol settings; `PlumtreeConfig()` by default.
        listen: "host:port" to bind; port 0 takes a free one.
        advertise: what others dial, "host" or "host:port"; needed when listening on a wildcard.
        delegate: callbacks.
        policy: who may join, relay and publish: a `Policy`, or the path of a TOML file, which is
            looked at once a second. Without one, identities with our own path, but for its last
            segment, may do all of it.
        security_log: a file for security events, one JSON object a line, 0600, at most 16 MiB and
            one older file; they go to the delegate and to `logging` all the same.
        store: keeps what was delivered, for others who were away and for readers that are slow or
            come late: a `SqliteStore`, a `MemoryStore`. The node opens and closes it. Without
            one `config.storage` decides.
        state_dir: keeps the start epoch, so that a restart under a clock that went back is still
            a later start, and the known peers: the next start looks for them by itself, beside
            its seeds. Made when missing, 0700.

    Raises:
        ConfigError: at construction, for settings that cannot work.
    """

    def __init__(
        self,
        quic: QuicConfig,
        config: PlumtreeConfig | None = None,
        *,
        listen: str = ":7946",
        advertise: str | None = None,
        delegate: Delegate | None = None,
        policy: Policy | str | os.PathLike[str] | None = None,
        security_log: str | os.PathLike[str] | None = None,
        store: MessageStore | None = None,
        state_dir: str | Path | None = None,
    ) -> None:
        self._quic = quic
        self.config = config if config is not None else PlumtreeConfig()
        self._listen = parse_address(listen)
        if advertise is None and self._listen[0] in ("", "0.0.0.0", "::"):  # noqa: S104
            raise ConfigError(
                f"listen={listen!r} takes every interface, and others cannot dial that: pass "
                "advertise='<address of this host>' (--advertise, PLUMTREE_ADVERTISE_ADDR), or "
                "listen on one address, like 127.0.0.1:7946"
            )
        if advertise is not None:
            advertised_address(advertise, self._listen[1])
        self._advertise = advertise
        self._delegate = delegate
        self._policy_path: Path | None = None
        self._policy_text = ""
        self._policy: Policy | None = None
        if isinstance(policy, Policy):
            self._policy = policy
        elif policy is not None:
            self._policy_path = Path(policy)
            self._policy_text = _read_policy(self._policy_path)
            self._policy = Policy.from_toml(self._policy_text, str(self._policy_path), quic.node_id)
        try:
            path = Path(security_log) if security_log is not None else None
            self._audit = Audit(path, lambda: time.time_ns() // 1_000_000)
        except OSError as error:
            raise ConfigError(
                f"security_log {str(security_log)!r} cannot be written: {error.strerror}"
            )
        self._answers = _overrides(delegate, "on_request")
        self._hears = _overrides(delegate, "on_deliver")
        self._state_dir = Path(state_dir) if state_dir is not None else None
        self._peer_file: PeerFile | None = None
        if self._state_dir is not None:
            credentials = quic.credentials
            self._peer_file = PeerFile(
                self._state_dir / "peers", credentials.trust_domain, credentials.cluster
            )
        self._kept_peers: list[KnownPeer] = []
        self._keeper: asyncio.Task[None] | None = None
        self._driver: Driver | None = None
        self._store = store
        self._subscriptions: list[Subscription] = []
        self._ordered: list[OrderedSubscription] = []
        # Those of them that read from the store when they are behind.
        self._catching: list[CatchUp] = []
        # Up to where each name was handed messages in this life, and what a former life had got.
        self._handed_to: dict[str, int] = {}
        self._recovered_at = self._handed_at = 1
        self._large = self._new_assembly()
        self._losses = LossWatch()
        # What subscriptions that have ended had counted.
        self._order_gaps = self._order_late = self._dropped = self._overflows = 0
        self._settling: asyncio.TimerHandle | None = None
        self._events: list[deque[ClusterEvent]] = []
        self._event_waiters: list[asyncio.Future[None]] = []
        self._peer_waiters: list[asyncio.Future[None]] = []
        self._state = "new"
        self._generation = 0
        self._watcher: asyncio.Task[None] | None = None
        self._expiry_told: set[int] = set()
        self._stale_told: tuple[str, ...] = ()
        self._revoked_told = False
        self._complaint = ""
        self._conflict: IdentityConflict | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._direct_seq = 0
        self._requests: dict[tuple[NodeId, int], asyncio.Future[bytes]] = {}
        self._delegate_errors = 0
        self._delivered = 0
        self._oversized = 0
        self._rates: dict[str, deque[float]] = {}
        self._joined_seeds = 0

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, delegate: Delegate | None = None
    ) -> "Node":
        """Build a node from PLUMTREE_LISTEN, ADVERTISE_ADDR, CERT, KEY, CA, CRL, CRL_ON_STALE,
        POLICY, SECURITY_LOG, CLUSTER, TRUST_DOMAIN, STATE_DIR, PRESET, every configuration field.

        Raises:
            ConfigError: a variable is missing, unknown or wrong; the message names it.
        """
        env = os.environ if environ is None else environ
        for name in ("PLUMTREE_CERT", "PLUMTREE_KEY", "PLUMTREE_CA"):
            if not env.get(name):
                raise ConfigError(f"{name} is not set: it names the PEM file to use")
        password = env.get("PLUMTREE_KEY_PASSWORD")
        quic = QuicConfig(
            cert_path=env["PLUMTREE_CERT"],
            key_path=env["PLUMTREE_KEY"],
            ca_path=env["PLUMTREE_CA"],
            key_password=password.encode() if password else None,
            crl_path=env.get("PLUMTREE_CRL") or None,
            crl_on_stale=env.get("PLUMTREE_CRL_ON_STALE") or "open",
            trust_domain=env.get("PLUMTREE_TRUST_DOMAIN") or None,
            cluster=env.get("PLUMTREE_CLUSTER") or "default",
        )
        return cls(
            quic,
            PlumtreeConfig.from_env(env),
            listen=env.get("PLUMTREE_LISTEN") or ":7946",
            advertise=env.get("PLUMTREE_ADVERTISE_ADDR") or None,
            delegate=delegate,
            policy=env.get("PLUMTREE_POLICY") or None,
            security_log=env.get("PLUMTREE_SECURITY_LOG") or None,
            state_dir=env.get("PLUMTREE_STATE_DIR") or None,
        )

    # --- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._conflict is None:
                await self.leave()
        finally:
            await self.shutdown()

    async def start(self) -> None:
        """Bind, and begin to answer. Returns when others can dial us.

        Raises:
            LinkError: the address is taken or not ours.
            LocalProtocolError: the node was started before.
        """
        if self._state != "new":
            raise LocalProtocolError(f"this node is {self._state}; make a new Node to start again")
        self_test()
        recovered = await self._open_store()
        if self._store is not None:
            streams = frozenset(each.key for each in recovered.streams)
            self._large.recover(self._store, streams, self._recovered_at)
        try:
            driver = self._make_driver(recovered)
            driver.start()
        except BaseException:
            if self._store is not None:
                await asyncio.to_thread(self._store.close)
            raise
        self._driver = driver
        self._state = "running"
        if self._peer_file is not None:
            self._kept_peers = self._peer_file.read()
            driver.remember([(peer.node_id, peer.addresses) for peer in self._kept_peers])
            self._keeper = asyncio.get_running_loop().create_task(self._keep_peers(self._peer_file))
        self._generation = self._quic.credentials.generation
        self._watcher = asyncio.get_running_loop().create_task(self._look_after())
        for problem in self._quic.credentials.revocation.problems:
            self._security_event("crl.unusable", {"reason": problem})
        self._tell_stale_lists()
        self._tell_own_revocation()
        logger.info("node %s listens on %s", self.id, self.address, extra={"event": "node.started"})

    def _make_driver(self, recovered: Recovered) -> Driver:
        return Driver(
            self._quic,
            self.config,
            listen=self._listen,
            advertise=self._advertise,
            sink=Sink(
                deliver=self._deliver,
                fact=self._fact,
                direct=self._direct,
                link_up=self._link_up,
                security_event=self._security_event,
                epoch_raised=self._epoch_raised,
                superseded=self._superseded,
            ),
            epoch=self._new_epoch(recovered),
            judge=self._validate if _overrides(self._delegate, "validate") else None,
            policy=self._policy,
            store=self._store,
            recovered=recovered,
        )

    async def _keep_peers(self, file: PeerFile) -> None:
        """Write down who lives where, when it has changed, now and then and at the end."""
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), PEERS_EVERY_S)
            peers = self._known_peers()
            # A file of nobody is worth less than the one of before.
            if not peers or peers == self._kept_peers:
                continue
            try:
                # A disk may take its time: not on the loop.
                await asyncio.to_thread(file.write, peers)
                self._kept_peers = peers
            except OSError as error:
                logger.warning(
                    "the known peers could not be kept in state_dir: %s",
                    error,
                    extra={"event": "node.peers_not_kept"},
                )

    def _known_peers(self) -> list[KnownPeer]:
        """Who lives, and then who is dead and may come back, as many as the file takes."""
        assert self._driver is not None
        members = self._driver.core.table.members()
        return [
            KnownPeer(record.node_id, record.addresses)
            for wanted in ((MemberState.ALIVE, MemberState.SUSPECT), (MemberState.DEAD,))
            for record, state in members
            if state in wanted and record.node_id != self.id and record.addresses
        ][:PEERS_MAX]

    async def _look_after(self) -> None:
        """Once a second, as long as the node runs, and whatever goes wrong: readers that a disk has
        held up, losses to be told, files that may have changed.
        """
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for look in (
                self._pull_readers,
                self._settle_large,
                self._tell_losses,
                self._look_at_files,
            ):
                try:
                    look()
                except Exception:
                    logger.exception(
                        "what is looked after once a second failed; going on",
                        extra={"event": "node.error"},
                    )

    def _pull_readers(self) -> None:
        """A disk that could not be read may be readable now."""
        for catching in tuple(self._catching):
            catching.pull()

    def _tell_losses(self) -> None:
        """Whatever was lost in the last second, or put off: an event, a call, a line in the log."""
        for loss in self._losses.look(self.stats(), time.monotonic()):
            logger.log(
                logging.WARNING if loss.is_final else logging.INFO,
                "%s (%d)",
                loss.what,
                loss.count,
                extra={"event": "loss", "reason": loss.reason, "count": loss.count},
            )
            if self._delegate is not None:
                self._call("on_loss", loss)
            self._publish(ClusterEvent("on_loss", None, time.monotonic(), attrs.asdict(loss)))

    def _look_at_files(self) -> None:
        """Take what is good there; what is still wrong at the next look is told, once."""
        self._tell_expiry()
        self._tell_stale_lists()
        self._take_policy()
        if not self._quic.changed() and self._quic.credentials.generation == self._generation:
            complaint, self._complaint = self._complaint, ""
            if complaint:
                self._security_event("credentials.refused", {"reason": complaint})
            return
        try:
            self._take_credentials()
            self._complaint = ""
        except PlumtreeError as error:
            # Half of a pair was written, perhaps: the old one counts until both are there.
            self._complaint = str(error)

    def reload_credentials(self) -> bool:
        """Take what certificate, key and CA files hold now; True when it is something new.

        A running node does so by itself once a second; this is for whoever cannot wait. New
        handshakes and signatures use the new credentials at once; links are replaced, a few at a
        time, without losing a message.

        Raises:
            CredentialsError: what the files hold is no good; the old credentials stay.
            ConfigError: the credentials came from `QuicConfig.from_pem`.
            NodeClosed: the node is not running.
        """
        self._running()
        return self._take_credentials()

    def _take_credentials(self) -> bool:
        self._quic.reload()
        credentials = self._quic.credentials
        # Another node of this process may have read them first.
        if credentials.generation == self._generation:
            return False
        self._generation = credentials.generation
        self._expiry_told.clear()
        self._security_event(
            "credentials.rotated",
            {
                "node_id": self.id,
                "leaf_sha256": credentials.leaf.fingerprint(SHA256()).hex(),
                "not_after": credentials.leaf.not_valid_after_utc.isoformat(),
                "anchors": len(credentials.anchors),
                "revoked": sum(len(each.serials) for each in credentials.revocation.lists),
            },
        )
        for problem in credentials.revocation.problems:
            self._security_event("crl.unusable", {"reason": problem})
        self._running().use_credentials()
        self._tell_stale_lists()
        self._tell_own_revocation()
        return True

    def _take_policy(self) -> None:
        """Take what the policy file holds now; what is wrong there changes nothing, and is told."""
        if self._policy_path is None:
            return
        problem = ""
        try:
            text = _read_policy(self._policy_path)
        except ConfigError as error:
            text = problem = str(error)
        if text == self._policy_text:
            return
        self._policy_text = text
        try:
            if problem:
                raise ConfigError(problem)
            policy = Policy.from_toml(text, str(self._policy_path), self.id)
        except ConfigError as error:
            self._security_event("policy.refused", {"reason": str(error)})
            return
        self._security_event("policy.changed", {"file": str(self._policy_path)})
        self._running().use_policy(policy)
        self._tell_own_revocation()

    def _tell_stale_lists(self) -> None:
        """Lists become stale by themselves; with crl_on_stale="closed" their CAs' nodes go then."""
        stale = self._quic.credentials.revocation.stale(datetime.datetime.now(datetime.UTC))
        if stale == self._stale_told:
            return
        for sentence in stale:
            if sentence not in self._stale_told:
                self._security_event("crl.unusable", {"reason": sentence})
        self._stale_told = stale
        self._running().judge_again()

    def _tell_own_revocation(self) -> None:
        """Others cut us when our own certificate is revoked or denied: said here, once."""
        is_revoked = self._running().is_revoked()
        if is_revoked and not self._revoked_told:
            self._security_event("credentials.revoked", {"node_id": self.id})
        self._revoked_told = is_revoked

    def _tell_expiry(self) -> None:
        not_after = self._quic.credentials.leaf.not_valid_after_utc
        left_s = (not_after - datetime.datetime.now(datetime.UTC)).total_seconds()
        due = [limit for limit in EXPIRING_S if left_s <= limit]
        if due and due[-1] not in self._expiry_told:
            self._expiry_told.update(due)
            self._security_event(
                "cert.expiring",
                {"node_id": self.id, "not_after": not_after.isoformat(), "left_s": int(left_s)},
            )

    async def _open_store(self) -> Recovered:
        if self._store is None and self.config.storage.enabled:
            self._store = _make_store(self.config.storage, self._state_dir)
        if self._store is None:
            return Recovered()
        # A disk may take its time, and what is there is looked through.
        now_ms = time.time_ns() // 1_000_000
        recovered = await asyncio.to_thread(self._store.open, wire.parse_bundle, now_ms)
        self._recovered_at = self._handed_at = self._store.head
        return recovered

    def _new_epoch(self, recovered: Recovered) -> int:
        own_key = member_key(self.id)
        former = [
            epoch for (key, epoch) in (each.key for each in recovered.streams) if key == own_key
        ]
        epoch = max([time.time_ns() // 1_000_000, *(each + 1 for each in former)])
        if self._state_dir is None:
            return epoch
        path = self._state_dir / "epoch"
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                epoch = max(epoch, _read_number(path) + 1)
            _write_number(path, epoch)
        except OSError as error:
            raise ConfigError(
                f"state_dir {str(self._state_dir)!r} cannot be used: {error.strerror}; "
                "give a directory that this process may write"
            )
        return epoch

    async def join(self, seeds: Sequence[str], *, timeout: float = 30.0) -> int:  # noqa: ASYNC109
        """Dial all `seeds` ("host:port") at once; return how many have answered.

        Returns as soon as one answered and the others had a moment (50 ms) to. Our own address is
        ignored; with no other seed the result is 0 at once: the first node of a cluster. It may be
        0 as well when a member that `state_dir` remembers was faster than all seeds.

        Raises:
            JoinError: none answered within `timeout` seconds; trying goes on in the background.
            ConfigError: a seed is not "host:port".
        """
        driver = self._running()
        if isinstance(seeds, str):
            raise ConfigError(f"seeds={seeds!r} is one string: give a list, [{seeds!r}]")
        for seed in seeds:
            parse_address(seed)
        others = [seed for seed in dict.fromkeys(seeds) if seed != driver.address]
        if not others:
            return 0
        driver.seeds(others)
        try:
            async with asyncio.timeout(timeout):
                while not driver.core.seeds_reached(others):
                    if driver.own_seeds.issuperset(others) or driver.is_rejoined:
                        break
                    await self._wait(self._peer_waiters)
                    self._running()
        except TimeoutError:
            why = f" (last: {driver.last_seed_error})" if driver.last_seed_error else ""
            raise JoinError(
                f"none of {len(others)} seeds answered within {timeout:g} s: "
                f"{', '.join(others[:5])}{why}. Check that a node listens there, that UDP passes, "
                "and that its certificates come from the same CA; trying goes on"
            )
        await asyncio.sleep(OTHER_SEEDS_S)
        return self._running().core.seeds_reached(others)

    async def wait_for_peers(self, count: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Wait until at least `count` other members are alive.

        Raises:
            TimeoutError: fewer after `timeout` seconds; the message says how many.
        """
        driver = self._running()
        try:
            async with asyncio.timeout(timeout):
                while self.peer_count() < count:
                    await self._wait(self._peer_waiters)
                    driver = self._running()
        except TimeoutError:
            raise TimeoutError(
                f"{self.peer_count()} of {count} peers after {timeout:g} s "
                f"({len(driver.core.peers())} links)"
            )

    async def drain(self) -> None:
        """Refuse new broadcasts and wait until those accepted are with our peers."""
        if not self._is_live():
            return
        self._state = "draining"
        await self._running().idle(self.config.shutdown_timeout / 2)

    def _is_live(self) -> bool:
        return self._state in ("running", "draining") and self._conflict is None

    async def leave(self) -> None:
        """Drain and tell the cluster that we go; others see `left`, not `failed`."""
        if not self._is_live():
            return
        await self.drain()
        if not self._is_live():
            return  # shut down meanwhile
        driver = self._running()
        driver.leave()
        await driver.idle(self.config.shutdown_timeout / 4)

    async def shutdown(self) -> None:
        """Close now, within a second. What had not been sent is logged.

        Subscriptions and `events` end when what they hold is read; whoever else waits gets
        NodeClosed. Calling it again waits for the first call's end.
        """
        if self._state == "new":
            self._state = "closed"
            return
        if self._state == "closed":
            if self._driver is not None:
                await self._closed.wait()
            return
        driver, self._state = self._driver, "closed"
        assert driver is not None
        if self._watcher is not None:
            self._watcher.cancel()
        unsent = driver.unsent()
        if unsent:
            logger.warning("shut down with %d bytes unsent", unsent, extra={"event": "node.unsent"})
        try:
            await driver.close(min(1.0, self.config.shutdown_timeout))
            if self._store is not None:
                await asyncio.to_thread(self._store.close)
                # What has just become safe is handed over before the readers are told of the end.
                await asyncio.sleep(0)
            driver.give_up()
        finally:
            for subscription in tuple(self._subscriptions):
                subscription.close()
            for ordered in tuple(self._ordered):
                ordered.close()
            self._wake(self._peer_waiters)
            self._wake(self._event_waiters)
            for request in self._requests.values():
                if not request.done():
                    request.set_exception(NodeClosed("the node was shut down"))
            self._closed.set()
            if self._keeper is not None:
                # A disk that hangs holds nobody up.
                await asyncio.wait([self._keeper], timeout=PEERS_LAST_WRITE_S)

    # --- messages -------------------------------------------------------------------------------

    async def broadcast(
        self,
        payload: bytes,
        topic: str = "",
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Receipt:
        """Send `payload` (bytes, at most max_message_size) to every member.

        Suspends while our links have no room, once for every full bundle, and with a durable store
        until that has the message; many at a time share one write. When it returns, the message is
        numbered and queued to our eager peers; it is never dropped.

        timeout: seconds to wait at most, for room and for the store; None: as long as it takes.
        A payload above 65,536 bytes travels in pieces behind all else. The call then suspends until
        the last one is queued; only before the first one is, while another large message is being
        sent, can it be cancelled: what is numbered is sent, whatever becomes of the call.

        Raises:
            MessageTooLarge: nothing was sent.
            NodeClosed: the node is not running.
            ConfigError: the topic is longer than 255 bytes or holds control characters.
            NotAllowed: the policy does not let this node publish under `topic`.
            StoreError: the store cannot be written just now; nothing was sent.
            TimeoutError: not accepted within `timeout` seconds. The message says whether nothing
                was sent, or it is on its way and not yet in the store.
        """
        driver = self._accepting()
        if self._store is not None and self._store.failing:
            raise StoreError(
                f"nothing is accepted while it could not be kept: {self._store.failing}"
            )
        if not driver.policy.may_publish(self.id, (topic,)):
            raise NotAllowed(
                f"{driver.policy.name} does not let {self.id} publish under topic {topic!r}; "
                "others would refuse it"
            )
        if len(payload) > self.config.max_message_size:
            is_highest = self.config.max_message_size >= wire.MESSAGE_BYTES_MAX
            fix = "split it" if is_highest else "split it or raise the limit (67,108,864 at most)"
            raise MessageTooLarge(
                f"payload of {len(payload)} bytes is above max_message_size "
                f"({self.config.max_message_size}); {fix}"
            )
        if topic:
            _check_topic(topic)
        deadline = None if timeout is None else time.monotonic() + timeout
        if len(payload) > wire.PAYLOAD_BYTES_MAX:
            return await self._broadcast_large(driver, bytes(payload), topic, deadline)
        if not driver.egress_open:
            await _in_time(driver.wait_egress(), deadline, "there was no room; nothing was sent")
            driver = self._accepting()
        seq, full = driver.accept(topic, bytes(payload))
        receipt = Receipt(MessageId(self.id, driver.epoch, seq), seq, self._cover)
        if self._store is not None and self._store.durable:
            said = f"message {seq} is on its way, and not yet in the store"
            if not await _in_time(driver.wait_accepted(seq), deadline, said):
                raise NodeClosed("the node was shut down before the broadcast was in its store")
            return receipt
        if full:
            await asyncio.sleep(0)
        return receipt

    async def _cover(
        self, message: MessageId, last: int, enough: int | float, timeout_s: float
    ) -> Coverage:
        if isinstance(enough, bool) or not (
            enough >= 1 if isinstance(enough, int) else 0.0 < enough <= 1.0
        ):
            raise ConfigError(f"covered({enough!r}): must be a whole number from 1, or 0.0 to 1.0")
        deadline = time.monotonic() + timeout_s
        found: set[bytes] = set()
        wide = False
        while True:
            left_s = deadline - time.monotonic()
            within_s = max(0.001, min(left_s, COVERAGE_ROUND_S))
            driver = self._running()
            begins = await driver.ask_who_has(message.epoch, message.seq, last, within_s, wide=wide)
            found.update(begins)
            members = driver.core.table.members()
            alive = [
                record.node_id
                for record, state in members
                if state in (MemberState.ALIVE, MemberState.SUSPECT) and record.node_id != self.id
            ]
            missing = tuple(each for each in alive if member_key(each)[:KEY_BYTES] not in found)
            coverage = Coverage(len(alive) - len(missing), missing)
            wanted = enough if isinstance(enough, int) else enough * len(alive)
            if coverage.count >= wanted:
                return coverage
            if time.monotonic() >= deadline:
                raise NotCovered(
                    f"{coverage.count} of {len(alive)} others had message {message} after "
                    f"{timeout_s:g} s; missing: {', '.join(missing[:5])}",
                    missing,
                )
            # Who has it by a repair hangs on no tree.
            wide = True
            await asyncio.sleep(min(COVERAGE_PAUSE_S, max(0.0, deadline - time.monotonic())))

    async def _broadcast_large(
        self, driver: Driver, payload: bytes, topic: str, deadline: float | None
    ) -> Receipt:
        said = "another large message is being sent; nothing was sent of this one"
        await _in_time(driver.wait_large(), deadline, said)
        driver = self._accepting()
        seq, last, done = driver.accept_large(topic, payload)
        # Whoever called may be cancelled; what has numbers is sent all the same.
        said = f"message {seq} is on its way, and not all of it has left"
        if not await _in_time(asyncio.shield(done), deadline, said):
            raise NodeClosed("the node was shut down before all of the broadcast was sent")
        return Receipt(MessageId(self.id, driver.epoch, seq), last, self._cover)

    @overload
    def subscribe(
        self,
        topic: str | None = None,
        *,
        own: bool = False,
        buffer: int = SUBSCRIPTION_MESSAGES_MAX,
        buffer_bytes: int = SUBSCRIPTION_BYTES_MAX,
        order: Literal["unordered"] = "unordered",
        when_full: WhenFull | None = None,
        since: datetime.datetime | float | None = None,
        ack: Literal["auto", "manual"] = "auto",
        name: str = "default",
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        topic: str | None = None,
        *,
        own: bool = False,
        buffer: int = SUBSCRIPTION_MESSAGES_MAX,
        buffer_bytes: int = SUBSCRIPTION_BYTES_MAX,
        order: Literal["fifo"],
        gap_timeout: float | None = None,
        when_full: WhenFull | None = None,
        since: datetime.datetime | float | None = None,
        ack: Literal["auto", "manual"] = "auto",
        name: str = "default",
    ) -> OrderedSubscription: ...

    def subscribe(
        self,
        topic: str | None = None,
        *,
        own: bool = False,
        buffer: int = SUBSCRIPTION_MESSAGES_MAX,
        buffer_bytes: int = SUBSCRIPTION_BYTES_MAX,
        order: Literal["unordered", "fifo"] = "unordered",
        gap_timeout: float | None = None,
        when_full: WhenFull | None = None,
        since: datetime.datetime | float | None = None,
        ack: Literal["auto", "manual"] = "auto",
        name: str = "default",
    ) -> Subscription | OrderedSubscription:
        """Receive what is delivered from now on; `topic` None takes every topic.

        own: also our own broadcasts. buffer: messages that may wait for the application;
        buffer_bytes: payload bytes that may, though one message always does. order:
        "unordered", as they come, or "fifo", each origin's in the order in which it sent them, with
        a `Gap` where something did not come in time. gap_timeout: seconds for which a message that
        holds others up is waited for; `message_cache_ttl` by default, for nobody serves it longer.

        when_full: what happens when one more comes than `buffer` or `buffer_bytes` take. "wait"
        reads it from the store later, "disconnect" ends the subscription with an error,
        "drop_oldest" and "drop_newest" drop some, count them (`Subscription.dropped`) and say so in
        the log. Order and drops do not go together. By default "disconnect", and "wait" with one of
        the next two.

        since: also what was broadcast from then on (a datetime with a time zone, or seconds since
        1970; 0: all there is), out of the store, and, for a node that came later, out of what other
        members still hold. A message's time is its origin's clock's.

        ack: "auto" counts a message as done when it is handed over. "manual" waits for
        `message.ack()`: what was not acknowledged comes again, marked `redelivered`, to the next
        subscription of the same `name`, in this life or, with a durable store, in the next. It
        begins where that name was first used. One subscription of a name at a time.

        Raises:
            ConfigError: one of these is out of range, needs a store that this node does not have,
                or no order of that name is known.
            LocalProtocolError: another subscription has this name.
            StoreError: the store takes no more names.
            NodeClosed: the node does not run.
        """
        driver = self._running()
        if buffer < 1:
            raise ConfigError(f"buffer={buffer}: must be at least 1 message")
        if buffer_bytes < 1:
            raise ConfigError(f"buffer_bytes={buffer_bytes}: must be at least 1 byte")
        if ack not in ("auto", "manual"):
            raise ConfigError(f'ack={ack!r}: must be "auto" or "manual"')
        since_ms = _since_ms(since)
        stored = since_ms is not None or ack == "manual" or when_full == "wait"
        if when_full is None:
            when_full = "wait" if stored else "disconnect"
        if when_full not in get_args(WhenFull):
            raise ConfigError(f"when_full={when_full!r}: must be one of {get_args(WhenFull)}")
        if stored and when_full != "wait":
            raise ConfigError(
                f'when_full={when_full!r}: since and ack="manual" lose nothing; "wait"'
            )
        if stored and self._store is None:
            raise ConfigError(
                'since, ack="manual" and when_full="wait" read from the store, and this node has '
                "none: pass store= (MemoryStore, SqliteStore) or set storage.enabled"
            )
        if any(each.name == name for each in self._catching) and ack == "manual":
            raise LocalProtocolError(
                f"a subscription named {name!r} is open; close it, or take another name"
            )
        if order == "unordered":
            if gap_timeout is not None:
                raise ConfigError('gap_timeout is for order="fifo": nothing else waits for a gap')
            subscription = Subscription(
                self._unsubscribe, topic, own, buffer, when_full, buffer_bytes
            )
            self._subscriptions.append(subscription)
            if stored:
                self._catch_up(subscription, since_ms, name if ack == "manual" else "")
            return subscription
        if order != "fifo":
            raise ConfigError(f'order={order!r}: must be "unordered" or "fifo"')
        if when_full not in ("wait", "disconnect"):
            raise ConfigError(
                f'when_full={when_full!r}: order="fifo" has no place for silent holes'
            )
        config = self.config
        timeout_s = config.message_cache_ttl if gap_timeout is None else gap_timeout
        if not 0 <= timeout_s < float("inf"):
            raise ConfigError(f"gap_timeout={timeout_s}: must be seconds, 0 or more")
        quiet_s = 2 * config.graft_timeout + config.ihave_interval
        ordered = OrderedSubscription(
            self._unsubscribe,
            topic,
            own,
            buffer,
            gap_timeout_s=timeout_s,
            quiet_s=quiet_s,
            when_full=when_full,
            buffer_bytes=buffer_bytes,
        )
        if since_ms is None and ack == "auto":
            now = time.monotonic()
            for key, epoch, next_seq in driver.core.broadcasts.frontiers():
                ordered.begin(key, epoch, self._large.chunks.begin(key, epoch, next_seq), now)
        self._ordered.append(ordered)
        if stored:
            self._catch_up(ordered, since_ms, name if ack == "manual" else "")
        return ordered

    def _catch_up(
        self, reader: Subscription | OrderedSubscription, since_ms: int | None, name: str
    ) -> None:
        """Feed this reader from the store whenever it is behind."""
        store, driver = self._store, self._running()
        assert store is not None
        place = Place(self._handed_at if since_ms is None else 1, since_ms)
        if name:
            state = store.reader(name, None if since_ms is None else 1)
            place = Place(
                state.start,
                since_ms,
                name,
                Intervals.of(state.acked),
                max(self._recovered_at, self._handed_to.get(name, 1)),
            )
        if isinstance(reader, OrderedSubscription):
            # In the store a newer epoch may stand before the last of an older one.
            now = time.monotonic()
            for key, epoch in driver.core.broadcasts.oldest_epochs():
                reader.begin(key, epoch, None, now)
        catching = CatchUp(
            store,
            reader,
            place,
            me=self.id,
            handed_at=lambda: self._handed_at,
            read=self._messages_of,
            join=self._large.message_of,
            chunks=self._large.new_chunks(),
            fetch=self._large.fetch,
            clock=time.monotonic,
            when_safe=driver.when_safe,
            check=self._running,
            taken=partial(self._settle_later, reader),
        )
        self._catching.append(catching)
        if since_ms is not None:
            driver.want_past()
        else:
            catching.begin_with(self._large.chunks.pieces())
        catching.pull()

    def forget_reader(self, name: str) -> None:
        """Nobody acknowledges under this name any more: the store need not remember its place.

        Raises:
            ConfigError: the node has no store.
            LocalProtocolError: a subscription of this name is open.
            NodeClosed: the node does not run.
        """
        self._running()
        if self._store is None:
            raise ConfigError("this node has no store, and so no readers that it remembers")
        if any(each.name == name for each in self._catching):
            raise LocalProtocolError(f"a subscription named {name!r} is open; close it first")
        self._store.forget_reader(name)
        self._handed_to.pop(name, None)

    def _unsubscribe(self, subscription: object) -> None:
        for each in self._subscriptions:
            if each is subscription:
                self._dropped += each.dropped
                self._overflows += each.overflowed
        for ordered in self._ordered:
            if ordered is subscription:
                self._overflows += ordered.overflowed
                self._order_gaps += ordered.gaps
                self._order_late += ordered.late
        for catching in self._catching:
            if catching.reader is subscription:
                self._large.reader_ended(catching)
                if catching.name:
                    self._handed_to[catching.name] = catching.next_at
        self._catching = [each for each in self._catching if each.reader is not subscription]
        self._subscriptions = [each for each in self._subscriptions if each is not subscription]
        self._ordered = [each for each in self._ordered if each is not subscription]

    async def send(self, node_id: NodeId | str, payload: bytes) -> None:
        """Send `payload` to one member (`Delegate.on_direct` there); at most once, in order.

        Suspends while the link has no room for it.

        Raises:
            LinkError: no link to it came up within 10 s, or it went down before the payload left.
            MessageTooLarge, NodeClosed: as for `broadcast`.
        """
        await self._send_direct(NodeId.parse(node_id), DirectKind.MESSAGE, payload)

    async def request(
        self,
        node_id: NodeId | str,
        payload: bytes,
        timeout: float = 10.0,  # noqa: ASYNC109
    ) -> bytes:
        """Send a request to one member and return its reply (`Delegate.on_request` there).

        Raises:
            TimeoutError: no reply within `timeout` seconds.
            LinkError, MessageTooLarge, NodeClosed: as for `send`.
        """
        target = NodeId.parse(node_id)
        async with asyncio.timeout(timeout):
            seq = await self._send_direct(target, DirectKind.REQUEST, payload)
            reply = self._requests[target, seq]
            try:
                return await reply
            finally:
                del self._requests[target, seq]

    async def _send_direct(self, target: NodeId, kind: DirectKind, payload: bytes) -> int:
        driver = self._running()
        limit = min(self.config.max_message_size, wire.PAYLOAD_BYTES_MAX)
        if len(payload) > limit:
            what = "max_message_size" if limit < wire.PAYLOAD_BYTES_MAX else "what one frame takes"
            raise MessageTooLarge(
                f"payload of {len(payload)} bytes is above {what} ({limit}); split it, for direct "
                "messages travel whole"
            )
        if target == self.id:
            raise LocalProtocolError("a node does not send to itself")
        if not driver.linked(target):
            await self._link_to(driver, target)
        await driver.wait_direct(target)
        self._running()
        self._direct_seq += 1
        seq = self._direct_seq
        if not driver.send_direct(target, Direct(kind, seq, bytes(payload))):
            raise LinkError(f"the link to {target} went down before the message was sent")
        if kind is DirectKind.REQUEST:
            self._requests[target, seq] = asyncio.get_running_loop().create_future()
        return seq

    async def _link_to(self, driver: Driver, target: NodeId) -> None:
        if not driver.dial_member(target):
            raise LinkError(f"{target} is not a known member; join its cluster first")
        try:
            async with asyncio.timeout(10.0):
                while not driver.linked(target):
                    await self._wait(self._peer_waiters)
                    self._running()
        except TimeoutError:
            raise LinkError(f"no link to {target} came up within 10 s")

    # --- queries --------------------------------------------------------------------------------

    @property
    def id(self) -> NodeId:
        """Our identity: the URI in our certificate."""
        return self._quic.node_id

    @property
    def address(self) -> str:
        """What others dial: "host:port". Known once started."""
        return self._running().address

    def members(self) -> list[Member]:
        """All members that are known, ourselves included, in order of their ids."""
        return [
            Member(
                record.node_id,
                state,
                record.addresses,
                record.epoch,
                record.incarnation,
                record.zone,
                record.meta,
            )
            for record, state in self._running().core.table.members()
        ]

    def peers(self) -> list[Peer]:
        """Our live links."""
        driver = self._running()
        peers = []
        for view in driver.core.peers():
            rtt_s = driver.rtt_s(view.node_id) or 0.0
            both_ways_s = 2 * (driver.crossing_s(view.node_id) or 0.0)
            record = driver.core.yours(view.node_id)
            peers.append(
                Peer(
                    view.node_id,
                    driver.link_address(view.node_id),
                    view.eager,
                    rtt_s,
                    1.0 / (1.0 + 1000.0 * both_ways_s),
                    record.zone if record is not None else "",
                )
            )
        return peers

    def peer_count(self) -> int:
        """Other members that are alive (or suspected only)."""
        return self._running().core.table.alive_count() - 1

    def rebalance(self) -> None:
        """Let every origin's tree start again from `eager_fanout` links, for better paths after
        links have changed; costs one flooded bundle per origin.
        """
        self._running().core.broadcasts.rebalance()

    def health(self) -> Health:
        """Judge by HealthConfig's thresholds; reasons name what was found, the worst first."""
        if self._state in ("closed", "new"):
            return Health(HealthStatus.UNHEALTHY, (f"the node is {self._state}",))
        if self._conflict is not None:
            return Health(HealthStatus.UNHEALTHY, (str(self._conflict),))
        driver, limits = self._running(), self.config.health
        tree = driver.core.broadcasts
        links, others = len(driver.core.peers()), self.peer_count()
        bad: list[str] = []
        poor: list[str] = []
        known = driver.core.table.known_count() - 1
        if links == 0 and known > 0:
            bad.append(f"no link, though {known} other members are known")
        failed, sent = self._rate("graft_failed"), self._rate("graft_sent")
        if failed + sent >= 10:
            share = failed / (failed + sent)
            if share > limits.graft_failure_rate_unhealthy:
                bad.append(f"{share:.0%} of grafts failed in the last minute")
            elif share > limits.graft_failure_rate_degraded:
                poor.append(f"{share:.0%} of grafts failed in the last minute")
        missing = tree.missing_count()
        if missing > limits.pending_grafts_degraded:
            poor.append(f"{missing} announced ranges have not arrived")
        cached = tree.cache_messages() / self.config.message_cache_max_size
        if cached > limits.cache_utilization_degraded:
            poor.append(f"the message cache is {cached:.0%} full")
        score = driver.core.local_health
        if score >= LOCAL_HEALTH_DEGRADED:
            poor.append(
                f"this process was late, asleep or cut off: its local health is {score} of "
                f"{SCORE_MAX} (0 is well), and it takes {1 + score} times as long to doubt others"
            )
        if self._store is not None and self._store.failing:
            bad.append(self._store.failing)
        if 0 < links < min(limits.min_peers_degraded, others):
            poor.append(f"{links} links, min_peers_degraded is {limits.min_peers_degraded}")
        if self._state == "draining":
            poor.append("draining")
        if bad:
            return Health(HealthStatus.UNHEALTHY, tuple(bad + poor))
        if poor:
            return Health(HealthStatus.DEGRADED, tuple(poor))
        return Health(HealthStatus.HEALTHY, ())

    def stats(self) -> dict[str, int]:
        """Counters since the start; plain integers, cheap to read.

        local_health is no counter but Lifeguard's score of now, 0 (well) to 8. Counters of failure
        detection begin with swim_, those of the UDP endpoint with net_, those of what waits for
        certificates or was refused with gate_, those of signatures with keys_.
        """
        driver = self._running()
        return {
            **attrs.asdict(driver.counters),
            **driver.core.broadcasts.stats(),
            "messages_delivered": self._delivered + self._large.delivered,
            "messages_oversized": self._oversized + self._large.oversized,
            **self._large.stats(self._catching),
            "delegate_errors": self._delegate_errors,
            "security_events_suppressed": self._audit.suppressed,
            "security_log_errors": self._audit.write_errors,
            "links": len(driver.core.peers()),
            "members_alive": driver.core.table.alive_count(),
            "local_health": driver.core.local_health,
            "subscription_dropped": self._dropped
            + sum(each.dropped for each in self._subscriptions),
            "subscription_overflows": self._overflows,
            "order_held": sum(each.held for each in self._ordered),
            "order_gaps": self._order_gaps + sum(each.gaps for each in self._ordered),
            "order_late": self._order_late + sum(each.late for each in self._ordered),
            "parked_expired": driver.core.parked_expired,
            "parked_refused": driver.core.parked_refused,
            **{f"swim_{name}": count for name, count in driver.core.swim_counters().items()},
            **{f"net_{name}": count for name, count in driver.net_counters().items()},
            **driver.security_counters(),
            **driver.store_counters(),
        }

    async def events(self) -> AsyncIterator[ClusterEvent]:
        """What happens from the first step of the iteration on: membership, tree, security.

        Keeps the newest 1,024 unread; ends when the node is shut down and they are read.
        """
        self._running()
        queue: deque[ClusterEvent] = deque(maxlen=EVENTS_MAX)
        self._events.append(queue)
        try:
            while queue or self._state != "closed":
                while queue:
                    yield queue.popleft()
                if self._state != "closed":
                    await self._wait(self._event_waiters)
        finally:
            self._events.remove(queue)

    # --- what the driver tells ------------------------------------------------------------------

    def _deliver(self, kept: Kept) -> None:
        """open a bundle and hand its messages over. Raises WireError when it is malformed."""
        if self._driver is None or self._closed.is_set():
            return
        bundle = kept.bundle
        if kept.at:
            self._handed_at = kept.next_at
        is_own = kept.origin == self.id
        if not is_own and not bundle.is_chunk:
            self._delivered += bundle.count
        if self._catching:
            for catching in tuple(self._catching):
                catching.offer(kept)
        if kept.history:
            # For those alone who asked for what was; they have it.
            return
        if bundle.is_chunk:
            self._large.take(kept)
            return
        self._large.note(bundle)
        readers = self._live_readers(is_own)
        hears = self._hears and not is_own
        if not readers and not hears:
            return
        messages = self._messages_of(kept)
        if not is_own:
            self._oversized += bundle.count - len(messages)
            self._delivered -= bundle.count - len(messages)
        now = time.monotonic()
        for reader in readers:
            reader.take(kept, messages, now)
        if hears:
            for message in messages:
                self._call("on_deliver", message)
        self._settle_ordered_later()

    def _new_assembly(self) -> Assembly:
        # Whoever keeps bundles may be asked for pieces for as long.
        hold_s = self.config.message_cache_ttl
        if self._store is not None:
            hold_s = max(hold_s, self._store.retention_s)
        elif self.config.storage.enabled:
            hold_s = max(hold_s, self.config.storage.retention)
        outside = Outside(
            me=self.id,
            readers=self._live_readers,
            refuses=self._refuses,
            hear=lambda message: self._call("on_deliver", message) if self._hears else None,
            note_malformed=lambda origin, why: self._running().note_malformed(origin, why),
            note_lie=lambda origin, why: self._running().note_lie(origin, why),
            seen_through=lambda *message: self._running().seen_through(*message),
            taken=self._settle_ordered_later,
        )
        return Assembly(self.config.max_message_size, hold_s, outside)

    def _refuses(self, message: Message) -> bool:
        return (
            _overrides(self._delegate, "validate") and self._call("validate", message) is not True
        )

    def _settle_large(self) -> None:
        """Large messages that will not become complete are given up."""
        if self._driver is not None and self._is_live():
            self._large.settle(tuple(self._catching))

    def _settle_ordered_later(self) -> None:
        for ordered in self._ordered:
            self._settle_later(ordered)

    def _live_readers(self, is_own: bool) -> list[Subscription | OrderedSubscription]:
        """Those that are not fed from the store."""
        everybody: list[Subscription | OrderedSubscription] = [*self._subscriptions, *self._ordered]
        return [each for each in everybody if (each.own or not is_own) and not each.is_fed]

    def _messages_of(self, kept: Kept) -> list[Message]:
        """What a bundle holds, without what is larger than we take."""
        bundle, at = kept.bundle, time.monotonic()
        limit = self.config.max_message_size
        return [
            Message(kept.origin, bundle.epoch, seq, topic, payload, kept.hop, at)
            for seq, (topic, payload) in enumerate(wire.open_bundle(bundle), bundle.first)
            if len(payload) <= limit
        ]

    def _settle_later(self, reader: Subscription | OrderedSubscription) -> None:
        """What is held back is looked at now and then: a gap may turn out to be none, or be given
        up. Not at once, for more of what is seen may be on its way to the reader.
        """
        if reader.is_waiting and self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(SETTLE_EVERY_S, self._settle)

    def _settle(self) -> None:
        self._settling = None
        driver = self._driver
        if driver is None or not self._is_live():
            return
        behind = [each.reader for each in self._catching if not each.is_live]
        for each in tuple(self._ordered):
            if each not in behind:
                feeding = [at.chunks for at in self._catching if at.reader is each]
                driver.settle_order(each, feeding[0] if feeding else self._large.chunks)
            self._settle_later(each)

    def _fact(self, effect: Effect) -> None:
        """tell delegates, events and waiters."""
        driver = self._driver
        if driver is None:
            return  # of our own start: nobody can wait yet
        match effect:
            case MemberJoined(record):
                self._tell("on_member_joined", record.node_id)
                self._wake(self._peer_waiters)
            case MemberUpdated(record):
                self._tell("on_member_updated", record.node_id)
            case MemberSuspected(node_id):
                self._tell("on_member_suspected", node_id)
            case MemberFailed(node_id):
                self._tell("on_member_failed", node_id)
            case MemberLeft(node_id):
                self._tell("on_member_left", node_id)
            case PeerPromoted(peer):
                self._tell("on_eager_promotion", peer)
            case PeerDemoted(peer):
                self._tell("on_lazy_demotion", peer)
            case GraftSent(peer):
                self._note("graft_sent")
                self._tell("on_graft_sent", peer)
            case PruneSent(peer):
                self._tell("on_prune_sent", peer)
            case GraftFailed(origin):
                self._note("graft_failed")
                self._tell("on_graft_failed", driver.core.node_id_of(origin))
            case _:
                raise AssertionError(f"not a fact: {effect}")

    def _direct(self, peer: NodeId, message: Direct) -> None:
        """a direct message, a request or a reply."""
        driver = self._driver
        if driver is None or not self._is_live():
            return
        if message.kind is DirectKind.REPLY:
            waiting = self._requests.get((peer, message.seq))
            if waiting is not None and not waiting.done():
                waiting.set_result(message.payload)
            return
        if self._delegate is None:
            return
        if message.kind is DirectKind.MESSAGE:
            self._call("on_direct", peer, message.payload)
            return
        if not self._answers:
            return
        reply = self._call("on_request", peer, message.payload)
        if isinstance(reply, bytes) and len(reply) <= min(
            self.config.max_message_size, wire.PAYLOAD_BYTES_MAX
        ):
            driver.send_direct(peer, Direct(DirectKind.REPLY, message.seq, reply))

    def _link_up(self) -> None:
        """somebody may wait for a link, or for an answer to join."""
        self._wake(self._peer_waiters)

    def _security_event(self, kind: str, fields: dict[str, object]) -> None:
        """log it and tell the delegate, unless its source has been told of often enough."""
        record = self._audit.note(kind, fields, time.monotonic())
        if record is None:
            return
        # On a terminal only the text is seen; a log collector has each field by its name.
        told = ", ".join(f"{name}={value}" for name, value in fields.items())
        logger.warning(
            "security event: %s (%s)", kind, told, extra={"event": kind, **_prefixed(fields)}
        )
        if self._delegate is not None:
            self._call("on_security_event", kind, fields)
        self._publish(
            ClusterEvent("on_security_event", None, time.monotonic(), dict(fields, kind=kind))
        )

    def _epoch_raised(self, epoch: int) -> None:
        """keep the epoch, so that the next start is later than this one."""
        if self._state_dir is None:
            return
        try:
            _write_number(self._state_dir / "epoch", epoch)
        except OSError as error:
            logger.warning(
                "the start epoch could not be kept in state_dir: %s",
                error,
                extra={"event": "node.epoch_not_kept"},
            )

    def _superseded(self, epoch: int) -> None:
        """a later start of our identity lives; this node stops."""
        if self._conflict is not None or self._state == "closed":
            return
        self._conflict = IdentityConflict(
            f"another process runs as {self.id} and started later (epoch {epoch}); this one "
            "stops. Give every node a certificate of its own"
        )
        self._security_event("identity.conflict", {"node_id": self.id, "epoch": epoch})
        self._stopping = asyncio.get_running_loop().create_task(self.shutdown())

    # --- inside ---------------------------------------------------------------------------------

    def _running(self) -> Driver:
        if self._conflict is not None:
            raise self._conflict
        if self._driver is None or self._state == "closed":
            raise NodeClosed(
                "the node is not running: use `async with Node(...)` or call start() first"
                if self._state == "new"
                else "the node was shut down"
            )
        return self._driver

    def _accepting(self) -> Driver:
        if self._state == "draining":
            raise NodeClosed("the node is draining and takes no more broadcasts")
        return self._running()

    def _validate(self, bundle: Bundle) -> bool:
        driver = self._driver
        assert driver is not None
        if bundle.is_chunk:
            # It is forwarded as it comes; the whole is judged before it is handed over.
            return True
        origin = driver.core.node_id_of(bundle.origin)
        assert origin is not None  # judged only once its record is known
        at = time.monotonic()
        try:
            messages = wire.open_bundle(bundle)
        except WireError:
            return False
        for offset, (topic, payload) in enumerate(messages):
            message = Message(origin, bundle.epoch, bundle.first + offset, topic, payload, 0, at)
            if self._call("validate", message) is not True:
                return False
        return True

    def _call(self, name: str, *args: object) -> object:
        try:
            return getattr(self._delegate, name)(*args)
        except Exception:
            self._delegate_errors += 1
            logger.exception(
                "Delegate.%s raised; the node goes on", name, extra={"event": "delegate.error"}
            )
            return None

    def _tell(self, kind: str, node_id: NodeId | None) -> None:
        if self._delegate is not None:
            self._call(kind, node_id)
        if self._events:
            self._publish(ClusterEvent(kind, node_id, time.monotonic(), {}))

    def _publish(self, event: ClusterEvent) -> None:
        for queue in self._events:
            queue.append(event)
        self._wake(self._event_waiters)

    def _note(self, what: str) -> None:
        self._rates.setdefault(what, deque(maxlen=10_000)).append(time.monotonic())

    def _rate(self, what: str) -> int:
        times = self._rates.get(what)
        if not times:
            return 0
        while times and times[0] < time.monotonic() - RATE_WINDOW_S:
            times.popleft()
        return len(times)

    @staticmethod
    async def _wait(waiters: list[asyncio.Future[None]]) -> None:
        """Wait to be woken; leave nothing behind when cancelled."""
        waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    @staticmethod
    def _wake(waiters: list[asyncio.Future[None]]) -> None:
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        waiters.clear()


def _overrides(delegate: Delegate | None, name: str) -> bool:
    return delegate is not None and getattr(type(delegate), name) is not getattr(Delegate, name)


async def _in_time(waiting: Awaitable[_T], deadline: float | None, said: str) -> _T:
    """Await it until `deadline` (monotonic), and say what is then the case."""
    left_s = None if deadline is None else deadline - time.monotonic()
    try:
        async with asyncio.timeout(left_s):
            return await waiting
    except TimeoutError:
        raise TimeoutError(said)


def _make_store(config: StorageConfig, state_dir: Path | None) -> MessageStore:
    if state_dir is None:
        return MemoryStore(
            retention_s=config.retention,
            messages_max=config.max_messages,
            bytes_max=config.max_bytes,
        )
    from plumtree_quic.store.sqlite import SqliteStore

    return SqliteStore(
        state_dir / "messages.db",
        retention_s=config.retention,
        messages_max=config.max_messages,
        bytes_max=config.max_bytes,
        synchronous=cast(Literal["full", "normal"], config.synchronous),
    )


def _since_ms(since: datetime.datetime | float | None) -> int | None:
    if since is None:
        return None
    if isinstance(since, datetime.datetime):
        if since.tzinfo is None:
            raise ConfigError(
                f"since={since}: a time without a zone means another moment elsewhere; use "
                "datetime.datetime.now(datetime.UTC), or seconds since 1970"
            )
        since = since.timestamp()
    if not 0 <= since < float("inf"):
        raise ConfigError(f"since={since}: must be seconds since 1970, 0 or more")
    return int(since * 1000)


def _read_number(path: Path) -> int:
    text = path.read_bytes().strip()
    # Milliseconds since 1970 need 13 digits; 15 last for 30,000 years and fit the wire.
    if not text.isdigit() or len(text) > 15:
        raise ConfigError(
            f"{path} is damaged: it must hold the time of the last start, in milliseconds; "
            "remove it when this machine's clock is right"
        )
    return int(text)


def _write_number(path: Path, number: int) -> None:
    partial = path.with_suffix(".new")
    with partial.open("w", encoding="ascii") as file:
        file.write(str(number))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _check_topic(topic: str) -> None:
    try:
        wire.check_text(topic, wire.TOPIC_BYTES_MAX)
    except (WireError, ConfigError) as error:
        raise ConfigError(f"topic {topic[:40]!r}: {error}")


def _prefixed(fields: Mapping[str, object]) -> dict[str, object]:
    # logging refuses extra keys that LogRecord has itself ("name", "args", ...).
    return {f"security_{name}": value for name, value in fields.items()}


def _read_policy(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(POLICY_BYTES_MAX + 1)
        if len(content) > POLICY_BYTES_MAX:
            raise ConfigError(f"{path} (policy) is larger than 1 MiB; is it the right file?")
        return content.decode()
    except OSError as error:
        raise ConfigError(f"{path} (policy) cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} (policy) is not UTF-8 text")
