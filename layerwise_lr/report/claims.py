"""Claims: is one setting better than another, and is that more than the seeds' noise? Paired by seed, all claims of a
study corrected together (Holm), with the number of seeds that would show a point.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import nctdtr, stdtr, stdtrit

from .factors import Facet
from .statistics import Interval, Setting, paired

LEVEL = 0.05
POWER = 0.8
POINT = 0.01
MOST_SEEDS = 10_000
_MOST_SHIFT = 8.0  # beyond it SciPy may have no number, and such a difference is seen all but always
BETTER, WORSE, SAME, FEW = "better", "worse", "no difference", "too few runs"


@dataclass(frozen=True)
class Claim:
    """One comparison.

    Args:
        facet: in which it is made.
        one: the setting that is judged.
        other: by which; each at its own best lr.
        difference: one - other on the test pictures, paired by seed; None: fewer than two seeds in common.
        p: of Student's paired t test, two-sided, after Holm's correction; NaN: none.
        of: claims that were corrected together.
    """

    facet: Facet
    one: Setting
    other: Setting
    difference: Interval | None
    p: float
    of: int = 1

    @property
    def answer(self) -> str:
        """BETTER, WORSE, SAME or FEW."""
        if self.difference is None or _regular(self.difference):
            return FEW
        if abs(self.difference.mean) <= 1e-9 or not self.p < LEVEL:
            return SAME
        return BETTER if self.difference.mean > 0 else WORSE

    def sentence(self, metric: str) -> str:
        """One honest sentence."""
        said = self._sentence(metric.replace("_", " "))
        return f"With {self.facet.where}: {said}" if self.facet.where else said

    def _sentence(self, metric: str) -> str:
        one, other, of = self.facet.name(self.one), self.facet.name(self.other), self.difference
        if of is None:
            return (
                f"{one} and {other} have fewer than two seeds in common: no interval, no claim. "
                "Run both with seed=0,1,2 or more."
            )
        if _regular(of):
            return (
                f"{one} against {other}: the same difference with each of {of.n} seeds "
                f"({100 * of.mean:+.1f} points), too regular for an interval: no claim. Run more seeds."
            )
        low, high = of.mean - of.half, of.mean + of.half
        p = f", p {self.p:.2g} corrected for {self.of} claims" if self.of > 1 and self.answer != SAME else ""
        span = f"({100 * of.mean:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {of.n} seeds{p})"
        if self.answer != SAME:
            return f"{one} is {self.answer} than {other} at its own best lr in {metric} {span}."
        chance = ""
        if not low <= 0 <= high:
            chance = f" Of {self.of} claims one such interval is likely by chance (p {self.p:.2g} corrected)."
        return f"{one} against {other} at its own best lr: no difference in {metric} that {of.n} seeds can show {span}.{chance}"

    @property
    def seeds_for_a_point(self) -> int | None:
        """How many would show a difference of one point in 80 % of all tries, if theirs spread as these do; None: nobody
        knows, or more than 10,000."""
        if self.difference is None or self.difference.n < 2 or self.difference.half < 1e-9:
            return None
        spread = deviation(self.difference)
        few, many = 2, MOST_SEEDS
        if power(POINT, spread, many) < POWER:
            return None
        while few < many:
            middle = (few + many) // 2
            few, many = (few, middle) if power(POINT, spread, middle) >= POWER else (middle + 1, many)
        return few


def claims(made: Sequence[Facet], metric: str) -> list[Claim]:
    """All that a study's facets can say, corrected together."""
    found = []
    for facet in made:
        for one, other in facet.pairs():
            difference = paired(one, other, metric)
            found.append(Claim(facet, one, other, difference, math.nan if difference is None else chance(difference)))
    tested = sorted((c for c in found if c.p == c.p), key=lambda c: c.p)
    corrected, highest = {}, 0.0
    for i, claim in enumerate(tested):
        highest = max(highest, min(1.0, claim.p * (len(tested) - i)))
        corrected[id(claim)] = highest
    return [replace(claim, p=corrected.get(id(claim), claim.p), of=len(tested)) for claim in found]


def chance(difference: Interval) -> float:
    """Student's paired t test, two-sided: how likely so large a difference is where there is none. NaN: no spread."""
    spread = deviation(difference)
    if not spread > 0:
        return math.nan
    t = abs(difference.mean) / (spread / math.sqrt(difference.n))
    return float(2 * stdtr(difference.n - 1, -t))


def deviation(difference: Interval) -> float:
    """The standard deviation of the differences that the interval was made of."""
    return difference.half * math.sqrt(difference.n) / float(stdtrit(difference.n - 1, 0.975))


def power(effect: float, spread: float, n: int) -> float:
    """How often the two-sided paired t test at 5 % sees a true mean difference, with `n` seeds (noncentral t)."""
    limit, shift = float(stdtrit(n - 1, 1 - LEVEL / 2)), min(effect / spread * math.sqrt(n), _MOST_SHIFT)
    return float(1 - nctdtr(n - 1, shift, limit) + nctdtr(n - 1, shift, -limit))


def _regular(difference: Interval) -> bool:
    """The same with each seed, and not zero: too good to be a sample."""
    return difference.half < 1e-9 < abs(difference.mean)
