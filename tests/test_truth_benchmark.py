"""The truth benchmark in its tiny form, whole: a cohort, a bundle that hardly learned, a table."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "truth.py"


def test_the_oracle_is_right_and_the_copy_does_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    with (tmp_path / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    methods = ("cfgen", "copy", "group-mean", "oracle")
    assert {(r["query"], r["method"]) for r in rows} >= {("age=+20", m) for m in methods}
    skill = {r["method"]: float(r["skill"].split()[0]) for r in rows if r["query"] == "age=+20"}
    assert (skill["oracle"], skill["copy"]) == (1, 0)
    assert skill["cfgen"] < 1
    of = {(r["query"], r["method"]): r for r in rows}
    oracle, copy = of["age=+20", "oracle"], of["age=+20", "copy"]
    assert (float(oracle["slope"]), float(oracle["leakage"]), float(oracle["mae"])) == (1, 0, 0)
    assert (oracle["ventricles nmse"], copy["ventricles nmse"]) == ("0.00", "1.00")
    # Where only brightness changes nobody's ventricles are counted.
    assert of["sequence=SPGR", "oracle"]["ventricles nmse"] == "nan"
