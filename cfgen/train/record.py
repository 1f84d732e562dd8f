"""What a stage leaves beside its part: where it works, what the part saw, what the data are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cfgen.config import FitConfig
from cfgen.data.table import Row
from cfgen.data.volume import write_atomically
from cfgen.errors import UsageError
from cfgen.processes import leads


def runs_folder(bundle: Path, stage: str) -> Path:
    """Where a stage keeps its checkpoint, log and pictures: beside the bundle it writes."""
    return bundle.with_name(f"{bundle.name}-training") / stage


QUESTION = "question.json"


def claim(folder: Path, question: Mapping[str, object]) -> None:
    """Say what a run in a folder is to answer, beyond the settings that `fit` compares. Raises
    UsageError where it holds one of another question."""
    if not leads():
        return
    path, text = folder / QUESTION, json.dumps(dict(question), sort_keys=True)
    if path.exists():
        known = path.read_text()
        if known != text:
            fix = "use another --out, or ask as that run did"
            raise UsageError(path, f"belongs to another run ({known})", text, fix)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda p: p.write_text(text))


def trained_on(rows: list[Row], config: FitConfig) -> dict[str, Any]:
    """What a part saw: how many, which (as a hash), and for how long."""
    subjects = "\n".join(sorted(r.subject for r in rows))
    return {
        "scans": len(rows),
        "subjects_sha256": hashlib.sha256(subjects.encode()).hexdigest(),
        **asdict(replace(config, checkpoint_every=0, report_every=0)),
    }
