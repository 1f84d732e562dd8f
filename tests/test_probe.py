"""Probes that are trained again: nobody on both sides, everybody once, and what they tell.

People are simulated as numbers: a scanner's stamp is a shift of some features.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage, stats

from cfgen.data.acquisition_columns import acquisition_of, with_acquisition
from cfgen.data.conditions import Schema, Variable
from cfgen.data.grid import Grid
from cfgen.data.table import Row
from cfgen.errors import UsageError
from cfgen.evaluate.files import SENTENCES
from cfgen.evaluate.probe import AGAIN, EDITED, FOOLED, FROZEN, SOURCE, levels_of, probe_results
from cfgen.evaluate.scans import Made, Real, Seen
from cfgen.evaluate.suite import SUITES
from cfgen.evaluate.tables import tables
from cfgen.metrics.appearance import BLOCKS, QUANTILES, appearance
from cfgen.metrics.axioms import area_under_roc, mean_recall
from cfgen.metrics.probe import (
    FOLDS,
    Samples,
    auc_over_people,
    folds,
    probabilities,
    recall_over_people,
)
from cfgen.metrics.result import Extractor

SHAPE = (12, 14, 10)
GRID = Grid(SHAPE, np.diag([2.0, 2, 2, 1]))


def names(n, prefix="s"):
    return [f"{prefix}{k:03d}" for k in range(n)]


def test_nobody_is_on_both_sides():
    """A person's two scans carry a stamp of their own and labels that are chance: a probe that had
    one to learn from would know the other."""
    rng = np.random.default_rng(1)
    stamps = np.repeat(rng.normal(size=(40, 200)), 2, axis=0)
    level = np.repeat(rng.integers(0, 2, 40), 2)
    subjects = [s for s in names(40) for _ in range(2)]
    samples = Samples(stamps, level, subjects)
    found = probabilities(samples, samples, 2)
    assert 0.3 < area_under_roc(found[:, 1], level == 1) < 0.7
    # The same without folds of people: every scan known by its twin.
    twins = Samples(stamps, level, [f"{s}{n % 2}" for n, s in enumerate(subjects)])
    leaky = probabilities(twins, twins, 2)
    assert area_under_roc(leaky[:, 1], level == 1) > 0.9


def test_folds_part_people_and_every_level():
    people = [(n % 3, f"s{n:02d}") for n in range(45)] + [(1, "s00")]
    fold = folds(people, np.random.default_rng(0))
    assert fold != folds(people, np.random.default_rng(1))
    assert set(fold) == {s for _, s in people}
    for level in range(3):
        of_level = [fold[f"s{n:02d}"] for n in range(45) if n % 3 == level]
        assert np.bincount(of_level, minlength=FOLDS).tolist() == [3] * FOLDS


def test_a_stamp_is_found_and_chance_is_not():
    rng = np.random.default_rng(2)
    level = np.arange(60) % 2
    x = rng.normal(size=(60, 20))
    plain = Samples(x, level, names(60))
    stamped = Samples(x + np.outer(level, np.eye(20)[3] * 4), level, names(60))
    assert area_under_roc(probabilities(stamped, stamped, 2)[:, 1], level == 1) > 0.95
    assert 0.3 < area_under_roc(probabilities(plain, plain, 2)[:, 1], level == 1) < 0.7


def test_figures_are_those_of_the_rows_where_everybody_has_one():
    rng = np.random.default_rng(3)
    level = rng.integers(0, 2, 50)
    score = rng.normal(size=50) + level
    score[:10] = np.round(score[:10])
    area = auc_over_people(score, level == 1, names(50))
    assert area.value == pytest.approx(area_under_roc(score, level == 1))
    assert area.low < area.value < area.high
    right = (score > 0.5) == level
    recall = recall_over_people(right.astype(float), level, names(50))
    assert recall.value == pytest.approx(mean_recall(right, level))


def test_everybody_counts_once_however_many_rows():
    score = np.array([0.0, 1.0, 1.0, 1.0, 2.0, 3.0])
    level = np.array([1, 1, 1, 1, 0, 0])
    # The second positive person has three rows.
    whose = ["a", "b", "b", "b", "c", "d"]
    right = np.array([1.0, 0, 0, 0, 1, 1])
    assert recall_over_people(right, level, whose).value == pytest.approx((0.5 + 1) / 2)
    assert auc_over_people(score, level == 0, whose).value == 1.0
    mixed = np.array([5.0, 1.0, 1.0, 1.0, 2.0, 3.0])
    assert auc_over_people(mixed, level == 0, whose).value == pytest.approx(0.5)


def test_the_interval_covers_as_often_as_it_says():
    """Of an AUC whose true value is known: Phi(d / sqrt 2) of two normals d apart."""
    truth, rng = stats.norm.cdf(1 / np.sqrt(2)), np.random.default_rng(4)
    covered = 0
    for _ in range(40):
        level = np.arange(80) % 2
        area = auc_over_people(rng.normal(size=80) + level, level == 1, names(80))
        covered += area.low <= truth <= area.high
    assert covered >= 34


def test_appearance_knows_the_scanner_and_not_the_brightness():
    rng = np.random.default_rng(5)
    mask = np.zeros((24, 28, 20), bool)
    mask[3:-3, 3:-3, 3:-3] = True
    tissue = 1 + 0.2 * ndimage.gaussian_filter(rng.normal(size=mask.shape), 1)
    image = np.where(mask, tissue, 0)
    plain = appearance(image, mask)
    assert plain.shape == (len(QUANTILES) + 3 + 3 + 3 + 1 + BLOCKS**3,)
    np.testing.assert_allclose(appearance(3.7 * image, mask), plain, rtol=1e-6)
    step, noise = len(QUANTILES), len(QUANTILES) + 9
    flat = appearance(np.where(mask, 1 + 0.05 * rng.normal(size=mask.shape), 0), mask)
    # What a Gaussian of one voxel (SD) takes of white noise's variance: 1 - 2 g(0) + (g * g)(0).
    left = 1 - 2 * (2 * np.pi) ** -1.5 + (4 * np.pi) ** -1.5
    assert flat[noise] == pytest.approx(0.05 * np.sqrt(left), rel=0.05)
    thick = appearance(ndimage.gaussian_filter1d(tissue, 1.5, axis=2) * mask, mask)
    ratio = thick[step : step + 3] / plain[step : step + 3]
    assert ratio[2] < 0.9 * min(ratio[:2])


@pytest.mark.parametrize(
    ("values", "asked", "level"),
    [
        (["GE", "Siemens"], "GE", "GE"),
        ([1.5, 3.0, 3.0], "3", "3"),
        (["1.5", "3"], 2.89, None),
        (["1.5", "3"], 2.99, "3"),
        ([2.0, 2.5, 3.0, 3.5, 4.0], 3.0, "up to 3"),
        ([2.0, 2.5, 3.0, 3.5, 4.0], "3.2", "above 3"),
        ([2.0, 2.5, 3.0, 3.5, 4.0], "unknown", None),
    ],
)
def test_levels_of_texts_few_numbers_and_many(values, asked, level):
    assert levels_of(values)(asked) == level


def scan(subject, maker, stamp):
    """A real scan whose judge features are noise with the maker's stamp."""
    rng = np.random.default_rng(int(subject[1:]))
    embedding = rng.normal(size=8) + stamp
    image = np.ones(SHAPE, np.float16)
    row = Row(subject, Path(f"{subject}.nii"), extra={"Manufacturer": maker, "site": "x"})
    return Real(row, row.image, np.ones(SHAPE, bool), GRID, GRID, Seen(image, {}, embedding, {}))


def edit(real, maker, stamp):
    """An edit to another maker that changes the features by `stamp`."""
    seen = Seen(real.seen.image, {}, real.seen.embedding + stamp, {})
    row = Row(real.row.subject, Path("e.nii"), extra={"Manufacturer": maker})
    return Made(row, real, maker, {}, (), seen)


STAMPS = {"GE": np.array([6.0, 0, 0, 0, 0, 0, 0, 0]), "Siemens": np.zeros(8)}
TOOLS = SimpleNamespace(extractor=lambda by: Extractor(by, "judge of a toy"))


def results(left_over):
    """Of edits Siemens -> GE that bring GE's stamp and leave `left_over` of their own behind."""
    makers = ["GE" if n % 2 else "Siemens" for n in range(60)]
    real = [scan(s, maker, STAMPS[maker]) for s, maker in zip(names(60), makers, strict=True)]
    edits = [
        edit(r, "GE", STAMPS["GE"] + left_over)
        for r in real
        if r.row.extra["Manufacturer"] == "Siemens"
    ]
    found = probe_results(TOOLS, {"ours": edits}, real, 0)  # type: ignore[arg-type]
    return {(r.metric, r.variant): r for r in found}, found


def test_an_edit_that_fools_a_frozen_probe_is_told_when_it_is_trained_again():
    """The point of it all: what is left behind lies where the frozen probe never had to look."""
    left = np.array([0, 0, 0, 0, 0, 0, 0, 4.0])
    by_key, listed = results(left)
    assert by_key[FOOLED, FROZEN].value > 0.9
    assert by_key[SOURCE, FROZEN].value < 0.65
    assert by_key[SOURCE, AGAIN].value > 0.9
    assert by_key[EDITED, AGAIN].value > 0.95
    assert by_key[EDITED, AGAIN].low > 0.8
    assert (by_key[EDITED, AGAIN].variable, by_key[EDITED, AGAIN].group) == ("manufacturer", "GE")
    assert by_key[EDITED, AGAIN].n == 30
    text = tables(listed, ["ours"])
    assert "Is the acquisition what it says?" in text
    assert "| manufacturer GE | ours | 30 |" in text


def test_a_perfect_edit_leaves_both_at_chance_and_a_copy_fools_nobody():
    perfect, _ = results(np.zeros(8))
    assert perfect[FOOLED, FROZEN].value > 0.9
    assert perfect[EDITED, AGAIN].value < 0.7
    copy, _ = results(-STAMPS["GE"])
    assert copy[FOOLED, FROZEN].value < 0.1
    assert copy[SOURCE, FROZEN].value > 0.9
    assert copy[SOURCE, AGAIN].value > 0.9


def test_suites_that_compare_sets_have_probes_and_methods_say_so():
    assert [name for name, suite in SUITES.items() if not suite.probes] == ["quick"]
    _, listed = results(np.zeros(8))
    held = [text for holds, text in SENTENCES if any(map(holds, listed))]
    assert ["Probes" in text for text in held] == [True]


def test_edits_of_the_brain_and_few_people_have_no_probe():
    real = [scan(s, "GE" if n % 2 else "Siemens", 0) for n, s in enumerate(names(8))]
    older = [edit(r, r.row.extra["Manufacturer"], 0) for r in real]
    assert probe_results(TOOLS, {"ours": older}, real, 0) == []  # type: ignore[arg-type]
    few = [edit(r, "GE", 0) for r in real if r.row.extra["Manufacturer"] == "Siemens"]
    assert probe_results(TOOLS, {"ours": few}, real, 0) == []  # type: ignore[arg-type]


def test_names_of_bids_and_of_cfgen_are_one_acquisition():
    """Scans come with the columns of their sidecars, edits with cfgen's own."""
    extra = {"Manufacturer": "GE", "EchoTime": "0.0035", "site": "x", "FlipAngle": "n/a"}
    scanned = Row("s", Path("a.nii"), extra=extra)
    assert acquisition_of(scanned) == {"manufacturer": "GE", "te_ms": 3.5}
    edited = Row("s", Path("b.nii"), values={"te_ms": 2.98}, extra={"manufacturer": "GE"})
    assert acquisition_of(edited) == {"manufacturer": "GE", "te_ms": 2.98}
    # A column of cfgen's own name holds, wherever it stands.
    for columns in ({"EchoTime": "0.1", "te_ms": "3"}, {"te_ms": "3", "EchoTime": "0.1"}):
        assert acquisition_of(Row("s", Path("c.nii"), extra=columns)) == {"te_ms": 3.0}
    echo = Variable("te_ms", "continuous", "ms", 0.5, 100.0)
    maker = Variable("manufacturer", "categorical", levels=("GE", "Siemens"))
    assert with_acquisition(scanned, Schema((echo, maker))).values == {
        "te_ms": 3.5,
        "manufacturer": "GE",
    }
    far = replace(scanned, extra={"EchoTime": "3.5"}, source="m.csv:2")
    with pytest.raises(UsageError, match=r"m.csv:2 te_ms: '3500' is implausible"):
        with_acquisition(far, Schema((echo,)))


def test_edits_in_other_names_are_probed_all_the_same():
    makers = ["GE" if n % 2 else "Siemens" for n in range(40)]
    real = [scan(s, maker, STAMPS[maker]) for s, maker in zip(names(40), makers, strict=True)]
    edits = [
        replace(m, row=replace(m.row, extra={"manufacturer": "GE"}))
        for m in (edit(r, "GE", STAMPS["GE"]) for r in real[::2])
    ]
    found = probe_results(TOOLS, {"ours": edits}, real, 0)  # type: ignore[arg-type]
    assert {r.variable for r in found} == {"manufacturer"}
