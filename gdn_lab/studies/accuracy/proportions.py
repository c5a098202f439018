"""Statistics of right and wrong answers: Wilson's interval of a share, McNemar's exact test of a difference."""

import math
from typing import NamedTuple

Z95 = 1.959963984540054  # of a two-sided 95% interval of the normal distribution


class Interval(NamedTuple):
    """A share and its 95% interval."""

    share: float
    low: float
    high: float


def wilson(right: int, total: int, z: float = Z95) -> Interval:
    """Wilson's score interval of `right` of `total` (E. B. Wilson, 1927). ValueError unless 0 <= right <= total > 0."""
    if not 0 <= right <= total or not total:
        raise ValueError(f"right: expected 0 to {total} right answers of at least one question, got {right}")
    share, z2 = right / total, z * z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value of McNemar's test: of lost + won discordant pairs, each is as likely to be lost as won.

    lost: questions that only the first answers right, won: that only the second does. 1 where there are none.
    """
    n, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**n) if n < 1000 else math.exp(math.log(2 * tail) - n * math.log(2)))


def fisher(first: int, first_total: int, second: int, second_total: int) -> float:
    """Fisher's exact two-sided p-value of two shares of different questions: of all tables with the same sums, those
    that are no likelier than this one."""
    right, total = first + second, first_total + second_total
    most, least = min(right, first_total), max(0, right - second_total)
    ways = [math.comb(first_total, n) * math.comb(second_total, right - n) for n in range(least, most + 1)]
    own = ways[first - least]
    return sum(each for each in ways if each <= own) / math.comb(total, right)


def difference(lost: int, won: int, total: int, z: float = Z95) -> Interval:
    """The change of the share of right answers from the first to the second on the same questions, with Wald's interval
    after half a question is added to each of the four outcomes (A. Agresti, Y. Min, 2005): no change has a width too.
    """
    n = total + 2
    middle = (won - lost) / n
    half = z * math.sqrt(lost + won + 1 - (won - lost) ** 2 / n) / n
    return Interval((won - lost) / total, middle - half, middle + half)


def spread(shares: list[float], total: int) -> tuple[float, float]:
    """(standard deviation of repeated shares, the standard error that `total` questions alone give their mean)."""
    mean = sum(shares) / len(shares)
    deviation = math.sqrt(sum((share - mean) ** 2 for share in shares) / (len(shares) - 1))
    return deviation, math.sqrt(mean * (1 - mean) / total)
