"""Audit: security events as records, for a file that an operator keeps. Never a packet, never a
payload, never a peer's text as it came.

One record an outcome: a kind from KINDS, when, and flat fields. What one source can cause is
limited to ten records a minute of a kind; the next one that passes says how many did not.
"""

import json
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

__all__ = ["KINDS", "Audit", "SecurityRecord"]

KINDS: dict[str, str] = {
    "bundle.malformed": "a member signed a bundle whose body does not fit its header",
    "cert.expiring": "our own certificate ends in a week, a day, an hour",
    "clock.jump": "the wall clock jumped by more than a minute: certificates are judged again",
    "credentials.refused": "new certificate, key, CA or list files are no good; the old ones stay",
    "credentials.revoked": "our own certificate is no good by our own lists or policy",
    "credentials.rotated": "new certificate, key, CA or list files count from now on",
    "crl.unusable": "a revocation list is unreadable, stale, or not our CA's",
    "handshake.rejected": "a certificate did not stand the check: step, alert and whose it was",
    "identity.conflict": "somebody else runs under our own identity",
    "limit.hit": "a stranger or a peer is at one of its limits",
    "link.address_changed": "a peer sends from another address",
    "link.not_admitted": "a link was cut, for the policy admits its peer no more",
    "link.untrusted": "a link was cut, for its peer's certificate leads to no anchor of ours",
    "origin.equivocated": "a member signed two things under one number: both, as evidence",
    "policy.changed": "a new policy counts from now on",
    "policy.refused": "the policy file is no good; the old one stays",
    "publish.refused": "a member published under a topic that is not its own",
    "quota.cut": "a link was cut, for its peer went on above its limits",
    "quota.demoted": "a peer above its limits brings no origin any more",
    "quota.throttled": "a peer is above one of its limits; what is above is not looked at",
    "revoked.closed": "a link was cut, for its peer's certificate is revoked",
    "signature.refused": "something signed was not let through, and why",
}
"""Every kind of event, and when it happens."""

PER_MINUTE = 10
SOURCES_MAX = 4_096
TEXT_CHARACTERS_MAX = 300
FILE_BYTES_MAX = 16 << 20


@attrs.frozen
class SecurityRecord:
    """One event. fields: flat, plain values; text is printable ASCII. suppressed: how many of the
    same kind and source were not told since the last one.
    """

    kind: str
    at_ms: int
    fields: Mapping[str, str | int | float | bool | None]
    suppressed: int = 0

    def line(self) -> str:
        """The record as one line of JSON."""
        record = {"at_ms": self.at_ms, "kind": self.kind, **self.fields}
        if self.suppressed:
            record["suppressed"] = self.suppressed
        return json.dumps(record, ensure_ascii=True)


@attrs.define
class _Source:
    told: deque[float] = attrs.field(factory=deque)
    suppressed: int = 0


class Audit:
    """Makes records of events, and keeps them in a file when there is one.

    Args:
        path: JSON lines, mode 0600; at 16 MiB it becomes ``path.1`` and begins anew. None: no file.
        wall_ms: the wall clock in milliseconds since 1970.
    """

    def __init__(self, path: Path | None, wall_ms: Callable[[], int]) -> None:
        self._path = path
        self._wall_ms = wall_ms
        self._sources: OrderedDict[tuple[str, str], _Source] = OrderedDict()
        self.suppressed = 0
        self.write_errors = 0
        if path is not None:
            # A file that cannot be written is a mistake to be told at the start.
            self._append(path, b"")

    def note(self, kind: str, fields: Mapping[str, object], now: float) -> SecurityRecord | None:
        """Return the record of an event, after writing it, or None when it is one too many."""
        assert kind in KINDS, kind
        source = self._source(kind, fields)
        told = source.told
        while told and told[0] <= now - 60.0:
            told.popleft()
        if len(told) >= PER_MINUTE:
            source.suppressed += 1
            self.suppressed += 1
            return None
        told.append(now)
        plain = {str(name): _plain(value) for name, value in fields.items()}
        record = SecurityRecord(kind, self._wall_ms(), plain, source.suppressed)
        source.suppressed = 0
        if self._path is not None:
            try:
                self._append(self._path, record.line().encode() + b"\n")
            except OSError:
                # A full disk must not stop a node; the log and the delegate are told all the same.
                self.write_errors += 1
        return record

    def _source(self, kind: str, fields: Mapping[str, object]) -> _Source:
        who = next((fields[name] for name in ("peer", "origin", "address") if name in fields), "")
        # Ports come and go; a host does not.
        text = str(who)
        key = (kind, text.rpartition(":")[0] if "//" not in text and ":" in text else text)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source()
            if len(self._sources) > SOURCES_MAX:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(key)
        return source

    def _append(self, path: Path, line: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(line) > FILE_BYTES_MAX:
                os.replace(path, path.with_name(path.name + ".1"))
                os.close(descriptor)
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            if line:
                os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _plain(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool | int | float):
        return value
    return ascii(str(value))[1:-1][:TEXT_CHARACTERS_MAX]
