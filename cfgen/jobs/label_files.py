"""The files of a scan's label map, and their names, for the commands that write one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.data.manifest import unique_key
from cfgen.data.names import check_outputs
from cfgen.data.table import Row
from cfgen.data.volume import strip_suffix


@dataclass(frozen=True)
class LabelFiles:
    """The files of one scan; None where one is not wanted."""

    labels: Path
    posteriors: Path | None = None
    picture: bool = True
    mask: Path | None = None

    @property
    def sidecar(self) -> Path:
        return self.labels.with_name(strip_suffix(self.labels) + ".json")

    @property
    def png(self) -> Path:
        return self.sidecar.with_suffix(".png")

    def paths(self) -> list[Path]:
        paths = [self.labels, self.sidecar, *([self.png] if self.picture else [])]
        return paths + [p for p in (self.mask, self.posteriors) if p is not None]


def name_files(rows: Sequence[Row], wanted: LabelFiles, single: bool) -> list[LabelFiles]:
    """The files of every row: those that are `wanted` for a `single` scan, else in these as
    folders, by subject.

    Raises UsageError for names that no file system takes, ImageError for a folder that cannot be
    written.
    """

    def inside(folder: Path | None, row: Row, ending: str) -> Path | None:
        return None if folder is None else folder / f"{unique_key(row)}_{ending}.nii.gz"

    named = [wanted]
    if not single:
        named = [
            LabelFiles(
                wanted.labels / f"{unique_key(row)}_dseg.nii.gz",
                inside(wanted.posteriors, row, "probseg"),
                wanted.picture,
                inside(wanted.mask, row, "mask"),
            )
            for row in rows
        ]
    check_outputs(path for files in named for path in files.paths())
    return named
