"""The one way to refuse a word that stands for nothing."""

from collections.abc import Iterable


def check_choice(argument: str, found: object, valid: Iterable[str]) -> None:
    """Raise ValueError, with the valid words, unless ``found`` is one of them."""
    choices = tuple(valid)
    if found not in choices:
        raise ValueError(f"{argument}: unknown {found!r}; choose from {', '.join(choices)}")
