"""Which settings have a test that shows what changing them changes."""

from collections.abc import Callable
from typing import TypeVar

SHOWN: dict[str, list[str]] = {}
"""Path of a field, ``sync.enabled`` for a part's, -> names of the tests that show its effect."""

_Test = TypeVar("_Test", bound=Callable[..., object])


def shows_effect_of(*fields: str) -> Callable[[_Test], _Test]:
    """Mark a test that fails when changing one of `fields` changes nothing."""

    def mark(test: _Test) -> _Test:
        for field in fields:
            SHOWN.setdefault(field, []).append(test.__name__)
        return test

    return mark
