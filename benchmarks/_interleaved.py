"""Timing several ways of doing the same, in turn, in one process: their medians and ratios.

A machine's speed drifts; a ratio of neighbouring runs does not. No absolute time here is a claim.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of each way, run by run."""

    seconds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Median seconds of one way."""
        return statistics.median(self.seconds[way])

    def ratio(self, way: str, base: str) -> float:
        """Median over rounds of one way's time over another's in the same round."""
        pairs = zip(self.seconds[way], self.seconds[base], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(ways: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> Timing:
    """Run each way once per round, in an order that rotates from round to round."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-warm_up, rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            kept = ways[name]()
            elapsed = time.perf_counter() - start
            del kept  # freed outside the time, as a user's next cell would
            if i >= 0:
                seconds[name].append(elapsed)
    return Timing(seconds)
