"""Run the gate over scans and write nothing but what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cfgen.config import Preprocess
from cfgen.data.table import Row
from cfgen.data.volume import header_warnings, read_volume
from cfgen.errors import CfgenError
from cfgen.scan.brain import BrainFinder, find_brain
from cfgen.scan.gate import Card, Finding, Verdict, before_fit, fit_measures, judge, verdict
from cfgen.scan.prepare import prepare


@dataclass(frozen=True)
class Checked:
    """The verdict on a scan, its reasons in words, and what was measured."""

    row: Row
    verdict: Verdict
    brain: str = ""
    reasons: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def line(self) -> str:
        """A line for people: verdict, file, how the brain was found, reasons."""
        said = [f"brain from {self.brain}"] if self.brain else []
        return f"{self.verdict:6}  {self.row.image}  " + "; ".join(said + self.reasons)

    def table_row(self) -> dict[str, str]:
        """A line for a table: who, verdict, reasons and every measure."""
        who = {"subject": self.row.subject, "session": self.row.session}
        said = {"verdict": self.verdict, "brain": self.brain, "reasons": "; ".join(self.reasons)}
        return who | said | {f.measure: f"{f.found:.4g}" for f in self.findings}


def check_scans(
    rows: Sequence[Row], recipe: Preprocess, finder: BrainFinder, card: Card
) -> Iterator[Checked]:
    """The verdict on every row, one by one. A scan that cannot be read is refused, never raised."""
    for row in rows:
        try:
            yield _check(row, recipe, finder, card)
        except CfgenError as error:
            yield Checked(row, "refuse", reasons=[" ".join(str(error).split())])


def _check(row: Row, recipe: Preprocess, finder: BrainFinder, card: Card) -> Checked:
    scan = read_volume(row.image)
    brain = find_brain(scan, row.mask or row.labels, finder)
    findings = before_fit(scan, brain, card)
    # What no brain looks like is not registered; else every finding is told, not the first alone.
    if verdict(findings) != "refuse":
        findings += judge(fit_measures(prepare(scan, brain.mask, recipe)), card)
    reasons = [f.text for f in findings if f.verdict != "ok"]
    notes = [*header_warnings(row.image), *([brain.warning] if brain.warning else [])]
    worst = verdict(findings)
    if worst == "ok" and notes:
        worst = "warn"
    return Checked(row, worst, brain.source, reasons + notes, findings)
