"""A member that lies: it has a good certificate and a working core, and says what a test wants.

It can sign with its own key alone. What it says in other names is made as well as it can be
without theirs: with the right identities, key ids and algorithms, under its own signature.
"""

import attrs

from plumtree_quic import wire
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import (
    Announcement,
    Bundle,
    Digest,
    DigestRow,
    Facts,
    Gossip,
    Graft,
    GraftRefused,
    IHave,
    MemberState,
    Records,
    RefusedReason,
    Repair,
)
from plumtree_quic.security.signatures import Kind, fact_kind


def sim_id(name):
    return NodeId.parse(f"spiffe://sim/node/{name}")


class Liar:
    """One host of a simulated cluster, turned."""

    def __init__(self, cluster, name):
        self.cluster, self.host = cluster, cluster.hosts[name]
        self.id, self.key = self.host.id, self.host.key
        cluster.liars.add(self.id)

    # --- saying -----------------------------------------------------------------------------

    def say(self, *messages, to=None):
        """Send these on every link, or on the one to `to`."""
        for peer, end in tuple(self.host.links.items()):
            if end.up and (to is None or peer.name == to):
                for message in messages:
                    end.send(message)

    def ping(self, message, to=None):
        """Send a probe on every link, or on the one to `to`."""
        for peer, end in tuple(self.host.links.items()):
            if end.up and (to is None or peer.name == to):
                end.send_datagram(message, 1.0)

    def twist(self, change):
        """From now on everything that it would send becomes what `change(message)` returns."""
        send = self.host._send

        def lie(end, message):
            for each in change(message):
                if each is message:
                    send(end, each)
                else:
                    end.send(each)

        self.host._send = lie

    def claim_in_digests(self, answer):
        """From now on every digest that it sends claims all that there will ever be of everybody.

        answer: what becomes of its Repair or GraftRefused: a list of messages.
        """

        def change(message):
            if isinstance(message, Digest):
                streams = [
                    (member_key(host.id), host.epoch) for host in self.cluster.hosts.values()
                ]
                rows = tuple(DigestRow(key, epoch, ((1, 1 << 40),)) for key, epoch in streams)
                return [attrs.evolve(message, rows=rows, past=False)]
            return answer(message) if isinstance(message, Repair | GraftRefused) else [message]

        self.twist(change)

    def dawdle(self, seconds):
        """From now on what it pushes leaves later; all else, announcements too, leaves at once.

        seconds: asked for each push: by how much.
        """
        send, after = self.host._send, self.cluster.time.after

        def later(end, message):
            if isinstance(message, Gossip):
                after(seconds(), lambda: end.up and end.send(message))
            else:
                send(end, message)

        self.host._send = later

    # --- forging ----------------------------------------------------------------------------

    def signed(self, kind, of=None):
        """What wire.build_* needs; `of`: claims that member's key, which it does not have."""
        claimed = self.cluster.hosts[of].key if of is not None else self.key
        return {
            "algorithm": claimed.algorithm,
            "key_id": claimed.key_id,
            "signed_at": self.cluster.wall_ms(),
            "sign": self.key.sign(kind),
        }

    def fact(self, subject, state, *, signer=None, of=None, epoch=None, incarnation=None):
        """A fact about `subject`, spoken by `signer` (itself by default)."""
        row = self.host.core.table.get(member_key(sim_id(subject)))
        return wire.build_fact(
            subject=member_key(sim_id(subject)),
            epoch=row.epoch if epoch is None else epoch,
            incarnation=row.incarnation if incarnation is None else incarnation,
            state=state,
            signer=member_key(sim_id(signer) if signer else self.id),
            **self.signed(fact_kind(state), of),
        )

    def record(self, name, *, of=None, incarnation=1, epoch=None, addresses=("liar.sim:1",)):
        """A record of `name`; `of`: under that member's certificate."""
        claimed = self.cluster.hosts[of].key if of is not None else self.key
        return wire.build_record(
            node_id=sim_id(name),
            epoch=epoch if epoch is not None else self.host.epoch,
            incarnation=incarnation,
            addresses=addresses,
            valid_until=self.cluster.wall_ms() + 3_600_000,
            chain=claimed.chain,
            **self.signed(Kind.RECORD, of),
        )

    def bundle(self, origin, first, payload=b"forged", *, of=None, epoch=None):
        """A bundle in the name of `origin`."""
        host = self.cluster.hosts.get(origin)
        return wire.build_bundle(
            origin=member_key(sim_id(origin)),
            epoch=epoch if epoch is not None else host.epoch,
            first=first,
            messages=[("", payload)],
            **self.signed(Kind.BUNDLE, of),
        )


def altered(bundle: Bundle) -> Bundle:
    """The bundle with another body, under its old signature."""
    raw = bytearray(bundle.raw)
    raw[-1] ^= 0xFF
    return wire.parse_bundle(bytes(raw))


def alter_bodies(message):
    """For `twist`: every bundle of others is passed on with another body."""
    if isinstance(message, Gossip | Repair):
        return [attrs.evolve(message, bundle=altered(message.bundle))]
    return [message]


def withhold(message):
    """For `twist`: announces, and neither pushes nor answers."""
    if isinstance(message, Gossip):
        bundle = message.bundle
        entry = Announcement(bundle.origin, bundle.epoch, bundle.first, bundle.last, 0)
        return [IHave((entry,))]
    return [] if isinstance(message, Repair | GraftRefused) else [message]


def claim_to_hold_everything(message):
    """For `twist`: of every origin in a digest it claims all that there will ever be."""
    if isinstance(message, Digest):
        rows = tuple(attrs.evolve(row, held=((1, 1 << 40),)) for row in message.rows)
        return [attrs.evolve(message, rows=rows)]
    return [message]


def say_busy(message):
    """For `claim_in_digests`: it is too busy to serve, for ever."""
    match message:
        case Repair(bundle=bundle):
            ranges = ((bundle.first, bundle.last),)
            return [GraftRefused(bundle.origin, bundle.epoch, ranges, RefusedReason.BUSY)]
        case _:
            return [attrs.evolve(message, reason=RefusedReason.BUSY)]


def say_nothing(message):
    """For `claim_in_digests`: no graft is answered."""
    return []


def say_gone(message):
    """For `claim_in_digests`: it never had any of it."""
    match message:
        case Repair(bundle=bundle):
            ranges = ((bundle.first, bundle.last),)
            return [GraftRefused(bundle.origin, bundle.epoch, ranges, RefusedReason.GONE)]
        case _:
            return [message]


def answer_with_garbage(message):
    """For `twist`: grafts are answered, with altered bodies; nothing is pushed."""
    if isinstance(message, Gossip):
        return withhold(message)
    return alter_bodies(message)


__all__ = [
    "Facts",
    "Graft",
    "Liar",
    "MemberState",
    "Records",
    "alter_bodies",
    "altered",
    "answer_with_garbage",
    "claim_to_hold_everything",
    "say_busy",
    "say_gone",
    "say_nothing",
    "sim_id",
    "withhold",
]
