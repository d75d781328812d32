"""The one way to refuse a word that stands for nothing."""

from collections.abc import Iterable
from difflib import get_close_matches


def check_choice(argument: str, found: str, valid: Iterable[str]) -> None:
    """Raise ValueError, with the valid words and the close ones, unless ``found`` is valid."""
    choices = tuple(valid)
    if found not in choices:
        close = get_close_matches(str(found), choices)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"{argument}: unknown {found!r}; choose from {', '.join(choices)}{hint}")
