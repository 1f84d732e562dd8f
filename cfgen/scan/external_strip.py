"""Brain masks by other programs, where they are installed: SynthStrip and HD-BET."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from cfgen.data.volume import Volume, read_volume
from cfgen.errors import ToolError
from cfgen.space.grids import describe_difference

# Names of the programs, the first on PATH is taken.
PROGRAMS = {"synthstrip": ("mri_synthstrip", "nipreps-synthstrip"), "hd-bet": ("hd-bet",)}


def external_mask(scan: Volume, tool: Literal["synthstrip", "hd-bet"]) -> tuple[np.ndarray, str]:
    """The mask (I, J, K) that the tool makes of the scan's file, and the program's name.

    Raises ToolError when the program is not on PATH, fails, or its mask is on another grid.
    """
    assert scan.path is not None
    found = (shutil.which(name) for name in PROGRAMS[tool])
    program = next((path for path in found if path), None)
    if program is None:
        names = " or ".join(PROGRAMS[tool])
        raise ToolError(
            "--skull-strip",
            f"{names} not found on PATH",
            fix="install it, or use --skull-strip auto",
        )
    with tempfile.TemporaryDirectory(prefix="cfgen-") as folder:
        image, mask = Path(folder) / "brain.nii.gz", Path(folder) / "mask.nii.gz"
        if tool == "synthstrip":
            command = [program, "-i", str(scan.path), "-o", str(image), "-m", str(mask)]
        else:
            mask = Path(folder) / "brain_bet.nii.gz"
            command = [program, "-i", str(scan.path), "-o", str(image), "--save_bet_mask"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode or not mask.exists():
            said = (ran.stderr or ran.stdout).strip().splitlines()
            raise ToolError(
                program,
                f"failed with exit code {ran.returncode} ({said[-1] if said else 'no message'})",
                "a brain mask",
                "run it by hand, or use --skull-strip auto",
            )
        made = read_volume(mask)
    if not made.grid.matches(scan.grid):
        raise ToolError(
            program,
            f"wrote a mask on another grid: {describe_difference(made.grid, scan.grid)}",
            "the grid of the scan",
        )
    return made.data > 0, Path(program).name
