"""manifest.csv and failed.csv of a folder that several runs may write into, also at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cfgen.data.manifest import manifest_lines, write_lines
from cfgen.data.table import Row, read_table
from cfgen.errors import ManifestError


def write_lists(
    folder: Path, done: Sequence[Row], failed: Sequence[Row], tried: Sequence[Row]
) -> list[Path]:
    """manifest.csv of what is in the folder and, where rows failed, failed.csv: manifests again.

    What an earlier run listed stays, what was done as long as its image is there; of `tried` rows
    the new word counts. Gives the paths that were written.
    """
    tried_keys = {(row.subject, row.session) for row in tried}
    written = []
    with _locked(folder):
        for name, rows, gone, with_image in (
            ("manifest.csv", done, {(row.subject, row.session) for row in done}, True),
            ("failed.csv", failed, tried_keys, False),
        ):
            path = folder / name
            kept = _kept(path, gone, with_image=with_image)
            lines = [*kept, *manifest_lines(rows, folder)]
            if lines:
                write_lines(path, lines)
                written.append(path)
            else:
                path.unlink(missing_ok=True)
    return written


def _kept(path: Path, gone: set[tuple[str, str]], *, with_image: bool) -> list[dict[str, str]]:
    """The lines of an earlier list, but for those of `gone`, and `with_image` of images that are no
    more."""
    if not path.exists():
        return []
    try:
        table = read_table(path)
    except ManifestError:
        return []
    return [
        {name: text for name, text in cells.items() if text}
        for _, cells in table.lines
        if (table.cell(cells, "subject"), table.cell(cells, "session")) not in gone
        and ((path.parent / table.cell(cells, "image")).exists() or not with_image)
    ]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time, where the system and the file system know locks."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have no locks: the last writer wins, as without this.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
