"""One CA for the tests of a module."""

import pytest

from tests.rigs.pki import Pki


@pytest.fixture(scope="module")
def pki():
    return Pki("test")
