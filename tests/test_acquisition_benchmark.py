"""The table of the vendor benchmark: gains by person, over seeds that both have, and their part."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

PEOPLE = [f"sub-{n:05d}" for n in range(12)]
# What a variant adds to Dice on the other vendor's scans.
GAINS = {"base": -0.02, "none": 0.0, "oracle": 0.1, "physics": 0.06}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import acquisition_segmentation

    yield acquisition_segmentation
    sys.modules.pop("acquisition_segmentation", None)


def run(out, vendor, variant, seed):
    """The Dice that a training leaves: people differ, seeds shift all by 0.01."""
    lines = [
        {"manifest": tested, "subject": subject, "session": ""}
        | dict.fromkeys(("csf", "grey", "white"), 0.6 + 0.02 * n + 0.01 * seed)
        for tested in "AB"
        for n, subject in enumerate(PEOPLE)
    ]
    for line in lines:
        if line["manifest"] != vendor:
            noise = 0.001 * (int(line["subject"][-2:]) % 3 - 1)
            for tissue in ("csf", "grey", "white"):
                line[tissue] += (
                    GAINS[variant] + (noise if variant not in ("base", "none") else 0) - 0.2
                )
    folder = out / "runs" / f"{vendor}-{variant}-{seed}-training" / "tissues"
    folder.mkdir(parents=True)
    with (folder / "dice.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def cells(text, *start):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return next(row for row in rows if row[: len(start)] == list(start))


def test_gain_part_and_seeds(benchmark, tmp_path):
    for vendor in "AB":
        for variant in GAINS:
            # A seed of the oracle that 'none' has not is left out of its gain.
            for seed in range(3 if variant == "oracle" else 2):
                run(tmp_path, vendor, variant, seed)
    text = benchmark.table(tmp_path, ["none", "oracle", "physics"])
    *_, seeds, csf, _, _, mean, gain, _, _, over_base, _ = cells(text, "A", "B", "none")
    assert (seeds, csf, mean, gain) == ("2", "0.5150", "0.5150", "")
    assert over_base.split()[0] == "+0.0200"
    oracle, physics = (cells(text, "A", "B", v) for v in ("oracle", "physics"))
    assert oracle[3] == "3"
    assert float(oracle[8].split()[0]) == pytest.approx(0.1, abs=1e-4)
    assert float(physics[8].split()[0]) == pytest.approx(0.06, abs=1e-4)
    assert float(physics[9]) < 0.01
    assert physics[10] == "2 of 2"
    assert float(physics[11].split()[0]) == pytest.approx(0.08, abs=1e-4)
    assert float(physics[12].split()[0]) == pytest.approx(0.6, abs=0.01)
    same = cells(text, "A", "A", "oracle")
    assert (same[8].split()[0], same[9], same[10], same[12]) == ("+0.0000", "1", "0 of 2", "")


def test_people_are_parted_by_halves_and_val(benchmark):
    splits = [benchmark.split_of(n) for n in range(40)]
    assert [splits.count(s) for s in ("train", "val", "test")] == [20, 4, 16]


def test_folders_of_edits_are_named(benchmark):
    import argparse

    parser = argparse.ArgumentParser()
    folders = benchmark.made_folders(["physics=a/,b/"], parser)
    assert folders == {"physics": {"A": Path("a"), "B": Path("b")}}
    for wrong in ("physics=a/", "none=a,b", "=a,b", "x-y=a,b"):
        with pytest.raises(SystemExit):
            benchmark.made_folders([wrong], parser)
