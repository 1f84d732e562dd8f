"""Centiles: exact where the table is, sensible between, silent where there is no norm."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import DATA

from cfgen.causal.centiles import (
    AGES,
    CENTILES,
    SIZE_TO_MM3,
    _at,
    centile,
    compare,
    median_slope,
    structures,
)
from cfgen.data.parcellation import BRAIN_FROM, NAMES

NICHART = DATA / "tables" / "nichart"
needs_nichart = pytest.mark.skipif(
    not NICHART.exists(), reason="NiChart's tables are not on this machine"
)


def test_every_structure_but_the_fluid_around_the_brain_has_a_norm():
    assert set(NAMES[BRAIN_FROM:]) - set(structures()) == {"csf"}
    assert {"cortex", "brain"} < set(structures())


@pytest.mark.parametrize("region", ["lateral_ventricle", "hippocampus", "cortex_frontal"])
@pytest.mark.parametrize("kind", ["F", "M", "all", "size"])
def test_the_five_centiles_are_themselves(region, kind):
    for age in (40.0, 67.0, 92.0):
        knots = _at(region, kind, age)
        assert (np.diff(knots) > 0).all()
        sex = kind if kind in "FM" else None
        tiv = SIZE_TO_MM3 if kind == "size" else None
        found = [centile(region, sex, age, v, tiv) for v in knots]
        np.testing.assert_allclose(found, CENTILES, atol=1e-9)


def test_a_centile_rises_with_the_volume_and_stays_within_1_and_99():
    volumes = np.geomspace(1e3, 5e5, 200)
    found = [centile("lateral_ventricle", "M", 70, float(v)) for v in volumes]
    assert found[0] == 1
    assert found[-1] == 99
    assert (np.diff(found) >= 0).all()


def test_head_size_counts_once():
    """A head a tenth larger with everything a tenth larger is at the same centile; the same
    ventricles in a smaller head are at a higher one. Sex plays no part once there is a head."""
    at = centile("lateral_ventricle", "F", 67, 24000, 1.4e6)
    assert centile("lateral_ventricle", "F", 67, 26400, 1.54e6) == pytest.approx(at)
    assert centile("lateral_ventricle", "F", 67, 24000, 1.2e6) > at
    assert centile("lateral_ventricle", "M", 67, 24000, 1.4e6) == at


def test_no_norm_is_no_number():
    assert centile("csf", "F", 60, 2e5) is None
    assert centile("hippocampus", "F", 39.9, 7000) is None
    assert centile("hippocampus", "F", 92.1, 7000) is None
    assert centile("hippocampus", "F", 60, float("nan")) is None
    assert median_slope("tiv", 60) is None
    assert median_slope("hippocampus", 30) is None


def test_slopes_are_those_of_the_literature():
    """Ventricles grow by a third in the seventh decade, hippocampi shrink ever faster."""
    assert median_slope("lateral_ventricle", 65) == pytest.approx(0.36, abs=0.05)
    hippocampus = [median_slope("hippocampus", age) for age in (45, 55, 65, 75, 85)]
    assert hippocampus == sorted(hippocampus, reverse=True)
    assert hippocampus[-1] == pytest.approx(-0.07, abs=0.02)
    for lobe in ("frontal", "parietal", "temporal", "occipital", "cingulate", "insula"):
        assert -0.08 < median_slope(f"cortex_{lobe}", 65) < -0.02
    # At the ends of the table over the years that there are.
    assert median_slope("lateral_ventricle", 40) > 0
    assert median_slope("lateral_ventricle", 92) > 0


def test_the_line_says_what_neuroradiology_would():
    before = {"age": 67.0, "sex": "F", "tiv": 1.4e6, "lateral_ventricle": 24000.0}
    after = before | {"age": 82.0, "lateral_ventricle": 37000.0}
    record = compare("lateral_ventricle", before, after)
    first, second = (round(s.centile) for s in (record.factual, record.counterfactual))
    assert record.text == (
        f"lateral ventricles at centile {first} for 67 y; "
        f"counterfactual at centile {second} for 82 y"
    )
    assert record.norm == "healthy people of the same age and head size"


def test_the_line_says_where_there_is_no_norm():
    young = {"age": 30.0, "sex": "M", "hippocampus": 8000.0}
    text = compare("hippocampus", young, young | {"age": 60.0, "hippocampus": 100.0}).text
    assert text == (
        "hippocampi at no centile for 30 y (norms are for 40 to 92 y); "
        "counterfactual at centile 1 or below for 60 y"
    )
    csf = compare("csf", {"age": 60.0, "csf": 2e5}, {"age": 70.0, "csf": 2e5})
    assert csf.text == "csf at no centile; counterfactual at no centile"


@needs_nichart
@pytest.mark.parametrize(
    ("region", "name"),
    [
        ("third_ventricle", "3rdVentricle"),
        ("brainstem", "BrainStem"),
        ("cortex_occipital", "Occipital_GM"),
        ("cortex_parietal", "Parietal_GM"),
        ("brain", "TotalBrain"),
    ],
)
def test_the_shipped_table_is_the_file(region, name):
    """Every year, by interpolation over five, where NiChart has the structure: within a centile."""
    with (NICHART / "dlmuse_centiles_CN-Females.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["VarName"] == name]
    assert len(rows) == 54
    for row in rows:
        if float(row["Age"]) <= AGES[-1]:
            for p in CENTILES:
                found = centile(region, "F", float(row["Age"]), float(row[f"centile_{p}"]))
                assert found == pytest.approx(p, abs=1.0)


@needs_nichart
def test_ixi_stands_where_healthy_people_stand():
    """277 people whom NiChart's tables were not made for: ventricles and hippocampi, at equal head
    size, are about the median with the spread of a healthy cohort."""
    with (DATA / "tables" / "ixi" / "IXI_DLMUSE_277_no_heldout.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if 40 <= float(r["Age"]) <= 92]
    for region, codes in {"lateral_ventricle": ("51", "52"), "hippocampus": ("47", "48")}.items():
        found = np.array(
            [
                centile(
                    region,
                    r["Sex"],
                    float(r["Age"]),
                    sum(float(r[c]) for c in codes),
                    float(r["702"]),
                )
                for r in rows
            ]
        )
        assert np.median(found) == pytest.approx(50, abs=10)
        assert np.mean(found < 25) == pytest.approx(0.25, abs=0.1)
        assert np.mean(found > 75) == pytest.approx(0.25, abs=0.1)
