"""PlumtreeConfig: every setting of the protocol, validated, with units, trade-offs and presets.

Identity and trust are security/credentials.py's; addresses belong to Node. A preset's values are
the deployment guide's; other defaults name their source or are marked as a guess. Durations are
float seconds in Python; the environment and TOML also take ``200ms``, ``1.5s`` and ``2m``.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import attrs

from plumtree_quic.errors import ConfigError

__all__ = [
    "NODE_ENVIRONMENT",
    "PRESETS",
    "CompressionConfig",
    "HealthConfig",
    "PlumtreeConfig",
    "SyncConfig",
]

# Limits of the wire format (wire.py), which this module must not import: config is below it.
_PAYLOAD_BYTES_MAX = 65_536
_BUNDLE_MESSAGES_MAX = 1_024
_IHAVE_BATCH_MAX = 64

_PREFIX = "PLUMTREE_"
_NESTED = "__"

NODE_ENVIRONMENT = (
    "LISTEN",
    "ADVERTISE_ADDR",
    "SEEDS",
    "CERT",
    "KEY",
    "KEY_PASSWORD",
    "CA",
    "CLUSTER",
    "TRUST_DOMAIN",
    "PRESET",
    "STATE_DIR",
    "NO_SKIPS",
)
"""PLUMTREE_* variables that are not configuration fields: the node command's and the tests'."""

_Config = TypeVar("_Config", bound="PlumtreeConfig")

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|m|h)?\s*\Z")
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


# --- validators: each error names the field, the value and what is allowed ------------------------


def _refuse(instance: object, attribute: "attrs.Attribute[Any]", value: object, rule: str) -> None:
    raise ConfigError(f"{type(instance).__name__}.{attribute.name} = {value!r}: must be {rule}")


def _whole(low: int, high: int | None = None) -> Any:
    rule = f"a whole number, {low} or more" if high is None else f"a whole number, {low} to {high}"

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < low
            or (high is not None and value > high)
        ):
            _refuse(instance, attribute, value, rule)

    return check


def _optional(low: int) -> Any:
    within = _whole(low)

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value is not None:
            within(instance, attribute, value)

    return check


def _number(low: float, high: float, *, above: bool = False, unit: str = "") -> Any:
    rule = f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"
    if unit:
        rule += f" {unit}"

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < low
            or value > high
            or (above and value == low)
        ):
            _refuse(instance, attribute, value, rule)

    return check


def _seconds(high: float, *, zero: bool = False) -> Any:
    return _number(0.0, high, above=not zero, unit="seconds")


def _flag(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, bool):
        _refuse(instance, attribute, value, "True or False")


def _one_of(*allowed: object) -> Any:
    rule = "one of " + ", ".join(map(repr, allowed))

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if isinstance(value, bool) or value not in allowed:
            _refuse(instance, attribute, value, rule)

    return check


# --- parts ---------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SyncConfig:
    """Anti-entropy: what grafts could not repair is found by comparing digests.

    Attributes:
        enabled: compare now and then with a random neighbour. A link that comes up is always
            compared. Off saves one digest per interval and loses what only anti-entropy finds.
        sync_interval: seconds between comparisons (guide: 30).
        max_batch_size: ranges asked of one peer in one round, 1 to 4,096 (guide: 100).
    """

    enabled: bool = attrs.field(default=True, validator=_flag)
    sync_interval: float = attrs.field(default=30.0, validator=_seconds(3600))
    max_batch_size: int = attrs.field(default=100, validator=_whole(1, 4096))


@attrs.frozen(kw_only=True)
class CompressionConfig:
    """zstd over whole bundles, when it makes them smaller.

    A relay compresses nothing. Compression can leak what is in a message to somebody who can
    both choose part of it and see its size (CRIME): leave it off for secrets mixed with foreign
    text.

    Attributes:
        enabled: compress our own bundles. What others compressed is always understood.
        algorithm: "zstd", the only one.
        level: 1 (fast) to 19 (small) (guide: 3).
        min_payload_size: bytes of a bundle's body below which it is not tried (guide: 256).
    """

    enabled: bool = attrs.field(default=False, validator=_flag)
    algorithm: str = attrs.field(default="zstd", validator=_one_of("zstd"))
    level: int = attrs.field(default=3, validator=_whole(1, 19))
    min_payload_size: int = attrs.field(default=256, validator=_whole(0))


@attrs.frozen(kw_only=True)
class HealthConfig:
    """Thresholds of `Node.health` (guide's values).

    Attributes:
        graft_failure_rate_unhealthy: share of failed grafts in the last minute, strictly above.
        graft_failure_rate_degraded: the same, for DEGRADED.
        pending_grafts_degraded: announced ranges that have not arrived, strictly above.
        cache_utilization_degraded: share of message_cache_max_size in use, strictly above.
        min_peers_degraded: links, strictly below (never more than there are other members).
    """

    graft_failure_rate_unhealthy: float = attrs.field(default=0.8, validator=_number(0, 1))
    graft_failure_rate_degraded: float = attrs.field(default=0.3, validator=_number(0, 1))
    pending_grafts_degraded: int = attrs.field(default=50, validator=_whole(0))
    cache_utilization_degraded: float = attrs.field(default=0.95, validator=_number(0, 10))
    min_peers_degraded: int = attrs.field(default=3, validator=_whole(0))


@attrs.frozen(kw_only=True)
class PlumtreeConfig:
    """All settings of one node's protocol. Immutable; `attrs.evolve` makes a changed copy.

    Attributes:
        max_peers: members up to which everybody links with everybody; above, the overlay has
            about eager_fanout + lazy_fanout links a node. None means 16.
        eager_fanout: links on which a new origin's first bundle is pushed. More is faster and
            more redundant for that first bundle; afterwards the tree decides.
        lazy_fanout: with eager_fanout decides the number of rings: half of the sum, rounded up.
        ihave_interval: seconds for which announcements are collected. Longer means fewer frames
            and later repair.
        message_cache_ttl: seconds for which a bundle can be served to others.
        message_cache_max_size: messages held for that; those still young enough for a graft in
            progress stay beyond it (64 MiB is the bound that always holds).
        optimization_threshold: hops by which an announcement must beat the tree's path before
            the tree is changed (Plumtree, section 3.8).
        ihave_batch_size: announcements that are sent at once instead of waiting, 1 to 64.
        graft_timeout: seconds to wait for an announced bundle before asking for it.
        max_message_size: bytes of one payload, checked on sending and on receipt; 65,536 at most.
        graft_rate_limit_per_second: graft frames served per peer and second; above: "busy".
        graft_rate_limit_burst: graft frames that may come at once.
        graft_max_retries: further announcers asked before anti-entropy takes over.
        maintenance_interval: seconds between membership push/pulls with a random neighbour;
            0 turns them off.
        maintenance_jitter: seconds added at random to each interval.
        use_hash_ring: whether neighbours on ring 0 count as ring neighbours.
        protect_ring_neighbors: ring neighbours are never evicted by a cap and always announced to.
        max_protected_neighbors: how many of them: 0, 2 or 4.
        max_eager_peers: links to which one origin is pushed at most; None: no bound.
        max_lazy_peers: links beyond those that are pushed to; None: no bound.
        sync, compression, health: see their classes.
        probe_interval: seconds; a neighbour that has been silent is probed at least once in three
            of them (memberlist's LAN value, 1 s).
        probe_timeout: seconds to wait for an echo before silence counts (memberlist: 500 ms).
        suspicion_timeout: seconds from suspicion to failure with three accusers, three times as
            long with one (guess, between memberlist's 4 s and Lifeguard's spread).
        bundle_messages_max: messages in one bundle, 1 to 1,024.
        bundle_bytes_max: payload bytes in one bundle; a single larger message travels alone.
        linger: seconds to wait for more messages before a bundle is closed; 0 closes it at the
            end of the event loop's iteration.
        lane_window: bytes that may be on their way to a peer on one lane unconsumed. Larger is
            faster on long links, and costs that memory per link on both sides.
        shutdown_timeout: seconds that leaving and closing may take together.

    Raises:
        ConfigError: a value is out of range; the message names field, value and range.
    """

    max_peers: int | None = attrs.field(default=None, validator=_optional(1))
    eager_fanout: int = attrs.field(default=3, validator=_whole(1, 64))
    lazy_fanout: int = attrs.field(default=6, validator=_whole(1, 64))
    ihave_interval: float = attrs.field(default=0.1, validator=_seconds(60))
    message_cache_ttl: float = attrs.field(default=60.0, validator=_seconds(86_400))
    message_cache_max_size: int = attrs.field(default=10_000, validator=_whole(1))
    optimization_threshold: int = attrs.field(default=3, validator=_whole(1, 255))
    ihave_batch_size: int = attrs.field(default=16, validator=_whole(1, _IHAVE_BATCH_MAX))
    graft_timeout: float = attrs.field(default=0.5, validator=_seconds(60))
    max_message_size: int = attrs.field(default=65_536, validator=_whole(1, _PAYLOAD_BYTES_MAX))
    graft_rate_limit_per_second: float = attrs.field(
        default=10.0, validator=_number(0, 1e6, above=True, unit="frames a second")
    )
    graft_rate_limit_burst: int = attrs.field(default=20, validator=_whole(1))
    graft_max_retries: int = attrs.field(default=5, validator=_whole(0, 16))
    maintenance_interval: float = attrs.field(default=2.0, validator=_seconds(3600, zero=True))
    maintenance_jitter: float = attrs.field(default=0.5, validator=_seconds(3600, zero=True))
    use_hash_ring: bool = attrs.field(default=False, validator=_flag)
    protect_ring_neighbors: bool = attrs.field(default=True, validator=_flag)
    max_protected_neighbors: int = attrs.field(default=4, validator=_one_of(0, 2, 4))
    max_eager_peers: int | None = attrs.field(default=None, validator=_optional(1))
    max_lazy_peers: int | None = attrs.field(default=None, validator=_optional(1))
    sync: SyncConfig = attrs.field(factory=SyncConfig)
    compression: CompressionConfig = attrs.field(factory=CompressionConfig)
    health: HealthConfig = attrs.field(factory=HealthConfig)
    probe_interval: float = attrs.field(default=1.0, validator=_seconds(300))
    probe_timeout: float = attrs.field(default=0.5, validator=_seconds(300))
    suspicion_timeout: float = attrs.field(default=5.0, validator=_seconds(3600))
    bundle_messages_max: int = attrs.field(default=1_024, validator=_whole(1, _BUNDLE_MESSAGES_MAX))
    bundle_bytes_max: int = attrs.field(default=61_440, validator=_whole(1, 61_440))
    linger: float = attrs.field(default=0.0, validator=_seconds(10, zero=True))
    lane_window: int = attrs.field(default=262_144, validator=_whole(131_072, 16_777_216))
    shutdown_timeout: float = attrs.field(default=10.0, validator=_seconds(3600))

    def __attrs_post_init__(self) -> None:
        links = self.eager_fanout + self.lazy_fanout
        if self.max_peers is not None and self.max_peers < links:
            raise ConfigError(
                f"PlumtreeConfig.max_peers = {self.max_peers}: must be at least eager_fanout + "
                f"lazy_fanout = {links}, or None"
            )
        if self.max_eager_peers is not None and self.max_eager_peers < self.eager_fanout:
            raise ConfigError(
                f"PlumtreeConfig.max_eager_peers = {self.max_eager_peers}: must be at least "
                f"eager_fanout = {self.eager_fanout}, or None"
            )
        for name, kind in (
            ("sync", SyncConfig),
            ("compression", CompressionConfig),
            ("health", HealthConfig),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(
                    f"PlumtreeConfig.{name} = {getattr(self, name)!r}: must be a {kind.__name__}"
                )

    @classmethod
    def lan(cls, **overrides: Any) -> Self:
        """One data centre: quick announcements and repair, no ring protection."""
        return _make(cls, _LAN, overrides)

    @classmethod
    def wan(cls, **overrides: Any) -> Self:
        """Several sites: patient timers, more links, protected ring neighbours, zstd from 256 B."""
        return _make(cls, _WAN, overrides)

    @classmethod
    def large_cluster(cls, **overrides: Any) -> Self:
        """Hundreds of nodes and more: wider fan-out, larger batches and cache, caps."""
        return _make(cls, _LARGE_CLUSTER, overrides)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read PLUMTREE_<FIELD>, PLUMTREE_<PART>__<FIELD> and PLUMTREE_PRESET.

        Raises:
            ConfigError: a variable is unknown (the message names the nearest) or its value wrong.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        known = {path.upper().replace(".", _NESTED): path for path in _paths()}
        for variable in sorted(env):
            if not variable.startswith(_PREFIX):
                continue
            name = variable.removeprefix(_PREFIX)
            if name in NODE_ENVIRONMENT:
                continue
            if name not in known:
                nearest = _nearest(name, (*known, *NODE_ENVIRONMENT))
                raise ConfigError(f"{variable} is not a setting; did you mean {_PREFIX}{nearest}?")
            _put(values, known[name], env[variable])
        return _load(cls, env.get(_PREFIX + "PRESET") or "default", values, "environment")

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read the table ``[plumtree]`` of a TOML file; its key ``preset`` chooses the base.

        Raises:
            ConfigError: the file cannot be read, a key is unknown (the message names the nearest)
                or a value is wrong.
        """
        import tomllib

        try:
            with Path(path).open("rb") as file:
                table = tomllib.load(file).get("plumtree")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}")
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: is not TOML: {error}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: has no table [plumtree]")
        preset = table.pop("preset", "default")
        values: dict[str, Any] = {}
        known = _paths()
        for key, value in table.items():
            nested = value.items() if isinstance(value, dict) else [(None, value)]
            for inner, leaf in nested:
                name = key if inner is None else f"{key}.{inner}"
                if name not in known:
                    raise ConfigError(
                        f"{path}: {name!r} is not a setting; did you mean "
                        f"{_nearest(name, tuple(known))!r}?"
                    )
                _put(values, name, leaf)
        return _load(cls, preset, values, str(path))


# --- presets: the deployment guide's values -------------------------------------------------------

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
    "compression": CompressionConfig(enabled=True),
    # Ours, guesses: probes cross oceans.
    "probe_interval": 2.0,
    "probe_timeout": 1.5,
    "suspicion_timeout": 10.0,
}
_LARGE_CLUSTER: dict[str, Any] = {
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
    "compression": CompressionConfig(enabled=True),
    # Ours, guesses.
    "probe_timeout": 0.75,
    "suspicion_timeout": 8.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "lan": _LAN,
    "wan": _WAN,
    "large_cluster": _LARGE_CLUSTER,
}
"""What each preset changes, by its name in the environment and in TOML."""


# --- reading from text ----------------------------------------------------------------------------


def _make(cls: type[_Config], preset: dict[str, Any], overrides: dict[str, Any]) -> _Config:
    names = tuple(field.name for field in attrs.fields(cls))
    for name in overrides:
        if name not in names:
            raise ConfigError(
                f"{name!r} is not a field of PlumtreeConfig; did you mean "
                f"{_nearest(name, names)!r}?"
            )
    return cls(**{**preset, **overrides})


def _paths() -> dict[str, Any]:
    """Every setting by its dotted name, with its type."""
    found: dict[str, Any] = {}
    for field in attrs.fields(attrs.resolve_types(PlumtreeConfig)):
        if field.type is not None and attrs.has(field.type):
            for inner in attrs.fields(attrs.resolve_types(field.type)):
                found[f"{field.name}.{inner.name}"] = inner.type
        else:
            found[field.name] = field.type
    return found


def _nearest(name: str, known: tuple[str, ...]) -> str:
    by_fold = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_fold, n=1, cutoff=0.0)
    return by_fold[close[0]] if close else known[0]


def _put(values: dict[str, Any], path: str, value: object) -> None:
    part, _, name = path.rpartition(".")
    target = values.setdefault(part, {}) if part else values
    target[name] = value


def _seconds_from(value: object, _kind: type) -> float:
    """Read a number, or a number with a unit."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a number, or a duration like 200ms, 1.5s or 2m")
    return float(match[1]) * _UNIT_S[match[2]]


def _load(cls: type[_Config], preset: str, values: dict[str, Any], source: str) -> _Config:
    # Imported here: it costs more than the rest of the package's configuration together.
    from typed_settings.converters import TSConverter

    if preset not in PRESETS:
        raise ConfigError(
            f"{source}: preset {preset!r} does not exist; choose one of {', '.join(PRESETS)}"
        )
    converter = TSConverter(resolve_paths=False, strlist_sep=None)
    converter.scalar_converters[float] = _seconds_from
    kinds = _paths()

    def convert(path: str, value: object) -> object:
        kind = kinds[path]
        if isinstance(value, str) and kind == (int | None):
            if value.strip().lower() in ("", "none"):
                return None
            kind = int
        try:
            return converter.structure(value, kind)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{source}: {path} = {value!r}: {error}")

    base = PRESETS[preset]
    chosen: dict[str, Any] = dict(base)
    for name, value in values.items():
        if isinstance(value, dict):
            part = base.get(name) or getattr(PlumtreeConfig(), name)
            changes = {inner: convert(f"{name}.{inner}", leaf) for inner, leaf in value.items()}
            chosen[name] = attrs.evolve(part, **changes)
        else:
            chosen[name] = convert(name, value)
    try:
        return cls(**chosen)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}")
