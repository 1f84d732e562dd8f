"""Run the gate over scans and write nothing but what it found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cfgen.batch.rows import reason
from cfgen.config import Preprocess
from cfgen.data.table import Row
from cfgen.progress import working
from cfgen.scan.brain import BrainFinder
from cfgen.scan.gate import Card, Finding, Gate, Verdict, verdict
from cfgen.scan.open import brain_of, look_at, mentioning, read_scan


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
        parts = [f"brain from {self.brain}"] if self.brain else []
        return f"{self.verdict:6}  {self.row.image}  " + "; ".join(parts + self.reasons)

    def table_row(self) -> dict[str, str]:
        """A line for a table: who, verdict, reasons and every measure."""
        ids = {"subject": self.row.subject, "session": self.row.session}
        result = {"verdict": self.verdict, "brain": self.brain, "reasons": "; ".join(self.reasons)}
        return ids | result | {f.measure: f"{f.found:.4g}" for f in self.findings}


def check_scans(
    rows: Sequence[Row], recipe: Preprocess, finder: BrainFinder, card: Card
) -> Iterator[Checked]:
    """The verdict on every row, one by one. A scan that cannot be read is refused, never raised."""
    with working("scans", len(rows)) as step:
        for row in rows:
            try:
                checked = _check(row, recipe, finder, card)
            except Exception as error:
                checked = Checked(row, "refuse", reasons=[reason(error)])
            step()
            yield checked


def _check(row: Row, recipe: Preprocess, finder: BrainFinder, card: Card) -> Checked:
    scan, notices = read_scan(row.image)
    with mentioning(notices):
        brain = brain_of(scan, row.mask or row.labels, finder)
        looked = look_at(scan, brain, recipe, Gate(card), notices)
    reasons = [f.text for f in looked.findings if f.verdict != "ok"]
    notes = [n.text for n in looked.notices if not n.code.startswith("gate-")]
    worst = verdict(looked.findings)
    if worst == "ok" and notes:
        worst = "warn"
    return Checked(row, worst, looked.brain.source, reasons + notes, looked.findings)
