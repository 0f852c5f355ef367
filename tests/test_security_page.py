"""docs/security.md names tests that exist, and every row of its tables names one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()


def rows():
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith(
            ("| ---", "| they try", "| it tries", "| what ")
        ):
            yield line


def named():
    return re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)


def test_every_row_of_the_threat_model_names_a_test():
    found = list(rows())
    assert len(found) > 30
    assert [line for line in found if "::test_" not in line] == []


def test_every_test_that_the_threat_model_names_exists():
    missing = [
        f"{path}::{name}"
        for path, name in named()
        if f"def {name}(" not in (ROOT / path).read_text()
    ]
    assert missing == []


def test_the_first_page_says_that_every_member_reads_every_topic():
    assert "Every member can read every topic" in PAGE[:200]
