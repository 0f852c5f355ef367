"""Settings: the guide's presets, every refusal, and reading them from text."""

import re
from pathlib import Path

import attrs
import pytest

from plumtree_quic.config import (
    NODE_ENVIRONMENT,
    CompressionConfig,
    HealthConfig,
    PlumtreeConfig,
    StorageConfig,
    SyncConfig,
    parse_duration,
)
from plumtree_quic.errors import ConfigError

PRESET_VALUES = {
    # field: default, lan, wan, large_cluster
    "max_peers": (None, None, None, None),
    "eager_fanout": (3, 3, 4, 5),
    "lazy_fanout": (6, 6, 8, 10),
    "ihave_interval": (0.1, 0.05, 0.2, 0.15),
    "message_cache_ttl": (60, 30, 120, 90),
    "message_cache_max_size": (10_000, 10_000, 20_000, 50_000),
    "optimization_threshold": (3, 2, 4, 5),
    "ihave_batch_size": (16, 8, 16, 32),
    "graft_timeout": (0.5, 0.2, 1.0, 0.75),
    "max_message_size": (65_536,) * 4,
    "graft_rate_limit_per_second": (10, 20, 5, 10),
    "graft_rate_limit_burst": (20, 40, 15, 30),
    "graft_max_retries": (5, 3, 7, 5),
    "maintenance_interval": (2, 1, 5, 3),
    "maintenance_jitter": (0.5, 0.2, 1.0, 0.75),
    "use_hash_ring": (False, False, True, True),
    "protect_ring_neighbors": (True, False, True, True),
    "max_protected_neighbors": (4, 2, 4, 4),
    "max_eager_peers": (None, None, None, 8),
    "max_lazy_peers": (None, None, None, 50),
    "zone": ("",) * 4,
    "sync": (SyncConfig(enabled=True, sync_interval=30.0, max_batch_size=100),) * 4,
    # The guide's; it knows nothing of bytes, nor of what a disk has.
    "storage": (
        StorageConfig(
            enabled=False,
            retention=300.0,
            max_messages=100_000,
            max_bytes=256 << 20,
            synchronous="full",
        ),
    )
    * 4,
    "compression": (
        CompressionConfig(enabled=False, algorithm="zstd", level=3, min_payload_size=256),
        CompressionConfig(enabled=False, algorithm="zstd", level=3, min_payload_size=256),
        CompressionConfig(enabled=True, algorithm="zstd", level=3, min_payload_size=256),
        CompressionConfig(enabled=True, algorithm="zstd", level=3, min_payload_size=256),
    ),
    "health": (
        HealthConfig(
            graft_failure_rate_unhealthy=0.8,
            graft_failure_rate_degraded=0.3,
            pending_grafts_degraded=50,
            cache_utilization_degraded=0.95,
            min_peers_degraded=3,
        ),
    )
    * 4,
    "probe_interval": (1, 1, 2, 1),
    "probe_timeout": (0.5, 0.5, 1.5, 0.75),
    "suspicion_timeout": (5, 5, 10, 8),
    "bundle_messages_max": (1_024,) * 4,
    "bundle_bytes_max": (61_440,) * 4,
    "linger": (0.0,) * 4,
    "sign": ("all",) * 4,
    "lane_window": (262_144,) * 4,
    "shutdown_timeout": (10.0,) * 4,
}
MAKERS = (
    PlumtreeConfig,
    PlumtreeConfig.lan,
    PlumtreeConfig.wan,
    PlumtreeConfig.large_cluster,
)


@pytest.mark.parametrize("column", range(4), ids=("default", "lan", "wan", "large_cluster"))
def test_a_preset_has_the_values_of_the_deployment_guide(column):
    made = attrs.asdict(MAKERS[column](), recurse=False)
    assert made == {field: values[column] for field, values in PRESET_VALUES.items()}


@pytest.mark.parametrize("make", MAKERS)
def test_a_preset_takes_keyword_overrides(make):
    config = make(eager_fanout=2, compression=CompressionConfig(level=9))
    assert (config.eager_fanout, config.compression.level) == (2, 9)


def test_a_config_is_frozen_and_hashable():
    config = PlumtreeConfig()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.eager_fanout = 4
    assert hash(config) == hash(PlumtreeConfig())


def test_evolve_makes_a_changed_copy_that_is_checked_again():
    config = attrs.evolve(PlumtreeConfig.lan(), ihave_interval=1)
    assert config.ihave_interval == 1.0
    assert type(config.ihave_interval) is float
    with pytest.raises(ConfigError, match="ihave_interval"):
        attrs.evolve(config, ihave_interval=0)


WRONG = {
    "max_peers": (1, 257, 0, -1, "16", 16.0, True),
    "eager_fanout": (0, 65, -3, 3.0, "3", None, True),
    "lazy_fanout": (0, 65),
    "ihave_interval": (0, -0.1, 61, float("nan"), float("inf"), "50ms", None, True),
    "message_cache_ttl": (0, 86_401),
    "message_cache_max_size": (0, 10_000_001),
    "optimization_threshold": (-1, 256),
    "ihave_batch_size": (0, 65),
    "graft_timeout": (0, 61),
    "max_message_size": (0, 67_108_865),
    "graft_rate_limit_per_second": (0, -1, float("inf")),
    "graft_rate_limit_burst": (0,),
    "graft_max_retries": (-1, 17),
    "maintenance_interval": (-1, 0.01, 3_601),
    "maintenance_jitter": (-0.1, 3_601),
    "use_hash_ring": (1, "yes", None),
    "protect_ring_neighbors": (0,),
    "max_protected_neighbors": (1, 3, 5, False),
    "max_eager_peers": (0, 4_097),
    "max_lazy_peers": (0, 4_097),
    "zone": ("z" * 65, "ä" * 33, "eu\n1", "eu\u202e1", "\ud800", None, 1, b"eu"),
    "sync": (None, {"enabled": True}, HealthConfig()),
    "storage": (None, SyncConfig()),
    "compression": (None,),
    "health": (None,),
    "probe_interval": (0, 61),
    "probe_timeout": (0, 61),
    "suspicion_timeout": (0, 601),
    "bundle_messages_max": (0, 1_025),
    "bundle_bytes_max": (1_023, 61_441),
    "linger": (-0.001, 11),
    "sign": ("none", "ALL", "", True, None),
    "lane_window": (139_263, 16_777_217),
    "shutdown_timeout": (0, 301),
}
WRONG_PARTS = {
    (SyncConfig, "enabled"): ("true", 1),
    (SyncConfig, "sync_interval"): (0, 86_401),
    (StorageConfig, "enabled"): (None, 1),
    (StorageConfig, "retention"): (0.5, 30 * 86_400 + 1),
    (StorageConfig, "max_messages"): (0, 100_000_001),
    (StorageConfig, "max_bytes"): (1 << 19, (1 << 40) + 1),
    (StorageConfig, "synchronous"): ("off", None),
    (SyncConfig, "max_batch_size"): (0, 4_097),
    (CompressionConfig, "enabled"): (None,),
    (CompressionConfig, "algorithm"): ("gzip", "", None),
    (CompressionConfig, "level"): (0, 23),
    (CompressionConfig, "min_payload_size"): (-1, 61_441),
    (HealthConfig, "graft_failure_rate_unhealthy"): (-0.1, 1.1, float("nan")),
    (HealthConfig, "graft_failure_rate_degraded"): (-0.1, 1.1),
    (HealthConfig, "pending_grafts_degraded"): (-1,),
    (HealthConfig, "cache_utilization_degraded"): (-0.1, 1.1),
    (HealthConfig, "min_peers_degraded"): (-1, 257),
}
CASES = [(PlumtreeConfig, field, value) for field, values in WRONG.items() for value in values] + [
    (part, field, value) for (part, field), values in WRONG_PARTS.items() for value in values
]


@pytest.mark.parametrize(("make", "field", "value"), CASES)
def test_a_wrong_value_is_refused_naming_field_value_and_range(make, field, value):
    with pytest.raises(ConfigError) as refused:
        make(**{field: value})
    assert str(refused.value).startswith(f"{field} is {value!r}; allowed: ") or (
        # Whole numbers have become floats by then.
        str(refused.value).startswith(f"{field} is {float(value)!r}; allowed: ")
    )


def test_every_field_has_a_wrong_value_among_these_tests():
    assert set(WRONG) == {field.name for field in attrs.fields(PlumtreeConfig)}
    for part in (SyncConfig, CompressionConfig, HealthConfig):
        named = {field for kind, field in WRONG_PARTS if kind is part}
        assert named == {field.name for field in attrs.fields(part)}


def test_max_peers_is_not_below_the_links_that_the_fanouts_ask_for():
    with pytest.raises(ConfigError, match=r"max_peers is 8; .* eager_fanout \+ lazy_fanout.* 9"):
        PlumtreeConfig(max_peers=8)
    assert PlumtreeConfig(max_peers=9).max_peers == 9


def test_a_probe_times_out_before_the_next_one():
    with pytest.raises(ConfigError, match=r"probe_timeout is 1\.5; .* probe_interval, which is 1"):
        PlumtreeConfig(probe_timeout=1.5)


def test_a_suspicion_lasts_at_least_one_probe_interval():
    with pytest.raises(ConfigError, match=r"suspicion_timeout is 5.0; .* probe_interval"):
        PlumtreeConfig(probe_interval=6, probe_timeout=0.5)


def test_degraded_comes_before_unhealthy():
    with pytest.raises(ConfigError, match=r"graft_failure_rate_degraded is 0.9; .* 0.8"):
        HealthConfig(graft_failure_rate_degraded=0.9)


def test_a_zone_has_64_bytes_at_most_and_any_visible_text():
    for zone in ("", "z" * 64, "ä" * 32, "eu west/1 [a]"):
        assert PlumtreeConfig(zone=zone).zone == zone


def test_maintenance_may_be_off():
    assert PlumtreeConfig(maintenance_interval=0).maintenance_interval == 0.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("250us", 0.00025),
        ("3", 3.0),
        (" 0.5 s ", 0.5),
        (".5", 0.5),
    ],
)
def test_a_duration_in_text_may_have_a_unit(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-1s", "1e3", "1,5s", "٣s", "inf", "1s2"])
def test_anything_else_is_no_duration(text):
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration(text)


# --- environment --------------------------------------------------------------------------------


def test_the_environment_lays_fields_over_the_preset():
    config = PlumtreeConfig.from_env(
        {
            "PLUMTREE_PRESET": "wan",
            "PLUMTREE_IHAVE_INTERVAL": "80ms",
            "PLUMTREE_EAGER_FANOUT": " 5 ",
            "PLUMTREE_USE_HASH_RING": "false",
            "PLUMTREE_MAX_PEERS": "20",
            "PLUMTREE_ZONE": " eu-1 ",
            "PLUMTREE_GRAFT_RATE_LIMIT_PER_SECOND": "7.5",
            "PLUMTREE_COMPRESSION__LEVEL": "9",
            "PLUMTREE_SYNC__SYNC_INTERVAL": "2m",
            "HOME": "/nowhere",
        }
    )
    assert config == PlumtreeConfig.wan(
        ihave_interval=0.08,
        eager_fanout=5,
        use_hash_ring=False,
        max_peers=20,
        zone="eu-1",
        graft_rate_limit_per_second=7.5,
        compression=CompressionConfig(enabled=True, level=9),
        sync=SyncConfig(sync_interval=120),
    )


def test_an_empty_environment_is_the_default():
    assert PlumtreeConfig.from_env({}) == PlumtreeConfig()


def test_the_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("PLUMTREE_LINGER", "3ms")
    assert PlumtreeConfig.from_env().linger == 0.003


def test_none_in_text_is_none():
    config = PlumtreeConfig.from_env(
        {"PLUMTREE_PRESET": "large_cluster", "PLUMTREE_MAX_EAGER_PEERS": "none"}
    )
    assert config.max_eager_peers is None


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PLUMTREE_EAGER_FANOUT", "many", "PLUMTREE_EAGER_FANOUT is 'many'.*whole number"),
        ("PLUMTREE_EAGER_FANOUT", "3.5", "whole number"),
        ("PLUMTREE_EAGER_FANOUT", "none", "whole number"),
        ("PLUMTREE_EAGER_FANOUT", "0", "eager_fanout is 0; allowed"),
        ("PLUMTREE_USE_HASH_RING", "maybe", "true or false"),
        ("PLUMTREE_LINGER", "soon", "PLUMTREE_LINGER.*not a duration"),
        ("PLUMTREE_GRAFT_RATE_LIMIT_PER_SECOND", "2m", "a number"),
        ("PLUMTREE_SYNC__SYNC_INTERVAL", "0", "sync_interval is 0"),
        ("PLUMTREE_PRESET", "wlan", "PLUMTREE_PRESET is 'wlan'.*default, lan, wan"),
    ],
)
def test_a_wrong_variable_is_named(variable, value, says):
    with pytest.raises(ConfigError, match=says):
        PlumtreeConfig.from_env({variable: value})


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("PLUMTREE_EAGER_FANOT", "PLUMTREE_EAGER_FANOUT"),
        ("PLUMTREE_SYNC_INTERVAL", "PLUMTREE_SYNC__SYNC_INTERVAL"),
        ("PLUMTREE_SEED", "PLUMTREE_SEEDS"),
        ("PLUMTREE_eager_fanout", "PLUMTREE_EAGER_FANOUT"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(variable, nearest):
    with pytest.raises(ConfigError, match=variable) as refused:
        PlumtreeConfig.from_env({variable: "3"})
    assert str(refused.value).endswith(f"did you mean {nearest}?")


def test_variables_of_the_node_command_are_passed_over():
    assert PlumtreeConfig.from_env(dict.fromkeys(NODE_ENVIRONMENT, "")) == PlumtreeConfig()


def test_variables_that_kubernetes_sets_for_a_service_are_passed_over():
    names = (
        "PLUMTREE_SERVICE_HOST",
        "PLUMTREE_SERVICE_PORT",
        "PLUMTREE_SERVICE_PORT_GOSSIP",
        "PLUMTREE_PORT",
        "PLUMTREE_PORT_7946_UDP",
        "PLUMTREE_PORT_7946_UDP_ADDR",
        "PLUMTREE_ORDERS_SERVICE_HOST",
    )
    assert PlumtreeConfig.from_env(dict.fromkeys(names, "10.0.0.1")) == PlumtreeConfig()


# --- TOML ---------------------------------------------------------------------------------------


def toml(tmp_path, text):
    path = tmp_path / "plumtree.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_toml_file_lays_its_table_over_the_preset(tmp_path):
    path = toml(
        tmp_path,
        """
        [other]
        key = 1
        [plumtree]
        preset = "lan"
        ihave_interval = "80ms"
        graft_timeout = 1
        eager_fanout = 5
        max_eager_peers = "none"
        use_hash_ring = true
        zone = "rack 7, Zürich"
        [plumtree.sync]
        enabled = false
        sync_interval = "1m"
        [plumtree.health]
        min_peers_degraded = 1
        """,
    )
    assert PlumtreeConfig.from_toml(str(path)) == PlumtreeConfig.lan(
        ihave_interval=0.08,
        graft_timeout=1.0,
        eager_fanout=5,
        use_hash_ring=True,
        zone="rack 7, Zürich",
        sync=SyncConfig(enabled=False, sync_interval=60),
        health=HealthConfig(min_peers_degraded=1),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[plumtree]\neager_fanot = 3",
            r"plumtree\.toml: unknown key eager_fanot; did you mean eager_fanout",
        ),
        ("[plumtree.sync]\ninterval = 3", r"key sync\.interval; did you mean sync\.sync_interval"),
        ("[plumtree]\nsync = 3", r"sync is 3; allowed: a table \[plumtree\.sync\]"),
        ("[plumtree.eager_fanout]\nx = 1", "eager_fanout is {'x': 1}; allowed"),
        ("[plumtree]\neager_fanout = 3.5", "eager_fanout is 3.5; allowed"),
        ("[plumtree]\nuse_hash_ring = 1", "use_hash_ring is 1; allowed"),
        ("[plumtree]\nlinger = 'soon'", "linger: 'soon' is not a duration"),
        ("[plumtree]\npreset = 'mars'", "preset is 'mars'; allowed: default, lan"),
        ("[plumtree]\npreset = ['lan']", "preset is .'lan'.; allowed"),
        ("[plumtre]\nlinger = 0", r"no table \[plumtree\]"),
        ("plumtree = 3", r"no table \[plumtree\]"),
        ("[plumtree", "cannot be read"),
        (b"[plumtree]\nx = '\xff'", "cannot be read"),
    ],
)
def test_a_wrong_toml_file_is_refused_naming_the_key(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        PlumtreeConfig.from_toml(toml(tmp_path, text))


def test_a_toml_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"nowhere.toml cannot be read: No such file or directory$"
    ):
        PlumtreeConfig.from_toml(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        PlumtreeConfig.from_toml(tmp_path)


def test_an_unknown_keyword_is_a_type_error_as_everywhere_in_python():
    with pytest.raises(TypeError, match="eager_fanot"):
        PlumtreeConfig.lan(eager_fanot=3)


# --- the page -----------------------------------------------------------------------------------


def shown(value):
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        return value or '""'
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def test_the_page_has_every_field_with_its_values():
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    table = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \| [^|]+ \|$", page, re.MULTILINE))
    expected = {}
    for field, values in PRESET_VALUES.items():
        if attrs.has(type(values[0])):
            for inner in attrs.fields_dict(type(values[0])):
                expected[f"{field}.{inner}"] = [getattr(value, inner) for value in values]
        else:
            expected[field] = values
    assert table == {
        field: " | ".join(shown(value) for value in values) for field, values in expected.items()
    }


def test_the_page_has_the_variables_of_the_node_command():
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    for name in set(NODE_ENVIRONMENT) - {"PLUMTREE_NO_SKIPS", "PLUMTREE_FLOOD_SCALE"}:
        assert f"`{name.removeprefix('PLUMTREE_')}`" in page or name in page
