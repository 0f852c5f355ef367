"""Endpoint: all links of one node over one UDP address. Sans-IO: bytes and `now` in, bytes out.

Routes packets by connection ID, answers strangers with Retry, accepts and dials, keeps one link a
pair, and never lets an exception of a connection out. It knows identities and nothing of trees or
membership. The rules for two links of one pair stand at `_on_greeted`.
"""

import datetime
import heapq
import logging
import os
from collections.abc import Callable, Sequence
from random import Random

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from plumtree_quic import wire
from plumtree_quic.errors import IdentityError, LinkError, PlumtreeError
from plumtree_quic.ids import NodeId
from plumtree_quic.messages import Feature, Hello, Record, Wanted
from plumtree_quic.net import engine as engines
from plumtree_quic.net.budget import AcceptBudget
from plumtree_quic.net.clock import ClockWatch
from plumtree_quic.net.events import (
    DatagramReceived,
    DialFailed,
    Event,
    LinkDown,
    LinkReplaced,
    LinkUp,
    Received,
    SecurityEvent,
)
from plumtree_quic.net.filter import Shape, Verdict, look
from plumtree_quic.net.link import CloseCode, Link, LinkState, new_link_id
from plumtree_quic.net.retry import RetryTokens
from plumtree_quic.net.rotation import Rotation
from plumtree_quic.net.settings import NetSettings
from plumtree_quic.security.credentials import Credentials
from plumtree_quic.security.identity import CHECKS, OWN_IDENTITY, CheckFailed, check_chain

__all__ = ["Counters", "Endpoint"]

logger = logging.getLogger("plumtree_quic")

Address = tuple[str, int]

# Alerts that say that a certificate is at fault: hammering will not heal them.
_OUR_FAULT_ALERTS = frozenset((*range(42, 50), 116))
# Close codes that say that dialling again at once would end in the same way.
_REFUSALS = frozenset(
    (
        CloseCode.CERT_EXPIRED,
        CloseCode.CERT_REVOKED,
        CloseCode.IDENTITY_MISMATCH,
        CloseCode.PROTOCOL_ERROR,
        CloseCode.LIMIT_EXCEEDED,
        CloseCode.OVERLOADED,
        CloseCode.WRONG_CLUSTER,
        CloseCode.VERSION,
    )
)
FIRST_REDIAL_S = (0.05, 0.5)
LARGER_WAITS_S = (0.5, 1.0)
REJECTIONS_PER_MINUTE = 10


@attrs.define
class Counters:
    """What happened at this address since the start. Plain integers."""

    datagrams_in: int = 0
    datagrams_out: int = 0
    filtered: int = 0
    retries: int = 0
    bad_tokens: int = 0
    over_budget: int = 0
    accepted: int = 0
    dialled: int = 0
    rejected: int = 0
    hard_dropped: int = 0
    replaced: int = 0
    links_over_pair: int = 0


@attrs.define
class _Wanted:
    """A peer that the overlay wants a link to."""

    addresses: tuple[Address, ...]
    failures: int = 0
    next_dial_at: float = 0.0
    dialling: Link | None = None


@attrs.define
class _Pair:
    """The links to one peer. `up` is the one that sends use."""

    up: Link
    contenders: list[Link] = attrs.field(factory=list)
    draining: list[Link] = attrs.field(factory=list)

    def others(self) -> list[Link]:
        return [*self.contenders, *self.draining]


# Links to one peer beside the one that is used, on their way in or out. A name with many addresses
# that are all one node's is dialled at 16 of them at once.
PAIR_LINKS_MAX = 32
_SIGN_DIFFERS = "one side signs, the other does not"


class Endpoint:
    """One address, many links.

    Args:
        credentials: returns who we are now; asked at each handshake.
        settings: limits and timers.
        rng: for back-off and jitter.
        record: returns our own record, for hello.
        yours: returns the newest record of a peer that we hold, for hello.
        wanted: whether the overlay wants a link to a peer, for hello.
        features: what we say of ourselves in hello; a peer must say the same.
        judge_hello: returns a hello without what the peer has not proved, and why it is refused,
            or an empty string.
        admit: the admission policy (step 12 of the check).
        is_revoked: whether a path of certificates or an identity is revoked (step 11).
        wall: the wall clock, for certificates alone.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        settings: NetSettings,
        *,
        rng: Random,
        record: Callable[[], Record],
        yours: Callable[[NodeId], Record | None],
        wanted: Callable[[NodeId], bool],
        features: int = 0,
        judge_hello: Callable[[Hello, float], tuple[Hello, str]] | None = None,
        admit: Callable[[NodeId], bool] | None = None,
        is_revoked: engines.IsRevoked | None = None,
        wall: Callable[[], datetime.datetime] | None = None,
    ) -> None:
        self._credentials = credentials
        self._settings = settings
        self._rng = rng
        self._record = record
        self._yours = yours
        self._wanted = wanted
        self._features = features
        self._judge_hello = judge_hello
        self._admit = admit
        self._is_revoked = is_revoked
        self._wall = wall if wall is not None else _wall
        self._clock = ClockWatch(self._wall)
        self._me = credentials().node_id
        self._rotation = Rotation(self._me, rng)
        self._engine_settings = engines.EngineSettings(
            idle_timeout_s=settings.idle_s,
            stream_window_bytes=max(settings.lane_window, 256 * 1024),
            link_window_bytes=max(4 * settings.lane_window, 1024 * 1024),
        )
        self._tokens: RetryTokens | None = None
        self._budget = AcceptBudget()
        self._by_cid: dict[bytes, Link] = {}
        self._links: dict[Link, None] = {}
        self._half_open: dict[Link, None] = {}
        self._per_address: dict[str, int] = {}
        self._pairs: dict[NodeId, _Pair] = {}
        self._wants: dict[NodeId, _Wanted] = {}
        # No wanted peer is to be dialled before; None while none waits for its dial.
        self._dial_at: float | None = None
        self._touched: dict[Link, None] = {}
        self._fed: dict[Link, None] = {}
        self._fed_at = 0.0
        self._timers: list[tuple[float, int, Link]] = []
        self._timer_number = 0
        self._events: list[Event] = []
        self._outgoing: list[tuple[bytes, Address]] = []
        self._rejections_told: list[float] = []
        self._conflicts_told: list[float] = []
        self._limits_told: list[float] = []
        self._closing = False
        self.counters = Counters()

    # --- links ----------------------------------------------------------------------------------

    def link(self, peer: NodeId) -> Link | None:
        """The link on which to send to `peer`, or None."""
        pair = self._pairs.get(peer)
        if pair is None:
            return None
        self._touched[pair.up] = None
        return pair.up

    def links(self) -> list[Link]:
        """One link for each peer that has one."""
        return [pair.up for pair in self._pairs.values()]

    def dial(self, address: Address, peer: NodeId | None, now: float) -> Link:
        """Try once to reach `address`; peer None takes whoever answers."""
        self._look_at_clock(now)
        credentials = self._credentials()
        engine = engines.dial(
            credentials,
            settings=self._engine_settings,
            expected=peer,
            admit=self._admit,
            is_revoked=self._is_revoked,
            wall=self._wall,
        )
        link = Link(
            engine,
            self._settings,
            dialled=True,
            address=address,
            expected=peer,
            wall=self._wall,
            now=now,
            generation=credentials.link_generation,
            own_not_after=credentials.leaf.not_valid_after_utc,
        )
        engine.connect(address, now)
        self.counters.dialled += 1
        self._adopt(link)
        return link

    def want(self, peer: NodeId, addresses: Sequence[Address], now: float) -> None:
        """Keep a link to `peer`: dial it when there is none, again after each failure."""
        wanted = self._wants.get(peer)
        if self._closing or not addresses:
            return
        if wanted is not None:
            wanted.addresses = tuple(addresses)
            return
        wanted = self._wants[peer] = _Wanted(tuple(addresses))
        pair = self._pairs.get(peer)
        if pair is not None:
            self._tell_wanted(pair.up, True)
        else:
            # Both ends learn of each other at once; the smaller one dials first.
            wait_s = self._rng.uniform(0.05, 0.15) if self._me > peer else 0.0
            self._dial_later(wanted, now + wait_s)

    def unwant(self, peer: NodeId, now: float) -> None:
        """The overlay needs no link to `peer`; it is closed when the peer needs it neither."""
        wanted = self._wants.pop(peer, None)
        if wanted is not None and wanted.dialling is not None:
            self._abandon(wanted.dialling, now)
        pair = self._pairs.get(peer)
        if pair is None:
            return
        if pair.up.peer_wants:
            self._tell_wanted(pair.up, False)
        else:
            self._close_pair(pair, CloseCode.GOING_AWAY, "not wanted", now)

    def replace(self, peer: NodeId, now: float) -> bool:
        """Dial a second link to `peer` that takes the place of the one there is (rotation).

        Make before break: the older one is used until the new one is greeted, and then delivers
        what it holds. When the dial fails all stays as it was. False without a link to `peer`.
        """
        pair = self._pairs.get(peer)
        if pair is None or self._closing:
            return False
        self.dial(pair.up.address, peer, now).replaces = pair.up.link_id
        return True

    def use_credentials(self, now: float) -> None:
        """Our credentials have changed: links made under older ones are replaced, a few at a time.

        A link whose peer's certificate no longer leads to our anchors is replaced as well, for the
        peer may have another by now, and cut when that does not happen in time. One whose peer was
        revoked or may not join any more is cut at once.
        """
        self.judge_links(now)
        for peer, pair in self._pairs.items():
            if self._is_outdated(pair.up):
                self._rotation.add(peer, now, trusted=self._trusts(pair.up))

    def _rotate_if_older(self, link: Link, now: float) -> None:
        """A link that was begun before our credentials changed is outdated as it comes up."""
        if link.generation != self._credentials().link_generation:
            self._rotation.add(link.peer, now, trusted=self._trusts(link))

    def judge_links(self, now: float) -> None:
        """Revocations or the policy have changed: cut the links that would not be made now.

        What they brought and nobody has taken yet is dropped.
        """
        for link in tuple(self._links):
            peer = link.engine.peer_id
            if peer is None or link.state in (LinkState.CLOSING, LinkState.CLOSED):
                continue
            if self._is_revoked is not None and self._is_revoked(self._path_of(link), peer):
                kind, code, reason = "revoked.closed", CloseCode.CERT_REVOKED, "certificate revoked"
            elif self._admit is not None and not self._admit(peer):
                kind, code, reason = "link.not_admitted", CloseCode.GOING_AWAY, "not admitted"
            else:
                continue
            self._tell_security(kind, peer=peer, address=_show(link.address))
            self._events = [
                event
                for event in self._events
                if not (isinstance(event, Received | DatagramReceived) and event.link is link)
            ]
            link.close(code, reason, now)
            self._touched[link] = None
            self._on_ended(link, now)

    def _look_at_clock(self, now: float) -> None:
        """The wall clock jumped: certificates that ended by it cut their links, now and not later.

        Links outlive a clock that was set back: what it says is no news of their certificates.
        """
        jumped_s = self._clock.jumped_s(now)
        if not jumped_s:
            return
        self._tell_security("clock.jump", by_s=round(jumped_s), now=self._wall().isoformat())
        for link in tuple(self._links):
            link.close_if_expired(now)
            self._touched[link] = None
            if link.state is LinkState.CLOSING:
                self._on_ended(link, now)
        self.judge_links(now)

    def _path_of(self, link: Link) -> Sequence[x509.Certificate]:
        """Leaf to anchor, or what was sent when that leads nowhere any more."""
        leaf, *chain = link.engine.peer_certificates
        try:
            return check_chain(leaf, chain, self._credentials().anchors, self._wall())
        except CheckFailed:
            return (leaf, *chain)

    def _is_outdated(self, link: Link) -> bool:
        return link.generation != self._credentials().link_generation or not self._trusts(link)

    def _trusts(self, link: Link) -> bool:
        certificates = link.engine.peer_certificates
        if not certificates:
            return False
        leaf, *chain = certificates
        try:
            check_chain(leaf, chain, self._credentials().anchors, self._wall())
        except CheckFailed:
            return False
        return True

    def _fire_rotation(self, now: float) -> None:
        running = sum(
            bool(link.replaces) and link.state in (LinkState.DIALLING, LinkState.GREETING)
            for link in self._links
        )
        rotation = self._rotation
        for peer in rotation.due(now):
            pair = self._pairs.get(peer)
            if pair is None or not self._is_outdated(pair.up):
                rotation.done(peer)
            elif rotation.is_over(peer, now):
                rotation.done(peer)
                self._tell_security("link.untrusted", peer=peer)
                self._close_pair(pair, CloseCode.CERT_REVOKED, "certificate trusted no more", now)
            elif not rotation.may_start(running, len(self._pairs)):
                rotation.put_off(peer, now)
            else:
                self.replace(peer, now)
                rotation.started(peer, now)
                running += 1

    def close(self, now: float, code: int, reason: str) -> None:
        """Close every link and accept no more; `closed` tells when it is out."""
        self._closing = True
        self._wants.clear()
        self._dial_at = None
        for link in tuple(self._links):
            link.close(code, reason, now)
            self._touched[link] = None

    @property
    def closed(self) -> bool:
        """Whether every link has said goodbye (its closing period may still run)."""
        return self._closing and all(
            link.state in (LinkState.CLOSING, LinkState.CLOSED) and not link.engine.close_is_due
            for link in self._links
        )

    # --- datagrams ------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Take one UDP payload. Never raises, whatever it holds."""
        self.counters.datagrams_in += 1
        verdict = look(data, self._settings.packet_bytes)
        if verdict.shape is Shape.DROP:
            self.counters.filtered += 1
            return
        link = self._by_cid.get(verdict.destination_cid)
        if link is not None:
            if link.dialled or verdict.shape is not Shape.RETRY:
                self._feed(link, data, address, now)
            return
        if verdict.shape is Shape.INITIAL and not self._closing:
            try:
                self._on_stranger(verdict, data, address, now)
            except Exception:
                self._note_error()
        else:
            self.counters.filtered += 1

    def _on_stranger(self, verdict: Verdict, data: bytes, address: Address, now: float) -> None:
        if len(verdict.destination_cid) < 8:
            self.counters.filtered += 1
            return
        if self._tokens is None:
            self._tokens = RetryTokens(now)
        if not verdict.token:
            if self._budget.may_retry(now):
                self.counters.retries += 1
                self._outgoing.append(
                    (
                        self._tokens.make_retry(
                            address,
                            destination_cid=verdict.destination_cid,
                            source_cid=verdict.source_cid,
                            retry_cid=os.urandom(engines.CONNECTION_ID_BYTES),
                            now=now,
                        ),
                        address,
                    )
                )
            return
        original = self._tokens.check(verdict.token, address, verdict.destination_cid, now)
        if original is None:
            self.counters.bad_tokens += 1
            return
        limit = self._limit_hit(address, now)
        if limit is not None:
            self.counters.over_budget += 1
            if self._may_tell(self._limits_told, now):
                self._tell_security("limit.hit", address=_show(address), what=limit)
            return
        self._tokens.spend(verdict.token, now)
        self._look_at_clock(now)
        credentials = self._credentials()
        engine = engines.accept(
            credentials,
            settings=self._engine_settings,
            original_destination_cid=original,
            retry_source_cid=verdict.destination_cid,
            admit=self._admit,
            is_revoked=self._is_revoked,
            wall=self._wall,
        )
        link = Link(
            engine,
            self._settings,
            dialled=False,
            address=address,
            expected=None,
            wall=self._wall,
            now=now,
            generation=credentials.link_generation,
            own_not_after=credentials.leaf.not_valid_after_utc,
        )
        self.counters.accepted += 1
        self._adopt(link)
        self._by_cid[verdict.destination_cid] = link
        link.connection_ids.add(verdict.destination_cid)
        self._feed(link, data, address, now)

    def _limit_hit(self, address: Address, now: float) -> str | None:
        """Which limit forbids one more connection from `address`, which is proved."""
        settings = self._settings
        # On loopback all have one address, and nobody is a stranger.
        loopback = settings.loopback
        if settings.rate_limits and not loopback and not self._budget.may_accept(address[0], now):
            return "handshakes a second"
        if len(self._half_open) >= settings.half_open_max:
            return "half-open connections"
        if not loopback:
            same = sum(link.first_host == address[0] for link in self._half_open)
            if same >= settings.half_open_max // 2:
                # Whoever else dials finds room.
                return "half-open connections of one address"
        if len(self._links) >= settings.links_max:
            return "links"
        per_address = self._per_address.get(address[0], 0)
        if per_address >= settings.links_per_address_max and not loopback:
            return "links of one address"
        return None

    def _adopt(self, link: Link) -> None:
        self._links[link] = None
        if not link.dialled:
            self._half_open[link] = None
            host = link.first_host
            self._per_address[host] = self._per_address.get(host, 0) + 1
        self._refresh_cids(link)
        self._touched[link] = None

    def _feed(self, link: Link, data: bytes, address: Address, now: float) -> None:
        self._touched[link] = None
        try:
            changes = link.engine.address_changes
            link.receive(data, address, now)
            if link.engine.address_changes > changes:
                self._tell_security(
                    "link.address_changed", peer=link.engine.peer_id, address=_show(address)
                )
        except Exception:
            self._hard_drop(link, now)
            return
        if link.state is LinkState.UP:
            # Many datagrams come at once: their events are taken together.
            self._fed[link] = None
            self._fed_at = now
        else:
            self._take(link, now)

    def _take_fed(self) -> None:
        fed, self._fed = self._fed, {}
        for link in fed:
            if link in self._links:
                self._take(link, self._fed_at)

    def transmit(self, now: float) -> list[tuple[bytes, Address]]:
        """Return what the links that were touched have to send, each with its address."""
        self._take_fed()
        out, self._outgoing = self._outgoing, []
        while self._touched:
            touched, self._touched = self._touched, {}
            for link in touched:
                if link not in self._links:
                    continue
                try:
                    link.flush(now)
                    out += link.engine.datagrams_to_send(now)
                    while link.datagrams_waiting:
                        link.flush(now)
                        out += link.engine.datagrams_to_send(now)
                    self._arm(link)
                except Exception:
                    self._hard_drop(link, now)
                    continue
                self._take(link, now)
        self.counters.datagrams_out += len(out)
        return out

    # --- time -----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `advance` has work, or None."""
        while self._timers:
            due, _, link = self._timers[0]
            if link.timer == due and link in self._links:
                break
            heapq.heappop(self._timers)
        deadline = self._timers[0][0] if self._timers else None
        if self._dial_at is not None and (deadline is None or self._dial_at < deadline):
            deadline = self._dial_at
        rotation = self._rotation.next_deadline()
        if rotation is not None and (deadline is None or rotation < deadline):
            deadline = rotation
        return deadline

    def advance(self, now: float) -> None:
        """Do what is due at `now`."""
        self._take_fed()
        self._look_at_clock(now)
        while self._timers and self._timers[0][0] <= now:
            due, _, link = heapq.heappop(self._timers)
            if link.timer != due or link not in self._links:
                continue
            link.timer = None
            self._touched[link] = None
            try:
                link.advance(now)
            except Exception:
                self._hard_drop(link, now)
                continue
            self._take(link, now)
        if self._dial_at is not None and self._dial_at <= now:
            self._fire_dials(now)
        if self._rotation and not self._closing:
            self._fire_rotation(now)

    def _fire_dials(self, now: float) -> None:
        """Dial the wanted peers whose turn it is, and note when the next one's comes."""
        following = None
        for peer, wanted in self._wants.items():
            if wanted.dialling is not None or peer in self._pairs:
                # When that ends, whoever ends it says when to dial.
                continue
            if wanted.next_dial_at <= now:
                address = wanted.addresses[wanted.failures % len(wanted.addresses)]
                wanted.dialling = self.dial(address, peer, now)
            elif following is None or wanted.next_dial_at < following:
                following = wanted.next_dial_at
        # Last: a dial that raised is tried again.
        self._dial_at = following

    def _dial_later(self, wanted: _Wanted, at: float) -> None:
        wanted.next_dial_at = at
        if self._dial_at is None or at < self._dial_at:
            self._dial_at = at

    def _arm(self, link: Link) -> None:
        due = link.next_deadline()
        if link.timer is not None and link.timer <= due:
            # It fires a little early, finds nothing due, and is armed again.
            return
        link.timer = due
        self._timer_number += 1
        heapq.heappush(self._timers, (due, self._timer_number, link))

    # --- events of links ------------------------------------------------------------------------

    def poll(self) -> list[Event]:
        """Return what happened since the last call."""
        self._take_fed()
        events, self._events = self._events, []
        return events

    @property
    def has_events(self) -> bool:
        """Whether `poll` has something to return."""
        return bool(self._events)

    def _take(self, link: Link, now: float) -> None:
        """Take a link's events; what it says before it is greeted never gets further."""
        try:
            events, hellos, shaken = link.take_events(now)
            if shaken and not link.dialled and link.state is LinkState.GREETING:
                link.greet(self._make_hello(link))
            self._refresh_cids(link)
            for hello in hellos:
                self._on_hello(link, hello, now)
        except Exception:
            self._hard_drop(link, now)
            return
        peer = link.engine.peer_id
        pair = self._pairs.get(peer) if peer is not None else None
        if link.state in (LinkState.UP, LinkState.DRAINING) or link.announced:
            self._events += events
            for event in events:
                if isinstance(event, Received) and isinstance(event.message, Wanted):
                    self._on_wanted(link, now)
        if pair is not None:
            if pair.up is link:
                self._events += link.writable()
            if pair.contenders:
                self._settle(pair, now)
        if link.state in (LinkState.CLOSING, LinkState.CLOSED):
            self._on_ended(link, now)

    def _refresh_cids(self, link: Link) -> None:
        current = link.engine.connection_ids
        known = link.connection_ids
        for cid in current:
            if cid not in known:
                known.add(cid)
                self._by_cid[cid] = link
        if len(known) > len(current) + 2:
            live = set(current)
            for cid in [each for each in known if each not in live]:
                known.discard(cid)
                if self._by_cid.get(cid) is link:
                    del self._by_cid[cid]

    def _make_hello(self, link: Link) -> Hello:
        peer = link.peer
        return Hello(
            major=wire.MAJOR,
            minor=wire.MINOR,
            features=self._features,
            cluster=self._credentials().cluster,
            record=self._record(),
            datagram_bytes_max=self._settings.packet_bytes,
            link_id=new_link_id(),
            wanted=self._wants_link(peer),
            replaces=link.replaces,
            yours=self._yours(peer),
        )

    def _wants_link(self, peer: NodeId) -> bool:
        return peer in self._wants or self._wanted(peer)

    def _on_hello(self, link: Link, hello: Hello, now: float) -> None:
        if hello.major != wire.MAJOR:
            link.close(CloseCode.VERSION, f"wire version {wire.MAJOR} is spoken", now)
            return
        if hello.cluster != self._credentials().cluster:
            link.close(CloseCode.WRONG_CLUSTER, "another cluster", now)
            return
        if hello.record.node_id != link.peer:
            link.close(CloseCode.IDENTITY_MISMATCH, "record of another identity", now)
            return
        if (hello.features ^ self._features) & Feature.UNSIGNED:
            link.close(CloseCode.VERSION, _SIGN_DIFFERS, now)
            return
        if self._judge_hello is not None:
            hello, refusal = self._judge_hello(hello, now)
            if refusal:
                link.close(CloseCode.IDENTITY_MISMATCH, f"record is {refusal}", now)
                return
            link.hello = hello
        if link.dialled:
            link.greet(self._make_hello(link))
        self._half_open.pop(link, None)
        link.become_up(now)
        self._on_greeted(link, hello, now)

    def _on_greeted(self, link: Link, hello: Hello, now: float) -> None:
        """Decide between links of one pair.

        A newer epoch wins at once: the peer has restarted. A link that says `replaces` replaces.
        With equal epochs nobody is refused before the incumbent has proved itself: it is pinged;
        no answer within a second, and the newcomer wins; an answer, and the dials have crossed:
        the one dialled by the smaller NodeId stays (of two that one side dialled, the one whose
        dialler's link_id is smaller: both ends see that), and the other delivers what it holds.
        """
        peer = link.peer
        wanted = self._wants.get(peer)
        if wanted is not None and wanted.dialling is link:
            wanted.dialling = None
        pair = self._pairs.get(peer)
        if pair is None:
            self._pairs[peer] = _Pair(link)
            link.announced = True
            self._events.append(LinkUp(link, peer, hello, link.address if link.dialled else None))
            self._rotate_if_older(link, now)
            return
        incumbent = pair.up
        assert incumbent.hello is not None
        old, new = incumbent.hello.record.epoch, hello.record.epoch
        replaces = link.replaces or hello.replaces
        if new > old:
            for each in (incumbent, *pair.others()):
                each.close(CloseCode.DUPLICATE_LINK, "peer restarted", now)
                self._touched[each] = None
            self._events.append(
                LinkDown(incumbent, peer, CloseCode.DUPLICATE_LINK, "peer restarted", False)
            )
            self._pairs[peer] = _Pair(link)
            link.announced = True
            self._events.append(LinkUp(link, peer, hello, link.address if link.dialled else None))
            self._rotate_if_older(link, now)
        elif new < old:
            link.close(CloseCode.DUPLICATE_LINK, "older epoch", now)
        elif replaces and replaces in (incumbent.link_id, incumbent.hello.link_id):
            self._replace(pair, link, now)
        elif len(pair.others()) >= PAIR_LINKS_MAX:
            # One identity must not take the place of all others.
            self.counters.links_over_pair += 1
            link.close(CloseCode.OVERLOADED, "too many links", now)
        else:
            pair.contenders.append(link)
            incumbent.ping_incumbent(now)
            self._touched[incumbent] = None

    def _settle(self, pair: _Pair, now: float) -> None:
        incumbent = pair.up
        if incumbent.state is not LinkState.UP or incumbent.incumbent_failed:
            self._fail_over(pair, now)
            return
        if not incumbent.incumbent_proved:
            return
        contenders, pair.contenders = pair.contenders, []
        for link in contenders:
            if link.state is not LinkState.UP:
                continue
            if self._rank(link) < self._rank(pair.up):
                self._replace(pair, link, now)
            else:
                link.drain(now)
                link.announced = True
                pair.draining.append(link)
                self._touched[link] = None

    def _rank(self, link: Link) -> tuple[bool, bytes]:
        """Of two links of a pair whose dials crossed the smaller stays; both ends agree on it."""
        assert link.hello is not None
        if link.dialled:
            return (self._me > link.peer, link.link_id)
        return (link.peer > self._me, link.hello.link_id)

    def _replace(self, pair: _Pair, link: Link, now: float) -> None:
        old, pair.up = pair.up, link
        if link in pair.contenders:
            pair.contenders.remove(link)
        old.drain(now)
        pair.draining.append(old)
        link.announced = True
        link.inherit(old)
        self.counters.replaced += 1
        self._touched[old] = self._touched[link] = None
        assert link.hello is not None
        self._events.append(LinkReplaced(link, link.peer, link.hello))
        self._rotate_if_older(link, now)
        wants = self._wants_link(link.peer)
        if wants != link.told_wanted:
            # It changed after our hello, and was told on the older link.
            self._tell_wanted(link, wants)
        if pair.contenders:
            link.ping_incumbent(now)

    def _fail_over(self, pair: _Pair, now: float) -> None:
        """The incumbent is gone or silent: what it held is lost, so the peer is new to the core."""
        old = pair.up
        living = [each for each in pair.contenders if each.state is LinkState.UP]
        if not living:
            return
        link = living[0]
        pair.contenders.remove(link)
        pair.up = link
        if old.state is LinkState.UP:
            old.close(CloseCode.DUPLICATE_LINK, "silent", now)
            self._touched[old] = None
        link.announced = True
        assert link.hello is not None
        self._events.append(LinkDown(old, link.peer, old.close_code, old.close_reason, False))
        self._events.append(
            LinkUp(link, link.peer, link.hello, link.address if link.dialled else None)
        )
        self._rotate_if_older(link, now)

    def _on_wanted(self, link: Link, now: float) -> None:
        peer = link.peer
        if not link.peer_wants and peer not in self._wants:
            pair = self._pairs.get(peer)
            if pair is not None and pair.up is link:
                self._close_pair(pair, CloseCode.GOING_AWAY, "not wanted", now)

    def _close_pair(self, pair: _Pair, code: int, reason: str, now: float) -> None:
        links = (pair.up, *pair.others())
        for link in links:
            link.close(code, reason, now)
            self._touched[link] = None
        for link in links:
            self._on_ended(link, now)

    def _tell_wanted(self, link: Link, wanted: bool) -> None:
        link.told_wanted = wanted
        link.send(Wanted(wanted))
        self._touched[link] = None

    def _abandon(self, link: Link, now: float) -> None:
        """Nobody needs this dial any more: end it, and tell nobody."""
        link.close(CloseCode.GOING_AWAY, "not wanted", now)
        link.ended = True
        self._touched[link] = None

    def _on_ended(self, link: Link, now: float) -> None:
        """A link is closing or closed: tell once, and forget it when its last words are out."""
        if link.state is LinkState.CLOSED:
            self._forget(link)
        if link.ended:
            return
        link.ended = True
        self._half_open.pop(link, None)
        if link.close_code == CloseCode.LIMIT_EXCEEDED and not link.closed_by_peer:
            self._tell_security("limit.hit", peer=link.engine.peer_id, what=link.close_reason)
        if not link.greeted:
            self._on_never_up(link, now)
            return
        pair = self._pairs.get(link.peer)
        if pair is None:
            return
        for group in (pair.contenders, pair.draining):
            if link in group:
                group.remove(link)
                return
        if pair.up is not link:
            return
        if any(each.state is LinkState.UP for each in pair.contenders):
            self._fail_over(pair, now)
            return
        del self._pairs[link.peer]
        for other in pair.others():
            other.close(CloseCode.GOING_AWAY, "pair is down", now)
            self._touched[other] = None
        self._events.append(
            LinkDown(link, link.peer, link.close_code, link.close_reason, link.closed_by_peer)
        )
        wanted = self._wants.get(link.peer)
        if wanted is not None:
            if link.close_code in _REFUSALS:
                # Refused by our hello: for a dialler the link was up before the other end judged.
                wait = self._back_off(wanted)
            else:
                wanted.failures = 0
                wait = self._rng.uniform(*FIRST_REDIAL_S)
            self._dial_later(wanted, self._redial_at(link.peer, wait, now))

    def _back_off(self, wanted: _Wanted) -> float:
        """The next wait after a failure: exponential, full jitter, never quite nothing."""
        first, largest = self._settings.redial_s
        wait = self._rng.uniform(0.0, min(largest, first * 2 ** min(wanted.failures, 16)))
        wanted.failures += 1
        return max(wait, FIRST_REDIAL_S[0])

    def _redial_at(self, peer: NodeId, wait_s: float, now: float) -> float:
        """Both ends want the link back at the same moment: the larger NodeId waits longer."""
        if self._me > peer:
            wait_s += self._rng.uniform(*LARGER_WAITS_S)
        return now + wait_s

    def _on_never_up(self, link: Link, now: float) -> None:
        failure = link.engine.failure
        if failure is not None:
            self.counters.rejected += 1
            self._tell_rejection(link, now)
        if not link.dialled:
            return
        if link.expected is None or link.expected not in self._pairs:
            refused = link.alert in _OUR_FAULT_ALERTS
            self._events.append(
                DialFailed(link.address, link.expected, self._explain(link), refused)
            )
        wanted = self._wants.get(link.expected) if link.expected is not None else None
        if wanted is None or wanted.dialling is not link or link.expected is None:
            return
        wanted.dialling = None
        wait = self._back_off(wanted)
        if link.alert in _OUR_FAULT_ALERTS:
            wait = max(wait, self._settings.refused_floor_s)
        self._dial_later(wanted, self._redial_at(link.expected, wait, now))

    def _explain(self, link: Link) -> PlumtreeError:
        where = _show(link.address)
        failure = link.engine.failure
        if failure is not None:
            fix = next((each.fix for each in CHECKS if each.step == failure.step), "")
            if failure.reason == OWN_IDENTITY:
                fix = "give every node a certificate of its own"
            return IdentityError(
                f"we refused {where} at step {failure.step} of the check: {failure.reason} ({fix})"
            )
        if link.alert is not None:
            return IdentityError(
                f"{where} refused us with TLS alert {link.alert} ({_alert_name(link.alert)}); "
                "compare the two certificates with `plumtree-quic certs inspect`"
            )
        match link.close_code:
            case CloseCode.WRONG_CLUSTER:
                return IdentityError(
                    f"{where} belongs to another cluster than {self._credentials().cluster!r}; "
                    "give both the same cluster name"
                )
            case CloseCode.VERSION:
                if link.close_reason == _SIGN_DIFFERS:
                    return LinkError(f"{where}: {_SIGN_DIFFERS}; give all nodes the same `sign`")
                return LinkError(f"{where} speaks another wire version; upgrade the older node")
            case CloseCode.IDENTITY_MISMATCH:
                return IdentityError(
                    f"{where} sent a record that is not its own: {link.close_reason}"
                )
            case 0:
                return LinkError(
                    f"no answer from {where} within {self._settings.handshake_s:g} s: nothing "
                    "listens there, or UDP does not pass"
                )
        return LinkError(f"{where} closed the link: code {link.close_code:#x} {link.close_reason}")

    def _forget(self, link: Link) -> None:
        if link not in self._links:
            return
        del self._links[link]
        self._half_open.pop(link, None)
        if not link.dialled:
            host = link.first_host
            self._per_address[host] -= 1
            if not self._per_address[host]:
                del self._per_address[host]
        for cid in link.connection_ids:
            if self._by_cid.get(cid) is link:
                del self._by_cid[cid]
        link.connection_ids.clear()

    def _hard_drop(self, link: Link, now: float) -> None:
        """An exception came out of a connection: end it by our own hand, asking it for nothing."""
        self._note_error()
        link.state = LinkState.CLOSED
        link.close_reason = link.close_reason or "internal error"
        self._on_ended(link, now)

    def _note_error(self) -> None:
        self.counters.hard_dropped += 1
        if self.counters.hard_dropped <= REJECTIONS_PER_MINUTE:
            logger.warning("a connection was dropped after an internal error", exc_info=True)

    # --- the security log -----------------------------------------------------------------------

    def _tell_security(self, kind: str, **fields: object) -> None:
        self._events.append(SecurityEvent(kind, fields))

    def _may_tell(self, told: list[float], now: float) -> bool:
        """At most ten lines a minute of a kind that strangers can cause; counters have them all."""
        told[:] = [at for at in told if at > now - 60.0]
        if len(told) >= REJECTIONS_PER_MINUTE:
            return False
        told.append(now)
        return True

    def _tell_rejection(self, link: Link, now: float) -> None:
        failure = link.engine.failure
        assert failure is not None
        # Whatever strangers do: that somebody has our key must not drown among them.
        if failure.reason == OWN_IDENTITY and self._may_tell(self._conflicts_told, now):
            self._tell_security("identity.conflict", address=_show(link.address))
        if not self._may_tell(self._rejections_told, now):
            return
        self._tell_security(
            "handshake.rejected",
            step=failure.step,
            alert=failure.alert,
            reason=failure.reason,
            detail=_escape(failure.detail),
            address=_show(link.address),
            dialled=link.dialled,
            **_describe(link.engine.peer_certificates),
        )


def _wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _show(address: Address) -> str:
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _describe(certificates: tuple[x509.Certificate, ...]) -> dict[str, object]:
    """Who knocked, as far as a certificate says so that nobody has believed: for the log."""
    if not certificates:
        return {}
    leaf = certificates[0]
    described: dict[str, object] = {
        "leaf_sha256": leaf.fingerprint(hashes.SHA256()).hex(),
        "not_after": leaf.not_valid_after_utc.isoformat(),
    }
    try:
        described["subject"] = _escape(leaf.subject.rfc4514_string())
        described["issuer"] = _escape(leaf.issuer.rfc4514_string())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        described["identities"] = _escape(" ".join(uris))
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        # What does not parse is not described; the fingerprint finds it.
        pass
    return described


def _escape(text: str) -> str:
    return ascii(text)[1:-1][:200]


_ALERTS = {
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    80: "internal_error",
    116: "certificate_required",
    120: "no_application_protocol",
}


def _alert_name(alert: int) -> str:
    return _ALERTS.get(alert, "unknown")
