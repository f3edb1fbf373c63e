"""What recent measurements say: small estimators that forget, from which workers and routers predict. Pure."""

import math


class RecentRate:
    """An amount per second over the last observations. Long ones count for as much as they took, so a few short bursts do not
    drown a long one."""

    def __init__(self, remembered: int = 16) -> None:
        """`remembered`: about so many observations shape the value."""
        self._keep = 1 - 1 / remembered
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        self._amount = self._amount * self._keep + amount
        self._seconds = self._seconds * self._keep + seconds

    @property
    def per_second(self) -> float:
        """0 while nothing was measured."""
        return self._amount / self._seconds if self._seconds > 0 else 0.0


class RecentMean:
    """The mean of the last observations, exponentially weighted. The first ones weigh alike, so it starts without a lag."""

    def __init__(self, remembered: int = 16) -> None:
        self._keep = 1 - 1 / remembered
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = self._sum * self._keep + value
        self._weight = self._weight * self._keep + 1

    @property
    def value(self) -> float:
        """0 while nothing was measured."""
        return self._sum / self._weight if self._weight else 0.0


class RecentLine:
    """A cost of two parts, fixed + slope · x: least squares over the last observations. Neither part is ever negative.

    Where x has hardly varied a slope cannot be measured; so every question says which one to assume then.
    """

    def __init__(self, remembered: int = 64) -> None:
        self._keep = 1 - 1 / remembered
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        self._weight = self._weight * self._keep + 1
        self._x = self._x * self._keep + x
        self._y = self._y * self._keep + y
        self._xx = self._xx * self._keep + x * x
        self._xy = self._xy * self._keep + x * y

    @property
    def weight(self) -> float:
        """How many observations shape it, the forgotten share taken off."""
        return self._weight

    @property
    def mean_x(self) -> float:
        return self._x / self._weight if self._weight else 0.0

    @property
    def mean_y(self) -> float:
        return self._y / self._weight if self._weight else 0.0

    @property
    def deviation_x(self) -> float:
        """The standard deviation of x: how well a slope can be measured."""
        return math.sqrt(self._variance_x)

    @property
    def _variance_x(self) -> float:
        return max(0.0, self._xx / self._weight - self.mean_x**2) if self._weight else 0.0

    def fit(self, assumed_slope: float, spread: float) -> tuple[float, float]:
        """(fixed, slope). `assumed_slope` rules while the standard deviation of x lies well below `spread`, and the
        measurements where it lies above (ridge regression towards the assumption). Source: any text on regularised least
        squares; the weighting is `spread` squared."""
        if not self._weight:
            return 0.0, assumed_slope
        mean_x, mean_y = self.mean_x, self.mean_y
        variance = self._variance_x
        covariance = self._xy / self._weight - mean_x * mean_y
        slope = max(0.0, (covariance + spread * spread * assumed_slope) / (variance + spread * spread))
        fixed = mean_y - slope * mean_x
        if fixed >= 0:
            return fixed, slope
        return 0.0, self._xy / self._xx if self._xx else 0.0
