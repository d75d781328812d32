"""Exercises that say whether an answer is right. Notebooks hold them once, with their solutions.

An exercise is four cells with tags: ``exercise`` (the question), ``start`` (code that runs as it is
and leaves the answer open), ``solution``, ``check``.
"""

from typing import Any

import numpy as np


def check(answer: Any, expected: Any, tolerance: float = 0.0, hint: str = "") -> bool:
    """Say whether an answer is right, and return it; a hint helps where it is not.

    ``answer``: None while it is open. ``expected``: a number or an array, met within ``tolerance``
    in every value, or anything else, met exactly.

    >>> check(0.81, 0.8, tolerance=0.02)
    right
    True
    >>> check(None, "b")
    no answer yet
    False
    """
    if answer is None:
        print("no answer yet")
        return False
    fault = _what_is_off(answer, expected, tolerance)
    print(f"not yet: {fault}{f'; {hint}' if hint else ''}" if fault else "right")
    return not fault


def _what_is_off(answer: Any, expected: Any, tolerance: float) -> str:
    if isinstance(expected, str | bool | tuple | set | dict):
        return "" if answer == expected else f"{answer!r} is not it"
    try:
        found, wanted = np.asarray(answer, float), np.asarray(expected, float)
    except (TypeError, ValueError):
        return f"{answer!r} is no number"
    if found.shape != wanted.shape:
        return f"the shape is {found.shape}, not {wanted.shape}"
    if np.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True):
        return ""
    return f"off by up to {np.nanmax(np.abs(found - wanted)):.3g}, allowed is {tolerance:g}"
