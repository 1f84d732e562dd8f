"""One line of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

from cfgen.metrics.statistics import NAN, Estimate

Better = Literal["up", "down", "to 0", "to 1", ""]
# Where effectiveness on the acquisition is defined.
CDDGM = "cDDGM Tab. 1, 3"
# The method of a floor: real scans, of which nothing was asked.
REAL = "real"
# Counterfactuals that changed a condition by any edit, that changed it, and that kept it.
ALL, CHANGED, KEPT = "all", "changed", "kept"


class Extractor(NamedTuple):
    """What sees an image: `by` in a word, as tables look for it, and `name` in full."""

    by: str
    name: str


@dataclass(frozen=True)
class Result:
    """A figure with all that it takes to read it, and to find it: by fields that are equal, never
    by a part of a text.

    `variable` is the condition and `region` the structure that it is of, `variant` the way where
    there are several, `group` the part of the scans (an intervention, a comparison), `asked` the
    change of the variable that was asked of all in the group. `n` are people, or images of nobody
    where a set was generated; `interval` says what `low` and `high` are. `better` is the direction
    of good, `by` and `extractor` whose features, guesses or volumes it rests on, `reference` where
    the figure is defined.
    """

    metric: str = ""
    variable: str = ""
    region: str = ""
    variant: str = ""
    group: str = ""
    asked: float = NAN
    method: str = ""
    value: float = NAN
    low: float = NAN
    high: float = NAN
    interval: str = ""
    n: int = 0
    unit: str = ""
    better: Better = ""
    by: str = ""
    extractor: str = ""
    reference: str = ""
    note: str = ""

    def named(
        self,
        metric: str,
        figure: float | Estimate,
        better: Better = "",
        unit: str = "",
        note: str = "",
    ) -> Result:
        """This line with a figure in it."""
        value, low, high, interval = figure if isinstance(figure, Estimate) else Estimate(figure)
        return replace(
            self,
            metric=metric,
            value=value,
            low=low,
            high=high,
            interval=interval,
            better=better,
            unit=unit,
            note=note or self.note,
        )

    def line(self) -> dict[str, str]:
        """The cells of metrics.csv."""
        return {k: _text(v) for k, v in asdict(self).items()}


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value)
