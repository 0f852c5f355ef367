"""Security events: what a record holds, how many there are, and the file."""

import json
import re
from pathlib import Path

import pytest

from plumtree_quic.security import audit as audit_module
from plumtree_quic.security.audit import KINDS, PER_MINUTE, Audit

SOURCE = Path(audit_module.__file__).parents[1]


def audit(path=None, at_ms=1_790_000_000_000):
    return Audit(path, lambda: at_ms)


def test_every_kind_that_the_code_tells_is_in_the_table_and_no_other():
    text = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "audit.py")
    calls = r'(?:security_event|_tell_security)\(\s*"([a-z_.]+)"|(?<= )"([a-z_]+\.[a-z_]+)"'
    named = {first or second for first, second in re.findall(calls, text)}
    assert set(KINDS) <= named
    told = set(re.findall(r'(?:security_event|_tell_security)\(\s*"([a-z_.]+)"', text))
    assert told <= set(KINDS)


def test_a_kind_that_is_not_in_the_table_is_a_bug():
    with pytest.raises(AssertionError):
        audit().note("made.up", {}, 0.0)


def test_a_record_is_flat_plain_and_cut():
    hostile = "\x1b[31m\n2026 ERROR forged\u202e" + "x" * 1_000
    record = audit().note("handshake.rejected", {"subject": hostile, "step": 9, "ok": None}, 0.0)
    assert record.fields["step"] == 9
    assert record.fields["ok"] is None
    text = record.fields["subject"]
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 300
    assert "\n" not in record.line()
    assert json.loads(record.line())["kind"] == "handshake.rejected"


@pytest.mark.parametrize("field", ["peer", "origin", "address"])
def test_a_source_is_told_of_ten_times_a_minute_and_the_rest_is_counted(field):
    made = audit()
    told = [made.note("limit.hit", {field: "198.51.100.7:1"}, second / 10) for second in range(100)]
    assert sum(record is not None for record in told) == PER_MINUTE
    assert made.suppressed == 100 - PER_MINUTE
    # Another kind, and another source, have their own count.
    assert made.note("handshake.rejected", {field: "198.51.100.7:1"}, 10.0)
    assert made.note("limit.hit", {field: "198.51.100.8:1"}, 10.0)
    later = made.note("limit.hit", {field: "198.51.100.7:1"}, 75.0)
    assert later.suppressed == 100 - PER_MINUTE
    assert json.loads(later.line())["suppressed"] == 100 - PER_MINUTE


def test_ports_of_one_host_are_one_source():
    made = audit()
    for port in range(100):
        made.note("handshake.rejected", {"address": f"198.51.100.7:{port}"}, 0.0)
    assert made.suppressed == 100 - PER_MINUTE


def test_sources_are_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr(audit_module, "SOURCES_MAX", 10)
    made = audit()
    for number in range(100):
        made.note("limit.hit", {"address": f"10.0.0.{number}:1"}, 0.0)
    assert len(made._sources) == 10


def test_the_file_has_one_json_object_a_line_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "security.jsonl"
    made = audit(path)
    made.note("policy.changed", {"file": "p.toml"}, 0.0)
    made.note("revoked.closed", {"peer": "spiffe://a/b"}, 0.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["policy.changed", "revoked.closed"]
    assert lines[0]["at_ms"] == 1_790_000_000_000
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_bounded_and_keeps_one_older_one(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_module, "FILE_BYTES_MAX", 1_000)
    path = tmp_path / "security.jsonl"
    made = audit(path)
    for number in range(200):
        made.note("limit.hit", {"address": f"10.0.{number}.1:1", "what": "x" * 50}, 0.0)
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["security.jsonl", "security.jsonl.1"]
    assert all(each.stat().st_size <= 1_000 for each in tmp_path.iterdir())
    for each in tmp_path.iterdir():
        for line in each.read_text().splitlines():
            json.loads(line)


def test_a_file_that_cannot_be_written_is_told_at_the_start_and_later_only_counted(tmp_path):
    with pytest.raises(OSError, match="directory"):
        audit(tmp_path / "nowhere" / "security.jsonl")
    folder = tmp_path / "logs"
    folder.mkdir()
    made = audit(folder / "security.jsonl")
    (folder / "security.jsonl").unlink()
    folder.rmdir()
    assert made.note("policy.changed", {}, 0.0) is not None
    assert made.write_errors == 1
