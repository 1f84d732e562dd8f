"""What a stage leaves beside its part: where it works, what the part saw, what the data are."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cfgen.config import FitConfig
from cfgen.data.table import Row


def runs_folder(bundle: Path, stage: str) -> Path:
    """Where a stage keeps its checkpoint, log and pictures: beside the bundle it writes."""
    return bundle.with_name(f"{bundle.name}-training") / stage


def trained_on(rows: list[Row], config: FitConfig) -> dict[str, Any]:
    """What a part saw: how many, which (as a hash), and for how long."""
    subjects = "\n".join(sorted(r.subject for r in rows))
    return {
        "scans": len(rows),
        "subjects_sha256": hashlib.sha256(subjects.encode()).hexdigest(),
        **asdict(replace(config, checkpoint_every=0, report_every=0)),
    }
