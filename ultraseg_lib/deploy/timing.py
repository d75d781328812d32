"""Timing in turns: whatever else the machine does falls on every row alike."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

TURN, LEAST = 5, 10  # timed calls in a turn, timed calls at least


@dataclass
class Timed:
    """Something to be timed `frames` times or for `seconds`, whichever is less.

    `sample` does and times a number of calls, and returns their milliseconds.
    """

    sample: Callable[[int], list[float]]
    frames: int = 200
    seconds: float = 20.0
    times: list[float] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Return whether there are enough times; LEAST of them there must be."""
        late = sum(self.times) >= 1e3 * self.seconds
        return len(self.times) >= (LEAST if late else max(self.frames, LEAST))

    def turn(self) -> None:
        """Time up to TURN calls."""
        self.times += self.sample(min(TURN, max(self.frames, LEAST) - len(self.times)))

    def spread(self) -> dict[str, float]:
        """Return median, interquartile range and 95th percentile, in ms."""
        quarter, median, three, p95 = np.percentile(self.times, [25, 50, 75, 95])
        found = {"median_ms": median, "iqr_ms": three - quarter, "p95_ms": p95}
        return {name: round(float(value), 4) for name, value in found.items()}


def time_in_turns(calls: list[Timed], label: str) -> None:
    """Time all, a turn of each after a turn of the one before, until all are done."""
    frames = sum(max(each.frames, LEAST) for each in calls)
    with tqdm(total=frames, desc=label, unit="frame", disable=None, leave=False) as bar:
        while waiting := [each for each in calls if not each.is_done]:
            for each in waiting:
                before = len(each.times)
                each.turn()
                bar.update(len(each.times) - before)
