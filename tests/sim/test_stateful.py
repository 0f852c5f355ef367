"""A cluster under whatever Hypothesis thinks of, one step after the other; it shrinks what fails.

The journal checks every rule that holds at any time, as it runs. When the steps are over the
weather clears, and all who live must agree and have everything.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plumtree_quic import PlumtreeConfig
from plumtree_quic.config import SyncConfig
from plumtree_quic.messages import MemberState
from plumtree_quic.sim.cluster import Cluster
from plumtree_quic.sim.faults import CALM, WIDE, Weather

NODES_MAX = 7
SEEDS = ("n000", "n001")
CALM_S = 180.0
LOSSY = Weather(loss=0.2, duplicate=0.1, replay=0.05, jitter_s=0.01)
# Histories longer than the cache are another promise; here all can be repaired.
CONFIG = PlumtreeConfig.lan(
    message_cache_ttl=3_600.0,
    message_cache_max_size=1_000_000,
    eager_fanout=2,
    lazy_fanout=2,
    max_peers=4,
    sync=SyncConfig(sync_interval=5.0),
)

which = st.integers(min_value=0, max_value=NODES_MAX - 1)


class ClusterMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.cluster = None
        self.epochs = {}

    @initialize(seed=st.integers(0, 1_000), count=st.integers(2, 5))
    def begin(self, seed, count):
        self.cluster = Cluster(config=CONFIG, seed=seed)
        for number in range(count):
            self.start(number)
        self.cluster.run(1.0)

    def living(self):
        return sorted(name for name, host in self.cluster.hosts.items() if host.alive)

    def pick(self, number):
        names = self.living()
        return names[number % len(names)]

    @rule(number=which)
    def start(self, number):
        """A newcomer, or one that was killed, or a second start of one that runs."""
        name = f"n{number:03}"
        self.cluster.start(name, *(seed for seed in SEEDS if seed != name))

    @precondition(lambda self: self.cluster is not None and len(self.living()) > 1)
    @rule(number=which)
    def kill(self, number):
        self.cluster.crash(self.pick(number))

    @precondition(lambda self: self.cluster is not None and len(self.living()) > 1)
    @rule(number=which)
    def leave(self, number):
        host = self.cluster.hosts[self.pick(number)]
        if host.awake():
            host.leave()
            self.cluster.run(1.0)

    @rule(number=which, count=st.integers(1, 3))
    def publish(self, number, count):
        host = self.cluster.hosts[self.pick(number)]
        if host.awake() and not host.core.leaving:
            host.publish(*[bytes(40)] * count)

    @rule(number=which, seconds=st.sampled_from([0.3, 2.0, 8.0]))
    def pause(self, number, seconds):
        host = self.cluster.hosts[self.pick(number)]
        if host.awake():
            host.pause(seconds)

    @rule(number=which, seconds=st.sampled_from([0.6, 5.0, 20.0]))
    def suspend(self, number, seconds):
        host = self.cluster.hosts[self.pick(number)]
        if host.awake():
            host.suspend(seconds)

    @rule(
        number=which, frame_s=st.sampled_from([0.001, 0.05]), seconds=st.sampled_from([2.0, 20.0])
    )
    def slow_down(self, number, frame_s, seconds):
        self.cluster.hosts[self.pick(number)].slow_down(frame_s, seconds)

    @rule(number=which, ahead_s=st.sampled_from([-29.0, 0.0, 29.0]))
    def set_clock(self, number, ahead_s):
        host = self.cluster.hosts[self.pick(number)]
        if host.awake():
            host.set_clock(ahead_s)

    @rule(one=which, other=which, silent=st.booleans())
    def break_link(self, one, other, silent):
        self.cluster.break_link(self.pick(one), self.pick(other), silent=silent)

    @rule(one=which, other=which)
    def cut_one_way(self, one, other):
        self.cluster.cut(self.pick(one), self.pick(other))

    @rule(number=which)
    def part(self, number):
        names = sorted(self.cluster.identities)
        at = number % len(names)
        self.cluster.partition(names[:at], names[at:])

    @rule()
    def heal(self):
        self.cluster.network.heal()

    @rule(weather=st.sampled_from([CALM, WIDE, LOSSY]))
    def turn(self, weather):
        self.cluster.network.weather = weather

    @rule(seconds=st.sampled_from([0.05, 1.0, 10.0]))
    def wait(self, seconds):
        self.cluster.run(seconds)

    @invariant()
    def nobody_holds_itself_for_dead_and_no_epoch_falls(self):
        if self.cluster is None:
            return
        for name, host in self.cluster.hosts.items():
            if not host.alive:
                continue
            assert host.state_of(name) in (MemberState.ALIVE, MemberState.LEFT)
            assert host.epoch >= self.epochs.get(name, 0)
            self.epochs[name] = host.epoch

    def teardown(self):
        cluster = self.cluster
        if cluster is None:
            return
        cluster.calm()
        # Whoever knows the seeds alone finds the others through them, if one of them lives.
        if not set(SEEDS) & set(self.living()):
            self.start(0)
        cluster.run(CALM_S, lambda: cluster.agreed() and cluster.settled(), look_s=1.0)
        views = {name: sorted(host.view()) for name, host in cluster.hosts.items()}
        assert cluster.agreed(), views
        assert not cluster.journal.missing()


ClusterMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCluster = ClusterMachine.TestCase
