"""No setting without a test that shows what changing it changes."""

import attrs

from plumtree_quic.config import PlumtreeConfig
from tests.effects import (
    test_membership_effects,
    test_node_effects,
    test_overlay_effects,
    test_storage_effects,
    test_tree_effects,
)
from tests.rigs.effects import SHOWN

MODULES = (
    test_membership_effects,
    test_node_effects,
    test_overlay_effects,
    test_storage_effects,
    test_tree_effects,
)


def settings():
    for field in attrs.fields(PlumtreeConfig):
        if attrs.has(field.type):
            yield from (f"{field.name}.{inner.name}" for inner in attrs.fields(field.type))
        else:
            yield field.name


def test_every_setting_has_a_test_that_shows_its_effect():
    assert set(settings()) - set(SHOWN) == set()


def test_every_effect_shown_is_that_of_a_setting():
    assert set(SHOWN) - set(settings()) == set()
    names = {name for tests in SHOWN.values() for name in tests}
    assert all(any(hasattr(module, name) for module in MODULES) for name in names)
