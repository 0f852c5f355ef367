"""A member that lies, on real links: what the simulator shows for clusters, shown for the wire.

Three nodes over loopback QUIC, one of them turned: it says what a test wants, signed with the one
key that it has. The rules and their bounds are those of docs/security.md.
"""

import asyncio
import contextlib

import attrs
import pytest

from plumtree_quic import Delegate, MemberState, Node, PlumtreeConfig, QuicConfig, wire
from plumtree_quic.ids import NodeId, member_key
from plumtree_quic.messages import Announcement, Facts, Gossip, IHave, Ping, Records, Repair
from plumtree_quic.proto.effects import Push, Send
from plumtree_quic.proto.members import INCARNATION_STEP_MAX
from plumtree_quic.security.signatures import Kind, fact_kind
from tests.rigs.byzantine import altered, answer_with_garbage, claim_to_hold_everything, withhold
from tests.rigs.waiting import WAIT_S, linked, until

ALIVE, SUSPECT = MemberState.ALIVE, MemberState.SUSPECT
DEAD, LEFT = MemberState.DEAD, MemberState.LEFT


class Watch(Delegate):
    def __init__(self):
        self.events, self.lost = [], []

    def on_security_event(self, kind, fields):
        self.events.append((kind, dict(fields)))

    def on_member_failed(self, node_id):
        self.lost.append(node_id)

    def on_member_left(self, node_id):
        self.lost.append(node_id)

    def refused(self):
        return [(each["what"], each["reason"]) for kind, each in self.events
                if kind == "signature.refused"]  # fmt: skip


@attrs.define
class Scene:
    """a is lied to about b; evil lies."""

    a: Node
    b: Node
    evil: Node
    watch: Watch

    def say(self, *messages):
        driver = self.evil._driver
        for message in messages:
            driver._endpoint.link(self.a.id).send(message)
        driver._schedule_turn()

    def ping(self, message):
        driver = self.evil._driver
        now = asyncio.get_running_loop().time()
        driver._endpoint.link(self.a.id).send_datagram(message, now + 5)
        driver._schedule_turn()

    def signed(self, kind, of=None):
        """Under evil's own key, or pretending that it is that of `of`."""
        signed = self.evil._driver._signed(kind)
        if of is not None:
            signed["key_id"] = of._driver._signer.key_id
        return signed

    def fact(self, state, *, signer=None, of=None, epoch=None, incarnation=0):
        signer = signer if signer is not None else self.b
        return wire.build_fact(
            subject=member_key(self.b.id),
            epoch=self.b._driver.epoch if epoch is None else epoch,
            incarnation=incarnation,
            state=state,
            signer=member_key(signer.id),
            **self.signed(fact_kind(state), of),
        )

    def record(self, node_id, *, of=None, addresses=("127.0.0.1:1",), incarnation=9):
        driver = (of or self.evil)._driver
        return wire.build_record(
            node_id=node_id,
            epoch=driver.epoch,
            incarnation=incarnation,
            addresses=addresses,
            valid_until=1 << 47,
            chain=driver._signer.chain,
            **self.signed(Kind.RECORD, of),
        )

    def twist(self, change):
        """From now on everything that evil would send to anybody becomes `change(message)`."""
        driver = self.evil._driver
        honest_send, honest_push = driver._send, driver._push

        def send(effect):
            for message in change(effect.message):
                honest_send(Send(effect.peer, message))

        def push(effect, now):
            for message in change(effect.message):
                if isinstance(message, Gossip):
                    honest_push(Push(effect.peers, message), now)
                    continue
                for peer in effect.peers:
                    honest_send(Send(peer, message))

        driver._send, driver._push = send, push

    def row(self, of=None):
        """How a holds b, or `of`."""
        return self.a._driver.core.table.get(member_key((of or self.b).id))

    def member(self):
        return next(each for each in self.a.members() if each.node_id == self.b.id)


def node(pki, name, delegate=None, config=None):
    cert = pki.node(name)
    quic = QuicConfig.from_pem(cert=cert.cert_pem, key=cert.key_pem, ca=pki.ca_pem)
    config = config or PlumtreeConfig.lan()
    return Node(quic, config, listen="127.0.0.1:0", delegate=delegate)


@pytest.fixture
async def scene(pki):
    watch = Watch()
    async with contextlib.AsyncExitStack() as stack:
        a, b, evil = nodes = [node(pki, "a", watch), node(pki, "b"), node(pki, "evil")]
        for each in nodes:
            await stack.enter_async_context(each)
        for each in (b, evil):
            await each.join([a.address])
        for each in nodes:
            await each.wait_for_peers(2)
        await linked(nodes)
        yield Scene(a, b, evil, watch)


async def heard(scene):
    """Everything that was said has been looked at: what follows it on the lane is there."""
    before = scene.a.stats()["messages_delivered"]
    await scene.evil.broadcast(b"and that was all")
    await until(lambda: scene.a.stats()["messages_delivered"] > before)
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("state", [ALIVE, LEFT])
async def test_nobody_speaks_for_another_on_the_wire(scene, state):
    scene.say(Facts((scene.fact(state),)))
    scene.say(Facts((scene.fact(state, of=scene.b),)))
    await until(lambda: len(scene.watch.refused()) == 2)
    assert scene.watch.refused() == [
        ("fact", "not signed by who is said to speak"),
        ("fact", "not signed by the key that it names"),
    ]
    assert scene.member().state is ALIVE
    assert scene.watch.lost == []


async def test_what_is_forged_on_a_probe_is_taken_off_and_the_probe_is_answered(scene):
    answered = scene.a.stats()["swim_pings_received"]
    scene.ping(Ping(b"12345678", (scene.fact(LEFT, of=scene.b),)))
    await until(lambda: scene.watch.refused())
    await until(lambda: scene.a.stats()["swim_pings_received"] > answered)
    assert scene.member().state is ALIVE


async def test_a_member_that_is_accused_answers_and_stays(scene):
    scene.say(Facts((scene.fact(SUSPECT, signer=scene.evil),)))
    await until(lambda: scene.member().incarnation > 0)
    assert scene.member().state is ALIVE
    assert scene.watch.lost == []


async def test_accusations_in_another_members_name_are_no_votes_on_the_wire(scene):
    other = scene.a
    scene.say(Facts((scene.fact(SUSPECT, signer=other, of=other),)))
    await until(lambda: scene.watch.refused())
    assert scene.member().state is ALIVE
    assert scene.member().incarnation == 0


async def test_members_and_addresses_cannot_be_invented_on_the_wire(scene):
    ghost = NodeId.parse("spiffe://test/node/ghost")
    scene.say(Records((scene.record(ghost), scene.record(scene.b.id))))
    scene.say(Records((scene.record(scene.b.id, of=scene.b),)))
    await until(lambda: len(scene.watch.refused()) == 3)
    assert {each.node_id.name for each in scene.a.members()} == {"a", "b", "evil"}
    assert scene.member().addresses == (scene.b.address,)


async def test_an_old_record_and_an_old_fact_change_nothing(scene):
    table = scene.evil._driver.core.table
    row = table.get(member_key(scene.b.id))
    old = row.record, row.spoken
    scene.say(Facts((scene.fact(SUSPECT, signer=scene.evil),)))
    await until(lambda: scene.member().incarnation > 0)
    newest = scene.member().incarnation
    scene.say(Records((old[0],), (old[1],)), Facts((old[1],)))
    await heard(scene)
    assert scene.member().incarnation == newest
    # They were true once: telling them again is no offence.
    assert scene.watch.refused() == []
    assert scene.a.stats()["strikes"] == 0


@pytest.mark.parametrize("carrier", [Gossip, Repair])
async def test_a_bundle_with_another_body_is_not_delivered_and_the_true_one_is(scene, carrier):
    read = scene.a.subscribe()
    true = wire.build_bundle(
        origin=member_key(scene.b.id),
        epoch=scene.b._driver.epoch,
        first=1,
        messages=[("", b"true")],
        **scene.b._driver._signed(Kind.BUNDLE),
    )
    scene.say(carrier(1, altered(true)))
    await until(
        lambda: scene.watch.refused() == [("bundle", "not signed by the key that it names")]
    )
    await scene.b.broadcast(b"true")
    async for message in read:
        assert (message.origin, message.payload) == (scene.b.id, b"true")
        break


async def test_announcing_what_does_not_exist_is_in_nobodys_way(scene):
    key, epoch = member_key(scene.b.id), scene.b._driver.epoch
    scene.say(IHave((Announcement(key, epoch, 1, 900, 0),)))
    await asyncio.sleep(0.2)
    read = scene.a.subscribe()
    for number in range(20):
        await scene.b.broadcast(b"%d" % number)
    got = []
    async with asyncio.timeout(WAIT_S):
        async for message in read:
            got.append(int(message.payload))
            if len(got) == 20:
                break
    assert got == list(range(20))


async def test_its_own_incarnation_rises_by_a_bounded_step(scene):

    driver = scene.evil._driver
    high = wire.build_fact(
        subject=member_key(scene.evil.id),
        epoch=driver.epoch,
        incarnation=INCARNATION_STEP_MAX + 1_000,
        state=ALIVE,
        signer=member_key(scene.evil.id),
        **driver._signed(Kind.FACT),
    )
    scene.say(Facts((high,)))
    await heard(scene)
    row = scene.a._driver.core.table.get(member_key(scene.evil.id))
    assert row.incarnation <= INCARNATION_STEP_MAX


async def test_a_flood_of_accusations_removes_nobody_on_the_wire(scene):
    """At whatever incarnation its victim has got to, and above it."""
    for _ in range(100):
        at = scene.row().incarnation
        accusation = scene.fact(SUSPECT, signer=scene.evil, incarnation=at)
        driver = scene.evil._driver
        for link in driver._endpoint.links():
            link.send(Facts((accusation,)))
            link.send(Facts((scene.fact(SUSPECT, signer=scene.evil, incarnation=at + 1_000),)))
        driver._schedule_turn()
        await asyncio.sleep(0.01)
    await heard(scene)
    await until(lambda: scene.member().state is ALIVE)
    assert 0 < scene.b._driver.core.record.incarnation < 1_000
    assert scene.watch.lost == []
    assert scene.a.stats()["strikes"] == scene.b.stats()["strikes"] == 0


async def test_an_accusation_far_ahead_makes_its_victim_say_nothing_that_others_refuse(scene):
    await until(lambda: scene.evil._driver.linked(scene.b.id))
    link = scene.evil._driver._endpoint.link(scene.b.id)
    far = scene.fact(SUSPECT, signer=scene.evil, incarnation=INCARNATION_STEP_MAX)
    link.send(Facts((far, scene.fact(SUSPECT, signer=scene.evil))))
    scene.evil._driver._schedule_turn()
    await until(lambda: scene.member().incarnation == 1)
    assert scene.b._driver.core.record.incarnation == 1
    assert scene.a.stats()["strikes"] == 0


async def test_the_dead_are_not_brought_back_by_what_they_once_said(pki):
    config = PlumtreeConfig(probe_interval=0.5, probe_timeout=0.25, suspicion_timeout=1.0)
    async with (
        node(pki, "a", config=config) as a,
        node(pki, "b") as b,
        node(pki, "evil", config=config) as evil,
    ):
        for each in (b, evil):
            await each.join([a.address])
        await until(lambda: len(a.peers()) == len(evil.peers()) == 2)
        scene = Scene(a, b, evil, Watch())
        row = evil._driver.core.table.get(member_key(b.id))
        record, spoken = row.record, row.spoken
        assert spoken is not None
        # b is cut off from everybody.
        b._driver._endpoint.receive = lambda *_: None
        b._driver._socket.send = lambda _: None
        await until(lambda: scene.row().state is DEAD)
        for _ in range(5):
            scene.say(Records((record,), (spoken,)), Facts((spoken,)))
            scene.ping(Ping(b"12345678", (spoken,)))
        await heard(scene)
        assert scene.row().state is DEAD


async def test_an_old_farewell_does_not_remove_who_came_back(pki):
    watch = Watch()
    async with node(pki, "a", watch) as a, node(pki, "evil") as evil:
        async with node(pki, "b") as b:
            for each in (b, evil):
                await each.join([a.address])
            await until(lambda: len(evil.members()) == 3)
            await b.leave()
            await until(lambda: watch.lost == [b.id])
            table = evil._driver.core.table
            await until(lambda: table.state_of(member_key(b.id)) is LEFT)
            farewell = table.get(member_key(b.id)).spoken
        async with node(pki, "b") as b:
            await b.join([a.address])
            scene = Scene(a, b, evil, watch)
            await until(lambda: scene.member().state is ALIVE)
            scene.say(Facts((farewell,)))
            await heard(scene)
            assert scene.member().state is ALIVE
            assert watch.lost == [b.id]


async def test_who_claims_to_sit_at_anothers_address_takes_nothing_from_it(scene):
    driver = scene.evil._driver
    moved = wire.build_record(
        node_id=scene.evil.id,
        epoch=driver.epoch,
        incarnation=3,
        addresses=(scene.b.address,),
        valid_until=driver.core.record.valid_until,
        chain=driver._signer.chain,
        **driver._signed(Kind.RECORD),
    )
    scene.say(Records((moved,)))
    await until(lambda: scene.row(scene.evil).record.addresses == (scene.b.address,))
    # Its link ends, and is dialled where it claims to be: b answers, and is not who was meant.
    now = asyncio.get_running_loop().time()
    scene.a._driver._endpoint.link(scene.evil.id).close(0x10, "again", now)
    scene.a._driver.dial_member(scene.evil.id)
    await scene.b.broadcast(b"still here")
    await until(lambda: scene.a.stats()["messages_delivered"] == 1)
    assert scene.member().state is ALIVE
    assert scene.member().addresses == (scene.b.address,)
    assert scene.watch.lost == []


@pytest.mark.parametrize("lie", [withhold, answer_with_garbage])
async def test_who_announces_and_does_not_deliver_costs_a_try_and_no_message(scene, lie):
    scene.twist(lie)
    read = scene.a.subscribe()
    for number in range(20):
        await scene.b.broadcast(b"%d" % number)
        await asyncio.sleep(0.01)
    got = []
    async with asyncio.timeout(WAIT_S):
        async for message in read:
            got.append(int(message.payload))
            if len(got) == 20:
                break
    assert sorted(got) == list(range(20))


async def test_garbage_in_answer_to_a_graft_is_refused_and_another_is_asked(scene):
    """Nobody else has announced it yet: the liar is asked first, and b when it announces."""
    scene.twist(answer_with_garbage)
    scene.b._driver._push = lambda effect, now: [
        scene.b._driver._send(Send(peer, effect.message))
        for peer in effect.peers
        if peer != scene.a.id
    ]
    await scene.b.broadcast(b"true")
    await until(lambda: scene.a.stats()["messages_delivered"] == 1)
    assert ("bundle", "not signed by the key that it names") in scene.watch.refused()


async def test_who_greets_a_joiner_first_does_not_make_it_deaf_on_the_wire(scene, pki):
    await scene.b.broadcast(b"before its time")
    await until(lambda: scene.evil.stats()["messages_delivered"] == 1)
    scene.twist(claim_to_hold_everything)
    async with node(pki, "joiner") as joiner:
        await joiner.join([scene.evil.address])
        await joiner.wait_for_peers(3, timeout=WAIT_S)
        core = joiner._driver.core
        await until(lambda: core.broadcasts.stats()["digests_received"] >= 3)
        for _ in range(3):
            await scene.b.broadcast(b"of its time")
        await until(lambda: joiner.stats()["messages_delivered"] == 3)
