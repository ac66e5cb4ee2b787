"""What has been usual of late: a causal median and spread over the last minute of one number."""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np

MEMORY_SECONDS = 60.0
MIN_VALUES = 5
"""Fewer values than this say nothing about what is usual."""
MAD_TO_STD = 1.4826
"""The median absolute deviation of a Gaussian times this is its standard deviation."""


class Recent:
    """Values of the last `seconds` of a stream. floor: the least spread that is believed, in the unit of the values."""

    def __init__(self, floor: float, seconds: float = MEMORY_SECONDS) -> None:
        self.floor = floor
        self.seconds = seconds
        self._values: deque[tuple[float, float]] = deque()

    def __len__(self) -> int:
        return len(self._values)

    def z(self, value: float) -> float | None:
        """How many robust standard deviations `value` lies above the median; None while too little has been seen."""
        if len(self._values) < MIN_VALUES:
            return None
        # For a minute of numbers this is many times quicker than NumPy's median.
        values = [value for _, value in self._values]
        middle = median(values)
        spread = MAD_TO_STD * median([abs(value - middle) for value in values])
        return (value - middle) / max(spread, self.floor)

    def add(self, at_seconds: float, value: float) -> None:
        """Remember `value`, and forget what is older than `seconds`."""
        self._values.append((at_seconds, value))
        while self._values[0][0] < at_seconds - self.seconds:
            self._values.popleft()

    @property
    def newest(self) -> float:
        """What was added last. IndexError if there is nothing."""
        return self._values[-1][1]

    @property
    def values(self) -> np.ndarray:
        """float64 [n], oldest first."""
        return np.array([value for _, value in self._values])
