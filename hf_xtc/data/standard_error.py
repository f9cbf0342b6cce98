"""How far a score may be off because its rows are a sample."""

import math
from collections.abc import Callable, Sequence

import numpy as np

GROUPS = 50


def standard_error(score: Callable[[np.ndarray], float], units: Sequence[int] | np.ndarray) -> float:
    """The standard error of a score over rows, by the delete-a-group jackknife (Kott, 2001).

    Units are drawn into `GROUPS` groups, always in the same way, or each is a group where there are fewer. Of the
    scores without one of the G groups, it is `sqrt((G - 1) / G * sum((score - mean) ** 2))`. It says nothing of the
    spread over seeds.

    Args:
        score (`Callable`): The score of the rows of such numbers, ascending.
        units (`Sequence[int]`): What each row belongs to; rows of one unit stay together.

    Returns:
        `float`: In the score's own unit; NaN of fewer than two units, or where a score is not defined.
    """
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    count = int(unit.max(initial=-1)) + 1
    if count < 2:
        return math.nan
    groups = min(GROUPS, count)
    group = (np.random.default_rng(0).permutation(count) % groups)[unit]
    scores = np.array([score(np.flatnonzero(group != left_out)) for left_out in range(groups)])
    return float(np.sqrt((groups - 1) * np.mean(np.square(scores - scores.mean()))))
