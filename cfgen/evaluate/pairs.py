"""What belongs together: a counterfactual with its factual scan, and with its truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.data.table import Row
from cfgen.data.volume import Volume
from cfgen.errors import ImageError, ManifestError
from cfgen.evaluate.scans import Made, Real
from cfgen.space.grids import grid_text

log = logging.getLogger("cfgen")


def pair(rows: Sequence[Row], real: Sequence[Real], name: str) -> list[tuple[Row, Real]]:
    """Each row with its factual scan: by 'factual_image', else by subject where that is one scan.

    Scans that the gate refused are no error; rows whose factual is not in the manifest are.
    """
    by_image = {str(r.row.image.resolve()): r for r in real}
    by_subject: dict[str, list[Real]] = {}
    for r in real:
        by_subject.setdefault(r.row.subject, []).append(r)
    pairs, lost = [], []
    for row in rows:
        path = row.extra.get("factual_image", "")
        factual = by_image.get(str(Path(path).resolve())) if path else None
        same = by_subject.get(row.subject, [])
        if factual is None and len(same) == 1:
            factual = same[0]
        if factual is None:
            lost.append(f"{row.source} subject '{row.subject}'")
        else:
            pairs.append((row, factual))
    if not pairs:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise ManifestError(
            name,
            f"no row has its factual scan among the real ones: {shown}",
            "the subjects of --real, or a column factual_image with their paths",
        )
    if lost:
        log.warning(
            "%s: %d rows have no factual scan and are left out: %s",
            name,
            len(lost),
            ", ".join(lost[:5]),
        )
    return pairs


def label_of(session: str, visit: str) -> str:
    """The label of a counterfactual that only its session names: 'ses-2_age+20' of visit 'ses-2'
    is 'age+20'."""
    return session.removeprefix(f"{visit}_") if visit else session


def check_grid(scan: Volume, real: Real) -> None:
    if not scan.grid.matches(real.native):
        raise ImageError(
            scan.path,
            f"{grid_text(scan.grid)} is not the grid of its factual scan {real.row.image.name}",
            grid_text(real.native),
            "compare images that were written on the scan's own grid",
        )


@dataclass(frozen=True)
class Truths:
    """The rows of true images and label maps: by factual scan and intervention, and by subject,
    visit and intervention for scans that lie elsewhere than they did. A subject's visits have a
    truth each."""

    by_scan: dict[tuple[Path, str], Row]
    by_visit: dict[tuple[str, str, str], Row]

    def of(self, edit: Made) -> Row | None:
        real = edit.real.row
        row = self.by_scan.get((real.image.resolve(), edit.label))
        return row or self.by_visit.get((real.subject, real.session, edit.label))


def read_truths(rows: Sequence[Row], name: str) -> Truths:
    """Of the rows of a truth.csv. Raises ManifestError where a row has no intervention, and where
    two would be the truth of one counterfactual."""
    bare = [row.source for row in rows if "intervention" not in row.extra]
    if bare:
        raise ManifestError(
            name,
            f"no column intervention ({', '.join(bare[:3])})",
            "the truth.csv of 'cfgen simulate --truth'",
        )
    by_scan: dict[tuple[Path, str], Row] = {}
    by_visit: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        label = row.extra["intervention"]
        # 'ses-2_age+20' is of visit 'ses-2', and 'age+20' of the only one.
        visit = row.session.removesuffix(label).removesuffix("_")
        if (row.subject, visit, label) in by_visit:
            raise ManifestError(
                name,
                f"two truths of subject '{row.subject}', session '{visit}', {label} "
                f"({by_visit[row.subject, visit, label].source}, {row.source})",
                "one",
            )
        by_visit[row.subject, visit, label] = row
        if row.extra.get("factual_image"):
            by_scan[Path(row.extra["factual_image"]).resolve(), label] = row
    return Truths(by_scan, by_visit)
