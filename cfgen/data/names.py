"""Names of files: what a file system takes, and '~' and '$VAR' in a table's paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from cfgen.errors import ImageError, UsageError

# The most bytes of a name on ext4, XFS, APFS and NTFS.
LONGEST = 255
# What is put around a name until a file is whole: '.NAME.1234567.part' (`volume.py`).
_ROOM = len("..4194304.part")


def expand_path(text: str) -> tuple[str, str]:
    """(the path with '~' and '$VAR' written out, what is wrong with them or '').

    >>> expand_path("a/b.nii"), expand_path("$NOT_SET_HERE/b.nii")[1]
    (('a/b.nii', ''), 'the variable NOT_SET_HERE is not set; expected a path')
    """
    unset = [
        name
        for name in re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)", text)
        if not os.environ.get(name)
    ]
    if unset:
        several = len(unset) > 1
        names = " and ".join(dict.fromkeys(unset))
        problem = f"the variable{'s' * several} {names} {'are' if several else 'is'} not set"
        return text, f"{problem}; expected a path"
    path = os.path.expanduser(os.path.expandvars(text))
    if path.startswith("~"):
        return text, f"there is no user '{path[1:].partition('/')[0]}'; expected a path"
    return path, ""


def check_outputs(paths: Iterable[Path]) -> None:
    """Outputs that cannot be written are refused before they are computed.

    Raises UsageError for names that no file system takes, ImageError for folders that cannot be
    made or written into.
    """
    paths = list(paths)
    for folder in dict.fromkeys(path.parent for path in paths):
        check_folder(folder)
    long = [p for p in paths if len(os.fsencode(p.name)) > LONGEST - _ROOM]
    if not long:
        return
    name = long[0].name
    more = f" and {len(long) - 1} more" if len(long) > 1 else ""
    raise UsageError(
        "--out",
        f"'{name[:40]}...{name[-20:]}'{more} would be a name of {len(os.fsencode(name))} bytes",
        f"at most {LONGEST - _ROOM}",
        "shorten the subject's id, or the name of the scan",
    )


def check_folder(folder: Path) -> None:
    """Raises ImageError when a folder for outputs is not there and cannot be made, or is closed."""
    place = next((p for p in (folder, *folder.absolute().parents) if os.path.exists(p)), folder)
    if not os.path.isdir(place):
        raise ImageError(folder, f"'{place}' is a file", "a folder for the outputs")
    if not os.access(place, os.W_OK | os.X_OK):
        problem = f"'{place}' cannot be written into"
        raise ImageError(folder, problem, "a folder of yours", "use another --out")
