"""docs/wire.md says what the code does."""

import re
from pathlib import Path

from plumtree_quic import messages, wire
from plumtree_quic.net.link import CloseCode
from tests.rigs.wire_examples import DATAGRAMS, STREAMS, frames

TEXT = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()


def rows(pattern):
    found = re.findall(pattern, TEXT, re.MULTILINE)
    assert found
    return found


def test_the_lanes_are_those_of_the_code():
    table = {name.upper(): int(number) for name, number in rows(r"^\| ([a-z]+) \| (\d) \|")}
    assert table == {lane.name: lane.value for lane in messages.Lane}


def test_the_types_are_those_of_the_code():
    found = rows(r"^\| (0x\d\d) \| ([A-Z]\w+) \|")
    table = {name: int(kind, 16) for kind, name in found if not name.isupper()}
    assert table == {
        type(message).__name__: body[0]
        for each in (*STREAMS.values(), *DATAGRAMS.values())
        for message, body in zip(each, frames(each), strict=True)
    }


def test_the_limits_are_those_of_the_code():
    table = {name: int(value.replace(",", "")) for name, value in rows(r"^\| (\w+) \| ([\d,]+) \|")
             if name.isupper()}  # fmt: skip
    spoken = ("SEQ_MAX", "EPOCH_MAX", "INCARNATION_MAX", "MILLISECONDS_MAX", "HOP_MAX")
    in_code = {
        name: value for name, value in vars(wire).items() if re.fullmatch(r"[A-Z][A-Z_]+_MAX", name)
    }
    assert {name: value for name, value in in_code.items() if name not in spoken} == table
    assert [in_code[name] for name in spoken] == [
        2**62 - 1, 2**48 - 1, 2**48 - 1, 2**48 - 1, 255
    ]  # fmt: skip


def test_the_close_codes_are_those_of_the_code():
    table = {name: int(code, 16) for code, name in rows(r"^\| (0x1\d) \| ([A-Z_]+) \|")}
    in_code = {name: code for name, code in vars(CloseCode).items() if name.isupper()}
    assert table == in_code


def test_the_version_is_the_codes():
    assert f"Version {wire.MAJOR}.{wire.MINOR}." in TEXT
