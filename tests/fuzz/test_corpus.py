"""Every target over its corpus, and over damaged copies of it; atheris does this for hours."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.corpus import FOLDER, kept, made
from tests.fuzz.targets import TARGETS
from tests.rigs.fuzz import damage


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_raises_nothing(target):
    inputs = made(target) + kept(target)
    assert inputs
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_copies_raise_nothing(target):
    rng = Random(target)
    inputs = made(target) + kept(target)
    for _ in range(1_500 if target != "tls" else 300):
        data = bytearray(rng.choice(inputs))
        for _ in range(rng.choice((1, 1, 2, 8))):
            damage(rng, data, inputs)
        TARGETS[target](bytes(data[:70_000]))


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=400))
def test_random_bytes_raise_nothing(target, data):
    TARGETS[target](data)


def test_the_corpus_is_small_and_holds_no_key():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in files)
