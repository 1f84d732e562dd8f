"""Which scans a tissue network learns from, and which it is tested on: nobody is in both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.table import Row
from cfgen.errors import ManifestError

log = logging.getLogger("cfgen")


@dataclass(frozen=True)
class TissueData:
    """Rows with labels: of each person in `train` the scan and what was made of it, `val`, and the
    scans of further manifests by name."""

    train: list[list[Row]]
    val: list[Row]
    tests: dict[str, list[Row]]


def read_tissue_data(
    manifest: Path, augmented: Sequence[Path] = (), tests: Sequence[Path] = ()
) -> TissueData:
    """The labelled rows of a manifest's splits train and val, counterfactuals of the train people
    out of `augmented` manifests, and scans of `tests`.

    A person of `augmented` who is not in train is left out, so that nobody of val or a test gets
    into training; of a test manifest the rows of split 'test' count where there are any, and nobody
    who was trained on. What is left out is said. Raises ManifestError where nothing is left.
    """
    rows = _labelled(manifest)
    by_person: dict[str, list[Row]] = {}
    for row in (r for r in rows if r.split == "train"):
        by_person.setdefault(row.subject, []).append(row)
    val = [r for r in rows if r.split == "val"]
    for split, part in (("train", by_person), ("val", val)):
        if not part:
            raise ManifestError(
                manifest,
                f"no row with labels has split '{split}'",
                "scans with label maps in train to learn from, and in val to be measured on",
                "add the columns labels and split",
            )
    for path in augmented:
        made = _labelled(path)
        kept = [r for r in made if r.subject in by_person]
        _say_left_out(path, len(made) - len(kept), "are of nobody in train")
        if not kept:
            raise ManifestError(
                path, "nobody of it is in train", f"subjects of the train rows of {manifest}"
            )
        for row in kept:
            by_person[row.subject].append(row)
    named = {_name(path): _tested(path, by_person) for path in tests}
    if len(named) < len(tests) or "val" in named:
        raise ManifestError(
            ", ".join(map(str, tests)), "two of one name, or one called val", "other names"
        )
    return TissueData(list(by_person.values()), val, named)


def _labelled(path: Path) -> list[Row]:
    rows = read_manifest(path, default_schema())
    kept = [r for r in rows if r.labels]
    _say_left_out(path, len(rows) - len(kept), "have no labels")
    return kept


def _name(path: Path) -> str:
    """A manifest that says nothing by its own name is called as its folder is."""
    return path.absolute().parent.name if path.stem == "manifest" else path.stem


def _tested(path: Path, trained: dict[str, list[Row]]) -> list[Row]:
    rows = _labelled(path)
    rows = [r for r in rows if r.split == "test"] or rows
    kept = [r for r in rows if r.subject not in trained]
    _say_left_out(path, len(rows) - len(kept), "have the subject of a train row")
    if not kept:
        raise ManifestError(
            path, "no row to test on", "scans with labels of people who were not trained on"
        )
    return kept


def _say_left_out(path: Path, count: int, why: str) -> None:
    if count:
        log.warning("%s: %d rows %s and are left out", path, count, why)
