"""Nothing takes a sender from a frame: who sent a message is whose certificate its link has."""

import attrs
import pytest

from plumtree_quic import messages
from plumtree_quic.ids import MemberKey, NodeId
from plumtree_quic.messages import LANE_OF
from tests.rigs.wire_examples import DATAGRAMS, STREAMS

# Who *speaks*, where that is not who sends: each of these is signed by that member.
SPEAKERS = {"Record.node_id", "Fact.subject", "Fact.signer", "Bundle.origin"}
# Of whom something is said or asked: never who says it.
OBJECTS = {
    "Announcement.origin", "DigestRow.origin", "GraftEntry.origin", "GraftRefused.origin",
    "Prune.origins", "RecordsWanted.keys", "Row.key", "Coverage.origin", "CoverageWanted.origin",
}  # fmt: skip
EVERY = {type(each) for group in (*STREAMS.values(), *DATAGRAMS.values()) for each in group}


def classes(kind, seen=None):
    """`kind` and every message class inside its fields."""
    seen = {} if seen is None else seen
    if kind in seen or not attrs.has(kind):
        return seen
    seen[kind] = True
    for field in attrs.fields(kind):
        for inner in vars(messages).values():
            if isinstance(inner, type) and attrs.has(inner) and inner.__name__ in str(field.type):
                classes(inner, seen)
    return seen


def names_somebody(field):
    text = str(field.type)
    return any(name in text for name in (NodeId.__name__, MemberKey.__name__))


@pytest.mark.parametrize("kind", sorted(EVERY, key=lambda each: each.__name__))
def test_no_field_of_a_message_says_who_sends_it(kind):
    for inner in classes(kind):
        for field in attrs.fields(inner):
            assert field.name not in ("sender", "source", "from_", "peer", "author")
            if names_somebody(field):
                assert f"{inner.__name__}.{field.name}" in SPEAKERS | OBJECTS


def test_every_message_is_walked():
    assert set(LANE_OF) | set(messages.DATAGRAM_TYPES) == EVERY
