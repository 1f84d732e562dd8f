"""One line of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from cfgen.metrics.statistics import Estimate

Better = Literal["up", "down", "to 0", "to 1", ""]
NAN = float("nan")
# Where effectiveness on the acquisition is defined.
CDDGM = "cDDGM Tab. 1, 3"


@dataclass(frozen=True)
class Result:
    """A figure with all that it takes to read it.

    `n` are people, `group` is the part of the scans (an intervention, a region), `better` the
    direction of good, `extractor` whose features, guesses or volumes it rests on, `reference` where
    the figure is defined. `comparable` is for figures that may stand beside a paper's: same
    weights, same preparation, same data.
    """

    metric: str = ""
    value: float = NAN
    low: float = NAN
    high: float = NAN
    n: int = 0
    method: str = ""
    group: str = ""
    unit: str = ""
    better: Better = ""
    extractor: str = ""
    reference: str = ""
    comparable: bool = False
    note: str = ""

    def named(
        self,
        metric: str,
        found: float | Estimate,
        better: Better = "",
        unit: str = "",
        note: str = "",
    ) -> Result:
        """This line with a figure in it."""
        value, low, high = found if isinstance(found, Estimate) else (found, NAN, NAN)
        return replace(
            self,
            metric=metric,
            value=value,
            low=low,
            high=high,
            better=better,
            unit=unit,
            note=note or self.note,
        )

    def line(self) -> dict[str, str]:
        """The cells of metrics.csv."""
        return {k: _text(v) for k, v in asdict(self).items()}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if value != value else f"{value:.6g}"
    return str(value)
