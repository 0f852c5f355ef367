"""Every setting of the protocol: unit, range, trade-off, and where its default comes from. Never
addresses or credentials (node.py, security/credentials.py), and no setting without an effect.

All configurations are frozen and checked when they are made: `ConfigError` names the field, the
value and what is allowed. `attrs.evolve` makes a changed copy, checked again.

Durations are seconds as float. In environment variables and TOML files they may carry a unit:
``200ms``, ``1.5s``, ``2m``, ``1h``; a bare number is seconds. ``none`` stands for None.

Environment: ``PLUMTREE_<FIELD>``, and ``PLUMTREE_<GROUP>__<FIELD>`` for the parts
(``PLUMTREE_SYNC__SYNC_INTERVAL=1m``); ``PLUMTREE_PRESET`` names the base. TOML::

    [plumtree]
    preset = "lan"
    ihave_interval = "50ms"

    [plumtree.sync]
    sync_interval = "1m"

Where defaults come from: "guide" is the deployment guide of the Rust crate memberlist-plumtree,
whose names and preset values are kept; "guess" is said where nobody has measured.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

import attrs

from plumtree_quic.errors import ConfigError
from plumtree_quic.ids import ZONE_BYTES_MAX, check_text

if TYPE_CHECKING:
    from typed_settings.converters import TSConverter

__all__ = [
    "NODE_ENVIRONMENT",
    "PRESETS",
    "CompressionConfig",
    "HealthConfig",
    "PlumtreeConfig",
    "StorageConfig",
    "SyncConfig",
    "parse_duration",
]

PREFIX = "PLUMTREE_"
NODE_ENVIRONMENT = (
    "PLUMTREE_ADVERTISE_ADDR",
    "PLUMTREE_CA",
    "PLUMTREE_CERT",
    "PLUMTREE_CLUSTER",
    "PLUMTREE_CRL",
    "PLUMTREE_CRL_ON_STALE",
    "PLUMTREE_FLOOD_SCALE",
    "PLUMTREE_KEY",
    "PLUMTREE_KEY_PASSWORD",
    "PLUMTREE_LISTEN",
    "PLUMTREE_NO_SKIPS",
    "PLUMTREE_POLICY",
    "PLUMTREE_PRESET",
    "PLUMTREE_SECURITY_LOG",
    "PLUMTREE_SEEDS",
    "PLUMTREE_STATE_DIR",
    "PLUMTREE_TRUST_DOMAIN",
)
"""Variables that are not configuration fields: the node command's own, and the test suite's."""

# Kubernetes puts these into every pod when a Service's name begins with "plumtree".
_KUBERNETES = re.compile(
    r"PLUMTREE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?"
    r"|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)\Z",
    re.ASCII,
)

PRESETS = ("default", "lan", "wan", "large_cluster")

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s|m|h)?\Z", re.ASCII)
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}

_SPOKEN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}

_Config = TypeVar("_Config", bound="PlumtreeConfig")


# --- what one field allows ----------------------------------------------------------------------


def _refuse(field: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{field} is {value!r}; allowed: {allowed}")


def _to_float(value: object) -> object:
    """Whole numbers are welcome where a float is meant; anything else is left to the check."""
    return float(value) if type(value) is int else value


def _number(default: float, low: float, high: float, unit: str, *, or_zero: bool = False) -> Any:
    zero = "0, or " if or_zero else ""
    allowed = f"{zero}{low:g} to {high:g} {unit}"

    def check(_instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if type(value) is not float or not math.isfinite(value):
            raise _refuse(field.name, value, f"a number, {allowed}")
        if not low <= value <= high and not (or_zero and value == 0):
            raise _refuse(field.name, value, allowed)

    metadata = {"duration": unit == "s"}
    return attrs.field(default=default, converter=_to_float, validator=check, metadata=metadata)


def _seconds(default: float, low: float, high: float, *, or_zero: bool = False) -> Any:
    return _number(default, low, high, "s", or_zero=or_zero)


def _count(default: int | None, low: int, high: int, *, optional: bool = False) -> Any:
    allowed = f"{low} to {high}" + (", or None" if optional else "")

    def check(_instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if optional and value is None:
            return
        if type(value) is not int or not low <= value <= high:
            raise _refuse(field.name, value, f"a whole number, {allowed}")

    return attrs.field(default=default, validator=check)


def _one_of(default: object, values: tuple[object, ...]) -> Any:
    allowed = ", ".join(repr(value) for value in values)

    def check(_instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if not any(type(value) is type(each) and value == each for each in values):
            raise _refuse(field.name, value, allowed)

    return attrs.field(default=default, validator=check)


def _text(default: str, bytes_max: int) -> Any:
    allowed = f"a text of at most {bytes_max} bytes without control characters"

    def check(_instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
        if type(value) is not str:
            raise _refuse(field.name, value, allowed)
        try:
            check_text(value, bytes_max)
        except ConfigError:
            raise _refuse(field.name, value, allowed)

    return attrs.field(default=default, validator=check)


def _flag(default: bool) -> Any:
    return _one_of(default, (True, False))


def _is_part(_instance: object, field: "attrs.Attribute[Any]", value: object) -> None:
    kind = field.type
    assert isinstance(kind, type)
    if type(value) is not kind:
        raise _refuse(field.name, value, f"a {kind.__name__}")


# --- the parts ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SyncConfig:
    """Anti-entropy: finding what neither the tree nor the announcements brought."""

    enabled: bool = _flag(True)
    """Exchange digests with neighbours. Without it a message whose every announcement was lost
    stays lost here. True (the guide has it off; a promise of delivery needs it on)."""

    sync_interval: float = _seconds(30.0, 0.1, 86_400)
    """Seconds between comparisons with a random neighbour. Shorter repairs sooner and costs a frame
    of hashes (2 KB) more often. 30 s (guide)."""

    max_batch_size: int = _count(100, 1, 4_096)
    """Ranges of sequence numbers asked of one peer in one round. More heals faster and takes more
    of that peer's sync lane at once. 100 (guide)."""


@attrs.frozen(kw_only=True)
class StorageConfig:
    """What is kept beyond the cache: so that who was away catches up, and slow readers do."""

    enabled: bool = _flag(False)
    """Keep what was delivered: in `state_dir` on the disk when the node has one, else in memory.
    A `store` that is handed to the node is used whatever this says. Without a store a message can
    be asked of us for `message_cache_ttl`. False (guide)."""

    retention: float = _seconds(300.0, 1, 30 * 86_400)
    """Seconds after it was broadcast for which a message is kept, and taken from others: who is
    away longer misses some. Nodes of one cluster should agree. 300 s (guide)."""

    max_messages: int = _count(100_000, 1, 100_000_000)
    """Messages kept at most; above it the oldest bundles go, so that a bound below
    `bundle_messages_max` may keep nothing. 100,000 (guide)."""

    max_bytes: int = _count(256 << 20, 1 << 20, 1 << 40)
    """Bytes of them at most; above it the oldest go. 256 MiB (guess)."""

    synchronous: str = _one_of("full", ("full", "normal"))
    """On a disk: "full" waits until it has what was written, so that it survives a loss of power;
    "normal" survives the end of the process alone, and is quicker. "full"."""


@attrs.frozen(kw_only=True)
class CompressionConfig:
    """Packing of bundles by their origin; relays pass them on as they are."""

    enabled: bool = _flag(False)
    """Compress bundles. CPU against bytes; sizes then tell something about contents. Off, on in
    `wan` and `large_cluster` (guide)."""

    algorithm: str = _one_of("zstd", ("zstd",))
    """zstd is what the wire has (guide); the name is here so that another can come."""

    level: int = _count(3, 1, 22)
    """zstd level: higher is smaller and slower. 3 (guide)."""

    min_payload_size: int = _count(256, 0, 61_440)
    """Bytes of a bundle's body below which compressing is not tried. 256 (guide)."""


@attrs.frozen(kw_only=True)
class HealthConfig:
    """When `Node.health()` stops saying HEALTHY."""

    graft_failure_rate_unhealthy: float = _number(0.8, 0, 1, "of the grafts")
    """UNHEALTHY above this share of failed grafts in the last minute. 0.8 (guide)."""

    graft_failure_rate_degraded: float = _number(0.3, 0, 1, "of the grafts")
    """DEGRADED above this share of failed grafts in the last minute. 0.3 (guide)."""

    pending_grafts_degraded: int = _count(50, 0, 1_000_000)
    """DEGRADED above this many announced ranges that have not come. 50 (guide)."""

    cache_utilization_degraded: float = _number(0.95, 0, 1, "of message_cache_max_size")
    """DEGRADED when the cache is fuller than this share of its size: what is announced may be
    gone before it is grafted. 0.95 (guide)."""

    min_peers_degraded: int = _count(3, 0, 256)
    """DEGRADED with fewer links than this, though there are other members to link to. 3 (guide).
    """

    def __attrs_post_init__(self) -> None:
        if self.graft_failure_rate_degraded > self.graft_failure_rate_unhealthy:
            raise _refuse(
                "graft_failure_rate_degraded",
                self.graft_failure_rate_degraded,
                "at most graft_failure_rate_unhealthy, which is "
                f"{self.graft_failure_rate_unhealthy:g}",
            )


# --- the whole ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class PlumtreeConfig:
    """How one node takes part. Nodes of one cluster should agree, and need not.

    `PlumtreeConfig()` is for a handful of nodes anywhere; `lan()`, `wan()` and `large_cluster()`
    start from the guide's presets; all take keyword overrides. Where a default differs between
    presets, a field says so as default / lan / wan / large_cluster.

    Raises:
        ConfigError: a value is out of range, or two of them contradict each other.
    """

    max_peers: int | None = _count(None, 2, 256, optional=True)
    """Members up to which everybody links to everybody, and the most links above that; None means
    16, and no bound but the rings'. Above it links go to ring neighbours. A full mesh has fewest
    hops and costs links. None (guide)."""

    eager_fanout: int = _count(3, 1, 64)
    """Links on which each node pushes a new origin's messages until its tree has formed; all of
    them in a full mesh (see `max_peers`). More: faster and safer first messages, more duplicates.
    Half the sum with `lazy_fanout` is the number of rings.
    3 / 3 / 4 / 5 (guide; the paper uses 4 or 5)."""

    lazy_fanout: int = _count(6, 1, 64)
    """Further links, which get announcements until they carry a tree. More: harder to partition,
    more probes and announcements. 6 / 6 / 8 / 10 (guide)."""

    ihave_interval: float = _seconds(0.1, 0.001, 60)
    """Seconds for which announcements are collected, at most: each batch draws between half and all
    of it. Longer: fewer frames, later repair. 0.1 / 0.05 / 0.2 / 0.15 s (guide)."""

    message_cache_ttl: float = _seconds(60.0, 0.1, 86_400)
    """Seconds for which a message can still be asked of us. Longer repairs longer outages and
    takes memory. 60 / 30 / 120 / 90 s (guide)."""

    message_cache_max_size: int = _count(10_000, 1, 10_000_000)
    """Messages kept for that; above it the oldest go, but none for which grafts may still be on
    their way. 10,000 / 10,000 / 20,000 / 50,000 (guide)."""

    optimization_threshold: int = _count(3, 0, 255)
    """Hops by which an announcement must beat the parent to take its place (paper, section 3.8).
    Lower: flatter trees that change more often; 255: never. 3 / 2 / 4 / 5 (guide)."""

    ihave_batch_size: int = _count(16, 1, 64)
    """Announcements that close a batch before `ihave_interval` is over. 16 / 8 / 16 / 32 (guide);
    64 at most."""

    graft_timeout: float = _seconds(0.5, 0.01, 60)
    """Seconds from an announcement to the graft while the parent may still push, and the base of
    the retries' backoff. Shorter: faster repair, more needless grafts. Above the round trip.
    0.5 / 0.2 / 1.0 / 0.75 s (guide)."""

    max_message_size: int = _count(65_536, 1, 67_108_864)
    """Payload bytes of one broadcast message, on sending and on receipt; direct messages end at
    65,536. What is larger than that travels in pieces, behind all else, and is put together at each
    reader: a node keeps up to four times this in memory for what is not complete, as much again for
    each reader that reads from the store, and serves what its cache or store has room for.
    65,536 (guide)."""

    graft_rate_limit_per_second: float = _number(10.0, 0.1, 100_000, "frames/s")
    """Graft frames a second that one peer may send us for long; the rest is answered `busy`.
    10 / 20 / 5 / 10 (guide)."""

    graft_rate_limit_burst: int = _count(20, 1, 100_000)
    """Graft frames that one peer may send us at once. 20 / 40 / 15 / 30 (guide)."""

    graft_max_retries: int = _count(5, 0, 16)
    """Grafts after the first one for the same messages, each after twice the wait, before they are
    left to anti-entropy. 5 / 3 / 7 / 5 (guide)."""

    maintenance_interval: float = _seconds(2.0, 0.05, 3_600, or_zero=True)
    """Seconds between comparing member tables with a random neighbour; 0 turns it off (a link that
    comes up compares anyway). 2 / 1 / 5 / 3 s (guide)."""

    maintenance_jitter: float = _seconds(0.5, 0, 3_600)
    """Up to so many seconds are added at random, so that nodes started together do not stay in
    step. 0.5 / 0.2 / 1.0 / 0.75 s (guide)."""

    use_hash_ring: bool = _flag(False)
    """Whether the neighbours on the first ring are ring neighbours in the sense of the next two
    fields. False / False / True / True (guide)."""

    protect_ring_neighbors: bool = _flag(True)
    """Whether ring neighbours are above `max_eager_peers`, so that their grafts are never refused
    as `full`. It never means that a push may not be pruned. True / False / True / True (guide)."""

    max_protected_neighbors: int = _one_of(4, (0, 2, 4))
    """How many of them: the next one on either side, or two. 4 / 2 / 4 / 4 (guide)."""

    max_eager_peers: int | None = _count(None, 1, 4_096, optional=True)
    """Links on which one origin is pushed at most; a graft above it is served but not promoted.
    Bounds what one node uploads, deepens the tree. None / None / None / 8 (guide)."""

    max_lazy_peers: int | None = _count(None, 1, 4_096, optional=True)
    """Links beside `eager_fanout` at most; a full mesh of more becomes rings.
    None / None / None / 50 (guide)."""

    zone: str = _text("", ZONE_BYTES_MAX)
    """Where this node is: a name that it shares with those to whom the way is short and cheap (a
    rack, a data centre, a region). Half of the links stay inside, and of each message one copy
    crosses into each other zone; the first message of an origin may come later for it. At most 64
    bytes, no control characters. Empty: those without a zone are a zone of their own."""

    sync: SyncConfig = attrs.field(factory=SyncConfig, validator=_is_part)
    """Anti-entropy."""

    storage: StorageConfig = attrs.field(factory=StorageConfig, validator=_is_part)
    """What is kept beyond the cache."""

    compression: CompressionConfig = attrs.field(factory=CompressionConfig, validator=_is_part)
    """Packing of bundles."""

    health: HealthConfig = attrs.field(factory=HealthConfig, validator=_is_part)
    """Thresholds of `Node.health()`."""

    probe_interval: float = _seconds(1.0, 0.05, 60)
    """Seconds between a monitor's probes; a link that brought something fresh is not probed
    (SWIM's protocol period). Shorter: failures are found sooner, more packets. 1 / 1 / 2 / 1 s
    (SWIM, section 3, measures at 2 s; memberlist's LAN profile has 1 s)."""

    probe_timeout: float = _seconds(0.5, 0.01, 60)
    """Seconds of silence after a probe that make it a failed one; at most `probe_interval`. Above
    the round trip at its worst. 0.5 / 0.5 / 1.5 / 0.75 s (memberlist's LAN profile has 0.5 s)."""

    suspicion_timeout: float = _seconds(5.0, 0.1, 600)
    """Seconds that an accused has to refute when three monitors accuse it; three times as long
    with one (Lifeguard, section 4). At least `probe_interval`. Shorter: failures are known sooner,
    slow members are declared dead. 5 / 5 / 10 / 8 s (guess, from simulation)."""

    bundle_messages_max: int = _count(1_024, 1, 1_024)
    """Messages of one flush that share a header. 1,024, the wire's limit."""

    bundle_bytes_max: int = _count(61_440, 1_024, 61_440)
    """Payload bytes of one flush that share a header; a larger single message travels alone. Less:
    less is repeated when one is lost. 61,440, so that header and topics still fit a frame."""

    linger: float = _seconds(0.0, 0, 10)
    """Seconds for which a broadcast waits for company in its bundle; 0 is the end of the loop
    iteration. Longer: fewer, larger bundles, that much more latency. 0 s."""

    sign: str = _one_of("all", ("all", "off"))
    """"all" signs every bundle, record and fact with the node's certificate, and believes nothing
    that is not signed by who is said to have spoken it. "off" trusts every relay instead: a member
    can then forge what others say. All nodes of a cluster must agree; links between nodes that do
    not are refused. "off" saves a signature and a verification a bundle. "all"."""

    lane_window: int = _count(262_144, 139_264, 16_777_216)
    """Bytes that may be on the way on one lane of one link before the receiver has consumed them.
    At least two frames of the largest size, or credit could stall. More: more throughput on long
    paths, more memory per link. 262,144 (guess: 20 MB/s at 10 ms)."""

    shutdown_timeout: float = _seconds(10.0, 0.1, 300)
    """Seconds that leaving `async with` may take to hand over and close. 10 s (guess; below the
    30 s that Kubernetes waits)."""

    def __attrs_post_init__(self) -> None:
        fanout = self.eager_fanout + self.lazy_fanout
        if self.max_peers is not None and self.max_peers < fanout:
            raise _refuse(
                "max_peers",
                self.max_peers,
                f"at least eager_fanout + lazy_fanout, which is {fanout}, or None",
            )
        if self.probe_timeout > self.probe_interval:
            raise _refuse(
                "probe_timeout",
                self.probe_timeout,
                f"at most probe_interval, which is {self.probe_interval:g} s",
            )
        if self.suspicion_timeout < self.probe_interval:
            raise _refuse(
                "suspicion_timeout",
                self.suspicion_timeout,
                f"at least probe_interval, which is {self.probe_interval:g} s",
            )

    @classmethod
    def lan(cls, **overrides: Any) -> Self:
        """One data centre, round trips below a millisecond: quick timers, small batches."""
        return cls(**(_LAN | overrides))

    @classmethod
    def wan(cls, **overrides: Any) -> Self:
        """Several regions: patient timers, more links, compression."""
        return cls(**(_WAN | {"compression": CompressionConfig(enabled=True)} | overrides))

    @classmethod
    def large_cluster(cls, **overrides: Any) -> Self:
        """A thousand members and more: more links, bounded pushes, larger batches, compression."""
        return cls(**(_LARGE | {"compression": CompressionConfig(enabled=True)} | overrides))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read PLUMTREE_* from `environ` (the process's by default) over PLUMTREE_PRESET.

        The variables in NODE_ENVIRONMENT belong to the node command and are passed over, and so
        are those that Kubernetes sets for a Service whose name begins with "plumtree".

        Raises:
            ConfigError: a PLUMTREE_ variable is unknown (the message has the nearest name), cannot
                be read, or its value is not allowed.
        """
        environ = os.environ if environ is None else environ
        preset = environ.get(PREFIX + "PRESET") or "default"
        names = {PREFIX + path.upper().replace(".", "__"): path for path in _paths(cls)}
        values: dict[str, object] = {}
        for name, value in environ.items():
            if not name.startswith(PREFIX) or name in NODE_ENVIRONMENT:
                continue
            if name not in names:
                if _KUBERNETES.match(name):
                    continue
                raise _unknown("unknown environment variable", name, (*names, *NODE_ENVIRONMENT))
            values[names[name]] = value
        return _build(cls, preset, values, lambda path: PREFIX + path.upper().replace(".", "__"))

    @classmethod
    def from_toml(cls, path: "str | os.PathLike[str]") -> Self:
        """Read the table ``[plumtree]`` of a TOML file, over the preset that it names.

        Raises:
            ConfigError: the file cannot be read or lacks the table, a key is unknown (the message
                has the nearest one), or a value is not allowed.
        """
        table = _read_toml(Path(path))
        preset = table.pop("preset", "default")
        known = tuple(_paths(cls))
        groups = {known_path.partition(".")[0] for known_path in known if "." in known_path}
        values: dict[str, object] = {}
        for key, value in table.items():
            if key not in groups:
                values[key] = value
            elif not isinstance(value, dict):
                raise ConfigError(f"{path}: {key} is {value!r}; allowed: a table [plumtree.{key}]")
            else:
                values |= {f"{key}.{inner}": each for inner, each in value.items()}
        for key in values:
            if key not in known:
                raise _unknown(f"{path}: unknown key", key, (*known, *groups, "preset"))
        return _build(cls, preset, values, lambda key: f"{path}: {key}")


# Values of the guide where they differ from the defaults above; the last line of each is our own.
_LAN: dict[str, Any] = {
    "ihave_interval": 0.05,
    "message_cache_ttl": 30.0,
    "optimization_threshold": 2,
    "ihave_batch_size": 8,
    "graft_timeout": 0.2,
    "graft_rate_limit_per_second": 20.0,
    "graft_rate_limit_burst": 40,
    "graft_max_retries": 3,
    "maintenance_interval": 1.0,
    "maintenance_jitter": 0.2,
    "protect_ring_neighbors": False,
    "max_protected_neighbors": 2,
}
_WAN: dict[str, Any] = {
    "eager_fanout": 4,
    "lazy_fanout": 8,
    "ihave_interval": 0.2,
    "message_cache_ttl": 120.0,
    "message_cache_max_size": 20_000,
    "optimization_threshold": 4,
    "graft_timeout": 1.0,
    "graft_rate_limit_per_second": 5.0,
    "graft_rate_limit_burst": 15,
    "graft_max_retries": 7,
    "maintenance_interval": 5.0,
    "maintenance_jitter": 1.0,
    "use_hash_ring": True,
    **{"probe_interval": 2.0, "probe_timeout": 1.5, "suspicion_timeout": 10.0},
}
_LARGE: dict[str, Any] = {
    "eager_fanout": 5,
    "lazy_fanout": 10,
    "ihave_interval": 0.15,
    "message_cache_ttl": 90.0,
    "message_cache_max_size": 50_000,
    "optimization_threshold": 5,
    "ihave_batch_size": 32,
    "graft_timeout": 0.75,
    "graft_rate_limit_burst": 30,
    "maintenance_interval": 3.0,
    "maintenance_jitter": 0.75,
    "use_hash_ring": True,
    "max_eager_peers": 8,
    "max_lazy_peers": 50,
    **{"probe_timeout": 0.75, "suspicion_timeout": 8.0},
}


# --- from text ----------------------------------------------------------------------------------


def parse_duration(text: str) -> float:
    """Return seconds for ``200ms``, ``1.5s``, ``2m``, ``1h`` or a bare number of seconds.

    Raises:
        ConfigError: `text` is none of these.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a duration; write 200ms, 1.5s, 2m, 1h or seconds")
    return float(match[1]) * _UNIT_S[match[2]]


def _paths(cls: type[Any]) -> Iterator[str]:
    """Name every setting; those of the parts as ``part.field``."""
    for field in attrs.fields(attrs.resolve_types(cls)):
        if attrs.has(field.type):
            yield from (f"{field.name}.{inner.name}" for inner in attrs.fields(field.type))
        else:
            yield field.name


def _unknown(what: str, name: str, known: tuple[str, ...]) -> ConfigError:
    import difflib

    # Case and the common prefix say nothing about what was meant.
    keys = {each.removeprefix(PREFIX).lower(): each for each in known}
    nearest = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), keys, n=1)
    hint = f"; did you mean {keys[nearest[0]]}?" if nearest else ""
    return ConfigError(f"{what} {name}{hint}")


def _read_toml(path: Path) -> dict[str, Any]:
    from typed_settings.exceptions import TsError
    from typed_settings.loaders import TomlFormat

    try:
        tables = TomlFormat(None)(path, PlumtreeConfig, ())
    except (OSError, TsError, UnicodeDecodeError) as error:
        # The library wraps what the system said.
        said = error if isinstance(error, OSError) else error.__cause__
        why = said.strerror if isinstance(said, OSError) else error
        raise ConfigError(f"{path} cannot be read: {why}")
    table = tables.get("plumtree")
    if not isinstance(table, dict):
        raise ConfigError(f"{path} has no table [plumtree]")
    return dict(table)


def _build(
    cls: type[_Config], preset: object, values: Mapping[str, object], name_of: Callable[[str], str]
) -> _Config:
    """Lay `values` (path -> text or TOML value) over the preset; `name_of` is for messages."""
    from typed_settings.converters import TSConverter

    if preset not in PRESETS:
        raise _refuse(name_of("preset"), preset, ", ".join(PRESETS))
    base = cls() if preset == "default" else getattr(cls, str(preset))()
    converter = TSConverter()
    changes: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        part, dot, inner = path.rpartition(".")
        owner = getattr(base, part) if dot else base
        field = getattr(attrs.fields(type(owner)), inner)
        read = _read(converter, field, value, name_of(path)) if type(value) is str else value
        (parts.setdefault(part, {}) if dot else changes)[inner] = read
    for part, inner_changes in parts.items():
        changes[part] = attrs.evolve(getattr(base, part), **inner_changes)
    return attrs.evolve(base, **changes)


def _read(converter: "TSConverter", field: "attrs.Attribute[Any]", text: str, name: str) -> object:
    kind = field.type
    if field.metadata.get("duration"):
        try:
            return parse_duration(text)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}")
    options = get_args(kind)
    if options:
        if text.strip().lower() in ("", "none"):
            return None
        kind = options[0]
    assert isinstance(kind, type)
    try:
        return converter.structure(text.strip(), kind)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {text!r}, which is not {_SPOKEN[kind]}")
