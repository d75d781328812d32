"""The one way to refuse a word that stands for nothing."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(found: str, valid: Iterable[str]) -> str:
    """Return "; did you mean …?" with the valid words that are close, nothing where none is."""
    close = get_close_matches(found, list(valid))
    return f"; did you mean {' or '.join(close)}?" if close else ""


def check_choice(argument: str, found: str, valid: Iterable[str]) -> None:
    """Raise ValueError, with the valid words and the close ones, unless ``found`` is valid."""
    choices = tuple(valid)
    if found not in choices:
        hint = did_you_mean(str(found), choices)
        raise ValueError(f"{argument}: unknown {found!r}; choose from {', '.join(choices)}{hint}")
