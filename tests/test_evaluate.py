"""What an evaluation says of an oracle, of copies and of strangers; and its files, end to end."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cfgen.bundle import Bundle, copy_bundle, net_config, read_bundle, write_part
from cfgen.config import PREPROCESS
from cfgen.data.conditions import Schema, Variable, parse_interventions, with_columns
from cfgen.data.manifest import read_manifest, write_manifest
from cfgen.data.table import Row
from cfgen.data.volume import Grid, Volume, read_volume, write_new
from cfgen.errors import BundleError, ManifestError
from cfgen.evaluate import edits, sets, truth
from cfgen.evaluate.figures import _bars
from cfgen.evaluate.files import methods_text, write_evaluation
from cfgen.evaluate.pairs import Truths, pair, read_truths
from cfgen.evaluate.read import make
from cfgen.evaluate.regions import cohort_response, region_response
from cfgen.evaluate.scans import (
    Instruments,
    Made,
    Real,
    Seen,
    conditions_of,
    copies,
)
from cfgen.evaluate.suite import Asked, Evaluation, check, replication
from cfgen.evaluate.tables import tables
from cfgen.evaluate.targets import effectiveness
from cfgen.jobs.simulate import Plan, simulate
from cfgen.measure.judge import Judges, pack
from cfgen.measure.medicalnet import MedicalNet, dilated_resnet, normalised
from cfgen.metrics import aud
from cfgen.metrics.result import Extractor, Result
from cfgen.metrics.statistics import BCA, FIT, PERCENTILE, PERCENTILE_OF_SETS, Estimate
from cfgen.nets.judge import Judge, JudgeConfig
from cfgen.scan.prepare import prepare
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from tests.conftest import shipped_schema

SHAPE = (20, 20, 20)
GRID = Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
CPU = torch.device("cpu")
MAKERS = ("GE", "Philips", "Siemens")
SOME = Extractor("judge", "some features")


def judge_config(shape: tuple[int, int, int], levels: tuple[int, ...] = (2,)) -> JudgeConfig:
    return JudgeConfig(shape, 1, levels, channels=(4, 4, 4, 8))


def seen(age: float, sex: str, image: np.ndarray) -> Seen:
    """What perfect instruments would say."""
    volumes = {"lateral_ventricle": 10 + 0.5 * age, "cortex": 500 - age, "tiv": 1500.0}
    embedding = np.concatenate([image.ravel()[:6], [age / 20, 3.0 * (sex == "F")]])
    return Seen(
        image.astype(np.float16),
        {"judge": {"age": age, "sex": float(sex == "F")}},
        embedding,
        volumes,
    )


def person(k: int) -> Real:
    age, sex = float(20 + 3 * k), "FM"[k % 2]
    image = np.random.default_rng(k).random(SHAPE).astype(np.float32)
    row = Row(f"s{k}", Path(f"/s{k}.nii.gz"), values={"age": age, "sex": sex})
    return Real(row, row.image, np.ones(SHAPE, bool), GRID, GRID, seen(age, sex, image))


def oracle(r: Real, years: float) -> Made:
    """The same brain, and what the instruments see is what was asked for."""
    age, sex = float(r.row.values["age"]) + years, str(r.row.values["sex"])
    image = r.seen.image.astype(np.float32).copy()
    image[:2] += years / 1000
    row = replace(r.row, session=f"age{years:+g}", values={"age": age, "sex": sex})
    return Made(row, r, f"age{years:+g}", dict(row.values), ("age",), seen(age, sex, image))


@pytest.fixture(scope="module")
def people() -> list[Real]:
    return [person(k) for k in range(16)]


@pytest.fixture(scope="module")
def tools(tiny_bundle: Bundle) -> Instruments:
    torch.manual_seed(0)
    judges = Judges((Judge(judge_config(SHAPE)).eval(),), shipped_schema(), CPU)
    part = replace(tiny_bundle.part("predictor"), sha256="0" * 64)
    bundle = replace(tiny_bundle, parts={**tiny_bundle.parts, "judge": part})
    return Instruments(bundle, judges, None, None, CPU)  # type: ignore[arg-type]


def result(results: list[Result], metric: str, **fields: str) -> Result:
    """The last line of a metric whose fields are these."""
    found = [
        r
        for r in results
        if r.metric == metric and all(getattr(r, k) == v for k, v in fields.items())
    ]
    assert found, (metric, fields)
    return found[-1]


def value(results: list[Result], metric: str, **fields: str) -> float:
    return result(results, metric, **fields).value


def test_the_oracle_arrives_and_the_copy_stays(tools, people):
    made = [oracle(r, years) for r in people for years in (10.0, 20.0)]
    arrived = effectiveness(tools, "oracle", made, people)
    assert value(arrived, "mae", variable="age", group="all") == 0
    assert value(arrived, "slope", variable="age") == pytest.approx(1)
    assert value(arrived, "accuracy", variable="sex", group="kept") == 1
    stayed = effectiveness(tools, "copy", copies(made), people)
    assert value(stayed, "mae", variable="age", group="age+20") == pytest.approx(20)
    assert value(stayed, "mae", variable="age", group="all") == pytest.approx(15)
    assert value(stayed, "slope", variable="age") == pytest.approx(0, abs=1e-9)
    assert result(stayed, "mae", variable="age", group="age+20").asked == 20
    assert np.isnan(result(stayed, "mae", variable="age", group="all").asked)


def test_what_is_said_of_copies_is_what_is_measured_of_them(tools, people):
    """Copies are not measured; an image that is the same and not known for a copy is."""
    made = [oracle(r, 10.0) for r in people[:4]]
    same = [replace(m, seen=replace(m.real.seen)) for m in made]
    said, measured = (edits.preservation(tools, "x", some) for some in (copies(made), same))
    assert len(said) == len(edits.COPIED)
    for a, b in zip(said, measured, strict=True):
        assert (a.metric, a.variant, a.n) == (b.metric, b.variant, b.n)
        assert b.value == pytest.approx(a.value, abs=1e-6)
    changed = edits.preservation(tools, "x", made)
    assert all(b.value != a.value for a, b in zip(said, changed, strict=True))


def test_targets_outside_the_training_range_are_left_out(tools, people):
    made = [oracle(r, 40.0) for r in people]
    high = shipped_schema().variable("age").support[1]
    inside = sum(float(m.target["age"]) <= high for m in made)
    assert 0 < inside < len(made)
    found = effectiveness(tools, "x", made, people)
    own = [r for r in found if (r.variable, r.group) == ("age", "age+40")]
    assert {r.n for r in own} == {inside}
    assert own[0].note.startswith(f"{len(made) - inside} targets outside 20")


def test_the_judges_own_error_is_the_floor(tools, people):
    floor = next(
        r for r in effectiveness(tools, "x", [oracle(people[0], 5.0)], people) if r.method == "real"
    )
    assert (floor.metric, floor.variable, floor.value, floor.n) == ("mae", "age", 0, 16)


def test_the_floor_is_over_people_and_not_over_scans(tools, people):
    """Of two whom the judge misses by 4 and one, with nine visits, whom it misses by 1."""

    def missed(r: Real, by: float, session: str = "") -> Real:
        guess = {"judge": {**r.seen.guesses["judge"], "age": r.row.values["age"] + by}}
        seen_so = replace(r.seen, guesses=guess)
        return replace(r, row=replace(r.row, session=session), seen=seen_so)

    real = [missed(people[0], 4.0), missed(people[1], 4.0)]
    real += [missed(people[2], 1.0, f"ses-{k}") for k in range(9)]
    found = effectiveness(tools, "x", [oracle(people[0], 5.0)], real)
    floor = result(found, "mae", variable="age", method="real")
    assert floor.value == pytest.approx((4 + 4 + 1) / 3)
    assert (floor.n, floor.interval) == (3, BCA)


def rescanned(r: Real, maker: str, te_ms: float, seen_as: str, seen_ms: float) -> Made:
    """The same brain on another scanner, and what the judge takes it for."""
    target = {**r.row.values, "manufacturer": maker, "sequence": "SPGR", "te_ms": te_ms}
    guess = {
        "manufacturer": np.array([name == seen_as for name in MAKERS], float),
        "sequence": np.float32(1.0),
        "te_ms": seen_ms,
    }
    made = replace(r.seen, guesses={"judge": guess})
    return Made(replace(r.row, values=target), r, "x", target, ("manufacturer", "te_ms"), made)


def test_scanners_are_recognised(tools, people):
    base = shipped_schema()
    cells = [{"manufacturer": m, "sequence": s} for m in MAKERS for s in ("MPRAGE", "SPGR")]
    echo = Variable("te_ms", "continuous", "ms")
    added = with_columns(base, ["manufacturer", "sequence"], cells).variables[-2:]
    judges = replace(tools.judges, targets=Schema((*base.variables, *added, echo)))
    tools = replace(tools, judges=judges)
    own = {"manufacturer": "GE", "sequence": "SPGR", "te_ms": 3.0}
    guess = {"manufacturer": np.array([1.0, 0, 0]), "sequence": np.float32(1), "te_ms": 3.5}
    scans = [
        replace(
            r,
            row=replace(r.row, values={**r.row.values, **own}),
            seen=replace(r.seen, guesses={"judge": guess}),
        )
        for r in people[:8]
    ]
    made = [
        rescanned(r, "Siemens", 3.0 + k, "Siemens" if k < 6 else "GE", 3.0 + k + 0.5)
        for k, r in enumerate(scans)
    ]
    found = effectiveness(tools, "x", made, scans)
    maker = {"variable": "manufacturer"}
    assert value(found, "accuracy", group="changed", **maker) == pytest.approx(6 / 8)
    assert value(found, "accuracy", method="real", **maker) == 1
    assert value(found, "accuracy", variable="sequence", group="kept") == 1
    assert value(found, "accuracy", variable="acquisition") == pytest.approx(6 / 8)
    assert value(found, "mse", variable="te_ms", group="all") == pytest.approx(0.25)
    assert value(found, "r2", variable="te_ms", group="all") == pytest.approx(1 - 8 * 0.25 / 42)
    assert value(found, "mse", variable="te_ms", method="real") == pytest.approx(0.25)
    assert {r.unit for r in found if (r.metric, r.variable) == ("mse", "te_ms")} == {"ms2"}
    text = tables(found, ["x"])
    assert "## As in cDDGM, tables 1 and 3" in text
    assert "| method | manufacturer accuracy | sequence accuracy | te ms mse |" in text
    copied = edits.acquisition_likeness("copy", copies(made), scans, 0)
    assert value(copied, "ssim_structure_to_factual") == pytest.approx(1)
    assert value(copied, "ssim_to_stranger") < 0.5


def test_strangers_are_not_found_again(people):
    made = [oracle(r, 10.0) for r in people]
    assert value(edits.identity("oracle", made, people), "identity_top1") == 1
    shift = people[1:] + people[:1]
    strangers = [replace(m, seen=other.seen) for m, other in zip(made, shift, strict=True)]
    assert value(edits.identity("shuffled", strangers, people), "identity_top1") == 0

    # Another visit of the same person is no stranger, and no second person to be found.
    again = [replace(r, row=replace(r.row, session="ses-2")) for r in people]
    twice = edits.identity("oracle", made, [*people, *again])
    assert value(twice, "identity_top1") == 1
    assert result(twice, "identity_top1").note == "chance 0.062"


def grown(r: Real, years: float, a_year: float, name: str = "lateral_ventricle") -> Made:
    """An edit by which the log of a volume grows so much a year."""
    m = oracle(r, years)
    volumes = {**r.seen.volumes, name: r.seen.volumes[name] * np.exp(a_year * years)}
    return replace(m, seen=replace(m.seen, volumes=volumes))


def test_the_response_of_a_region_is_in_percent(people):
    made = [grown(r, years, 0.03) for r in people for years in (-10.0, 20.0)]
    (found,) = region_response("x", made, ["lateral_ventricle"])
    # 0.3 of the log are 35 % more.
    assert found.value == pytest.approx(100 * (np.exp(0.3) - 1))
    assert (found.unit, found.n) == ("%", 16)


def test_a_person_weighs_the_same_however_often_edited(people):
    """Three people who shrink, each edited once, and one who grows, edited six times."""
    made = [grown(r, 20.0, -0.01) for r in people[:3]]
    made += [grown(people[3], 20.0, 0.03)] * 6
    (found,) = region_response("x", made, ["lateral_ventricle"])
    assert found.value == pytest.approx(0, abs=1e-9)
    assert found.n == 4
    once = made[:4]
    (alone,) = region_response("x", once, ["lateral_ventricle"])
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert found.interval == BCA


def test_real_people_of_different_age_are_a_line_of_their_own(people):
    def of(r: Real, session: str = "") -> Real:
        size = 1400.0 + 10 * (sum(map(ord, r.row.subject)) % 7)
        grows = (
            np.exp(0.02 * r.row.values["age"])
            * size**0.5
            * (1.1 if r.row.values["sex"] == "M" else 1)
        )
        volumes = {"lateral_ventricle": grows, "tiv": size}
        return replace(
            r, row=replace(r.row, session=session), seen=replace(r.seen, volumes=volumes)
        )

    real = [of(r) for r in people]
    (found,) = cohort_response(real, ["lateral_ventricle"])
    assert found.value == pytest.approx(100 * (np.exp(0.2) - 1))
    assert (found.method, found.metric, found.n) == ("real", "change_per_decade", 16)
    off = [replace(r, seen=replace(r.seen, volumes=people[0].seen.volumes)) for r in real[:1]]
    (once,) = cohort_response([*off, *real[1:]], ["lateral_ventricle"])
    (often,) = cohort_response([*off * 5, *real[1:]], ["lateral_ventricle"])
    assert once.value != pytest.approx(found.value)
    assert often == once


def test_divergence_prefers_the_smaller_of_two_edits(tools, people):
    made = [oracle(r, 10.0) for r in people[:10]]
    wild = [replace(m, seen=replace(m.seen, embedding=m.seen.embedding + 9)) for m in made]
    near, far = (
        value(edits.minimality(tools, "x", some, people), "latent_divergence")
        for some in (made, wild)
    )
    assert near < far


def test_sets_that_are_the_same_have_no_distance(people):
    own = [r.seen for r in people]
    features = {SOME: (np.stack([s.embedding for s in own]),) * 2}
    found = sets.feature_distances("same", features, 0, papers=True)
    assert value(found, "fid") == pytest.approx(0, abs=1e-6)
    assert result(found, "fid_infinite").interval == FIT
    floors = sets.feature_floors({SOME: features[SOME][0]}, 0)
    assert value(floors, "fid_floor") > 0.1
    assert sets.feature_floors({SOME: features[SOME][0][:3]}, 0) == []
    assert "mostly bias" in next(r for r in found if r.metric == "fid").note
    volumes = sets.volume_distances("same", own, own, ["lateral_ventricle", "cortex"], 0)
    assert value(volumes, "cohens_d", region="cortex", variant="raw") == 0
    assert result(volumes, "cohens_d").interval == PERCENTILE_OF_SETS
    assert value(volumes, "regions_with_small_d") == 100
    older = [seen(80.0, "F", who.image) for who in own]
    apart = sets.volume_distances("old", own, older, ["lateral_ventricle", "cortex"], 0)
    raw = [r for r in apart if r.variant == "raw"]
    d, g = (value(raw, name, region="cortex") for name in ("cohens_d", "hedges_g"))
    assert g == pytest.approx(d * (1 - 3 / (4 * 30 - 1)))
    largest = result(raw, "largest_d")
    assert largest.value == value(raw, "cohens_d", region=largest.region)
    assert abs(largest.value) == max(abs(r.value) for r in raw if r.metric == "cohens_d")
    assert value(volumes, "volume_w2_exact") == 0


def test_a_set_that_repeats_itself_has_less_variety():
    draw = np.random.default_rng(0)
    own = [seen(50.0, "F", draw.random((32, 32, 32))) for _ in range(6)]
    found = sets.variety(own, {"same": own, "one": [own[0], own[1]] * 3}, 0)
    assert value(found, "ms_ssim", method="same") == value(found, "ms_ssim", method="real")
    assert value(found, "ms_ssim_difference", method="same") == 0
    assert value(found, "ms_ssim", method="one") > value(found, "ms_ssim", method="real") + 0.1
    assert result(found, "ms_ssim", method="real").interval == PERCENTILE


def test_figures_do_not_depend_on_the_order_of_people(people):
    own = [r.seen for r in people]
    other = [oracle(r, 20.0).seen for r in people]
    order = np.random.default_rng(0).permutation(len(other))
    regions = ["lateral_ventricle", "cortex"]
    a = sets.volume_distances("x", own, other, regions, 0)
    b = sets.volume_distances("x", own, [other[i] for i in order], regions, 0)
    for x, y in zip(a, b, strict=True):
        assert x.value == pytest.approx(y.value, rel=1e-9)


def test_a_classifier_of_made_images_knows_real_people(tools, people):
    real = [(r.row.subject, r.row.values["sex"], r.seen) for r in people]
    flipped = []
    for r in people:
        sex = "F" if r.row.values["sex"] == "M" else "M"
        image = r.seen.image.astype(np.float32)
        flipped.append((r.row.subject, sex, seen(float(r.row.values["age"]), sex, image)))
    found = sets.transfer(tools, "oracle", real, flipped, "sex", "F")
    assert [r.metric for r in found] == ["auc_real", "auc_train_made", "auc_test_made"]
    assert {r.variable for r in found} == {"sex"}
    assert min(r.value for r in found) > 0.9
    wrong = [(s, "M" if sex == "F" else "F", who) for s, sex, who in flipped]
    turned = sets.transfer(tools, "wrong", real, wrong, "sex", "F")
    # What is labelled the wrong way round is known the wrong way round.
    assert value(turned, "auc_test_made") == pytest.approx(1 - value(found, "auc_test_made"))
    assert value(turned, "auc_train_made") < 0.1


def test_visits_follow_their_trajectory(people):
    first = [replace(r, row=replace(r.row, session="1")) for r in people[:4]]
    later, made = [], []
    for r in first:
        for years in (2.0, 4.0, 6.0):
            m = oracle(r, years)
            made.append(m)
            row = replace(r.row, session=f"{years}", values=m.target)
            later.append(replace(r, row=row, seen=m.seen))
    found = edits.trajectories("oracle", made, [*later, *first], "lateral_ventricle")
    assert value(found, "trajectory_nmse") == 0
    assert value(found, "trajectory_pearson") == pytest.approx(1)
    assert value(found, "trajectory_slope_error") == pytest.approx(0, abs=1e-9)
    still = [replace(m, seen=m.real.seen) for m in made]
    copied = edits.trajectories("copy", still, [*later, *first], "lateral_ventricle")
    assert value(copied, "trajectory_slope_error") == pytest.approx(-0.5e-3)


def drinker(k: int, true: bool) -> tuple[Real, Made]:
    """A person and, where `true`, the same person in the other group; else a copy."""
    draw = np.random.default_rng(k)
    healthy = {f"cortex_{name}": 100 + 5 * draw.normal() for name in aud.REGIONS}
    sick = {
        key: v - (0 if key.endswith("occipital") else 8) + draw.normal() / 9
        for key, v in healthy.items()
    }
    both = [{**v, "tiv": 1500 + 50 * draw.normal()} for v in (healthy, sick)]
    one = person(k)
    drinks = k % 2
    values = {"age": 50.0, "sex": "F", "aud": float(drinks)}
    real = replace(
        one,
        row=replace(one.row, values=values),
        seen=replace(one.seen, volumes=both[drinks]),
    )
    target = {**values, "aud": 1.0 - drinks}
    other = replace(one.seen, volumes=both[1 - drinks if true else drinks])
    return real, Made(replace(real.row, values=target), real, "aud", target, ("aud",), other)


@pytest.mark.parametrize(("true", "right"), [(True, [6, 6, 6]), (False, [6, 1, 1])])
def test_the_study_of_drinkers_is_repeated(true, right):
    real, made = zip(*(drinker(k, true) for k in range(80)), strict=True)
    found = [r for r in replication("x", made, real) if r.metric == "aud_correct"]
    # Counterfactual groups that were copied still differ, the wrong way round.
    assert [r.value for r in found][:3] == right
    lines = replication("x", made, real)
    own = {"group": found[0].group, "region": "cortex_frontal"}
    assert (value(lines, "aud_d", **own) > 1) is true
    assert value(lines, "aud_p", **own) < 0.001
    # Counterfactual controls and counterfactual patients are not the same people.
    assert "aud_paired_p" not in {r.metric for r in lines if r.group == found[0].group}
    twice = replication("x", [*made, *made], [*real, *real])
    assert {r.n for r in twice} == {80}
    assert replication("x", made[:3], real[:3]) == []


def test_rows_find_their_factual_scan(people):
    by_path = Row("other", Path("/x.nii.gz"), extra={"factual_image": "/s3.nii.gz"})
    by_subject = Row("s4", Path("/y.nii.gz"))
    found = pair([by_path, by_subject], people, "cf")
    assert [r.row.subject for _, r in found] == ["s3", "s4"]
    twice = [*people, replace(people[0], row=replace(people[0].row, session="2"))]
    lost = Row("s0", Path("/z.nii.gz"), source="cf.csv:2")
    with pytest.raises(ManifestError, match=r"cf.csv:2 subject 's0'"):
        pair([lost], twice, "cf")


def test_manifests_that_cannot_be_compared_are_named():
    row = Row("a", Path("a.nii.gz"), values={"age": 3.0}, source="real.csv:2")
    bare = Row("a", Path("a.nii.gz"), source="cf.csv:2")
    with pytest.raises(ManifestError, match="nothing to compare"):
        check(Asked([row], {}, {}, [], Path()))
    with pytest.raises(ManifestError, match="no row has a condition"):
        check(Asked([bare], {"x": [row]}, {}, [], Path()))
    with pytest.raises(ManifestError, match=r"no target value in cf.csv:2"):
        check(Asked([row], {"x": [bare]}, {}, [], Path()))


def test_tables_leave_out_what_was_not_measured():
    base = Result(n=4, method="ours", variable="age", group="all", by="judge")
    rows = [
        base.named("mae", 7.87),
        replace(base, method="real", group="").named("mae", 2.23),
        replace(base, group="ten more", asked=10.0).named("mae", 8.62),
        replace(base, group="ten less", asked=-10.0).named("mae", Estimate(6.14, 5.0, 7.0, BCA)),
        replace(base, variable="", group="age-10").named("mae", 99.0),
    ]
    text = tables(rows, ["ours"])
    assert "| method | age MAE |" in text
    assert "| real | 2.23 |" in text
    assert "| method | MAE, -10 years | MAE, +10 years |" in text
    assert "| ours | 6.14 [5, 7] | 8.62 |" in text
    assert "99" not in text
    assert "sex" not in text
    assert BCA in text
    assert PERCENTILE not in text


def test_a_cell_is_found_by_its_fields_and_not_by_a_beginning():
    """A condition called auc_of and an extractor called judged are no AUC and no judge."""
    base = Result(n=4, method="ours", by="judged", extractor="judge of a bundle")
    rows = [
        base.named("fid", 7.0),
        replace(base, by="judge", variable="auc_of", group="all").named("mse", 3.0),
        replace(base, by="judge", variable="sex").named("auc_train_made", 0.75),
    ]
    text = tables(rows, ["ours"])
    assert "| 7 |" not in text
    assert "| method | auc of mse |" in text
    assert "| method | AUC of sex, learned from made, tested on real |" in text


def evaluation(tools: Instruments, people: list[Real], results: list[Result]) -> Evaluation:
    return Evaluation(results, people, {"ours": [oracle(people[0], 10.0)]}, tools)


def test_one_bar_is_drawn_without_a_warning(recwarn):
    bar = Result("mae", "age", method="ours", by="judge", value=4.0, low=3.0, high=6.0, asked=20.0)
    figure = _bars([bar, replace(bar, method="theirs", low=math.nan, high=math.nan)])
    figure.canvas.draw()
    assert [str(w.message) for w in recwarn.list] == []
    (axes,) = figure.axes
    assert axes.dataLim.y1 == 6.0


def test_the_methods_say_what_was_computed_and_nothing_else(tools, people, tmp_path):
    quick = [
        *effectiveness(tools, "ours", [oracle(r, 10.0) for r in people], people),
        *edits.identity("ours", [oracle(r, 10.0) for r in people], people),
    ]
    text = methods_text(evaluation(tools, people, quick), "quick", 0)
    for absent in ("FID", "Frechet", "KID", "MS-SSIM", "omposition", "@", "percentile"):
        assert absent not in text
    write_evaluation(evaluation(tools, people, quick), "quick", 0, tmp_path)
    assert (tmp_path / "references.bib").read_text() == ""
    assert "omparable" not in (tmp_path / "metrics.csv").read_text()
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert "Interval" not in record
    base = Result(n=4, method="ours", by="judge")
    more = [
        base.named("kid", 0.1),
        base.named("fid_infinite", Estimate(1.0, 0.5, 1.5, FIT)),
        base.named("ms_ssim", Estimate(0.8, 0.7, 0.9, PERCENTILE)),
        base.named("l1", Estimate(0.8, 0.7, 0.9, BCA)),
    ]
    text = methods_text(evaluation(tools, people, more), "standard", 0)
    assert "KID is unbiased [@binkowski2018]" in text
    assert f"Those of ms_ssim are {PERCENTILE}." in text
    assert f"Those of fid_infinite are {FIT}." in text
    assert f"Intervals are {BCA}" in text
    write_evaluation(evaluation(tools, people, more), "standard", 0, tmp_path / "more")
    cited = (tmp_path / "more" / "references.bib").read_text()
    assert "binkowski2018" in cited
    assert "monteiro2023" not in cited


@pytest.fixture
def visited(people, tmp_path, monkeypatch) -> tuple[list[Made], Truths, list[Row]]:
    """Three people, of whom the first has two visits: a counterfactual that is the truth of each
    visit but the second, which was left as it is; and the truths."""
    monkeypatch.setattr(truth, "_seen_volumes", lambda *_: {})
    made, rows = [], []
    for r, session in ((people[0], ""), (people[0], "ses-2"), (people[1], ""), (people[2], "")):
        stem = f"{r.row.subject}_{session}"
        before = np.random.default_rng(len(made)).random(SHAPE).astype(np.float32) + 1
        after = before.copy()
        after[:4] += 0.5 + len(made)
        factual, true = tmp_path / f"{stem}.nii.gz", tmp_path / f"{stem}_true.nii.gz"
        for path, data in ((factual, before), (true, after)):
            write_new(Volume(data, GRID.affine), path, np.float32)
        real = replace(r, row=replace(r.row, image=factual, session=session))
        label = "_".join(part for part in (session, "age+10") if part)
        own = {"intervention": "age+10", "factual_image": str(factual)}
        rows.append(Row(r.row.subject, true, label, extra=own))
        image = factual if session else true
        target = {**r.row.values, "age": float(r.row.values["age"]) + 10}
        row = Row(r.row.subject, image, label, values=target, extra=own)
        made.append(make(row, real, r.seen))
    return made, read_truths(rows, "truth.csv"), rows


def test_every_visit_is_compared_with_its_own_truth(tools, visited):
    made, truths, rows = visited
    assert [truths.of(m) for m in made] == rows
    found = truth.truth_results(tools, {"ours": made}, truths, labels=False, workers=1)
    ours = result(found, "truth_skill", method="ours")
    # 1 and 0 of the first, 1 and 1 of the others: people, not visits.
    assert ours.value == pytest.approx((0.5 + 1 + 1) / 3)
    assert (ours.n, ours.interval, ours.group) == (3, BCA, "age+10")
    assert value(found, "truth_skill", method="oracle") == 1
    assert value(found, "truth_skill", method="copy") == 0
    # Nobody is left out of a mean for being right.
    assert value(found, "truth_psnr_db", method="ours") == np.inf
    assert value(found, "truth_psnr_db", method="oracle") == np.inf


def test_truths_of_a_folder_that_was_moved_are_found_by_visit(visited):
    made, _, rows = visited
    moved = [
        replace(r, extra={**r.extra, "factual_image": f"/elsewhere/{k}.nii.gz"})
        for k, r in enumerate(rows)
    ]
    truths = read_truths(moved, "truth.csv")
    assert [truths.of(m) for m in made] == moved
    elsewhere = replace(
        made[1], real=replace(made[1].real, row=replace(made[1].real.row, session="ses-3"))
    )
    assert truths.of(elsewhere) is None
    with pytest.raises(
        ManifestError, match=r"two truths of subject 's0', session 'ses-2', age\+10"
    ):
        read_truths([*moved, moved[1]], "truth.csv")


def test_a_session_names_the_intervention_where_nothing_else_does(people):
    second = replace(people[0], row=replace(people[0].row, session="ses-2"))
    for real, session in ((second, "ses-2_age+10"), (people[0], "age+10")):
        row = replace(real.row, session=session, values={"age": 30.0})
        assert make(row, real, real.seen).label == "age+10"


def test_medicalnet_loads_its_own_kind_of_file(tmp_path):
    torch.manual_seed(0)
    net = dilated_resnet(10)
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.zeros(1)
    path = tmp_path / "resnet_10_23dataset.pth"
    torch.save({"state_dict": state}, path)
    found = MedicalNet.load(path, CPU)
    image = np.zeros((48, 48, 48), np.float32)
    image[10:40, 10:40, 10:40] = np.random.default_rng(0).random((30, 30, 30))
    features = found.embed(image)
    assert features.shape == (512,)
    assert np.array_equal(features, found.embed(image))
    inside = normalised(image)[image > 0]
    assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-4))
    # Strides of the last two stages are gone: an eighth of the side is left, not a 32nd.
    maps = torch.nn.Sequential(
        net.conv1, net.bn1, net.act, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4
    )
    assert maps(torch.zeros(1, 1, 48, 48, 48)).shape == (1, 512, 6, 6, 6)
    with pytest.raises(BundleError, match="no such file"):
        MedicalNet.load(tmp_path / "resnet_50.pth", CPU)
    torch.save({"state_dict": {}}, tmp_path / "resnet_50.pth")
    with pytest.raises(BundleError, match="ResNet-50"):
        MedicalNet.load(tmp_path / "resnet_50.pth", CPU)


def test_another_image_of_a_head_is_prepared_as_the_head_was(stripped_scan):
    scan = read_volume(stripped_scan)
    prepared = prepare(scan, scan.data > 0, PREPROCESS)
    again = prepared.again(scan.data, PREPROCESS.intensity_cap)
    assert np.allclose(again, prepared.image, atol=1e-6)
    half = prepared.again(scan.data / 2, PREPROCESS.intensity_cap)
    assert np.allclose(half, again / 2, atol=0.01)


@pytest.fixture(scope="module")
def measured(segmenter_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with segmenter and judge of random weights; the judge guesses the maker, too."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundles") / "measured"
    config = judge_config((80, 96, 88), (2, len(MAKERS)))
    cells = [{"manufacturer": maker} for maker in MAKERS]
    nets = [Judge(config).eval() for _ in range(2)]
    settings = {
        **net_config(config),
        "targets": with_columns(shipped_schema(), ["manufacturer"], cells).to_json(),
        "seeds": 2,
        "val": {},
    }
    write_part(copy_bundle(segmenter_bundle, folder), "judge", pack(nets), settings, {})
    return folder


def test_an_evaluation_end_to_end(cfgen, measured, tmp_path, monkeypatch):
    """Truths as counterfactuals: the oracle of a simulated cohort, through the command."""
    # One brain is enough for what is edited there and back, and for what is measured again.
    monkeypatch.setattr("cfgen.evaluate.axioms.SUBJECTS", 1)
    monkeypatch.setattr("cfgen.evaluate.controls.AGAIN", 1)
    known = cohort.schema(graph())
    (older,) = parse_interventions(known, ages=["50"])
    (elsewhere,) = parse_interventions(known, sets=["manufacturer=GE"])
    plan = Plan(cohort.preset("lifespan"), 0, 3, (older, elsewhere), 3)
    simulate(plan, tmp_path / "sim")
    truths = read_manifest(tmp_path / "sim" / "truth.csv", conditions_of(read_bundle(measured)))
    write_manifest(tmp_path / "cf.csv", truths)
    out = tmp_path / "out"
    options = [
        "--real",
        tmp_path / "sim" / "manifest.csv",
        "--truth",
        tmp_path / "sim" / "truth.csv",
        "--bundle",
        measured,
        "--out",
        out,
        "--force",
        "--negative-controls",
    ]
    given = ["--counterfactuals", f"ours={tmp_path / 'cf.csv'}"]
    code, said, err = cfgen("evaluate", *options, *given)
    assert code == 0, err
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = {(r["metric"], r["method"]): r for r in rows}
    assert {"fid", "kid", "ms_ssim", "truth_dice", "composition_l1"} <= {r["metric"] for r in rows}
    maker = [r for r in rows if (r["metric"], r["variable"]) == ("accuracy", "manufacturer")]
    assert {r["n"] for r in maker if r["method"] == "ours"} == {"3"}
    assert float(of["untouched_region_change", "copy"]["value"]) == 0
    controls = {r["region"]: r for r in rows if r["metric"] == "control_change"}
    assert set(controls) == {"tiv", "brainstem"}
    assert float(of["control_floor", "real"]["value"]) > 0
    assert "Negative controls" in (out / "methods.md").read_text()
    for method, skill in (("ours", 1), ("oracle", 1), ("copy", 0)):
        assert float(of["truth_skill", method]["value"]) == pytest.approx(skill)
    assert 0.2 < float(of["ssim_to_factual", "ours"]["value"]) < 0.999
    assert of["truth_mae", "ours"]["interval"] == ""
    assert {r["interval"] for r in rows if r["low"]} <= {BCA, PERCENTILE, PERCENTILE_OF_SETS}
    nothing = {how: of["composition_l1", f"bundle, {how}"] for how in ("residual", "latent")}
    assert float(nothing["residual"]["value"]) < 1e-6
    assert "by construction" in nothing["residual"]["note"]
    through = of["composition_l1", "bundle, reconstruction"]
    assert float(through["value"]) > 1e-3
    assert float(through["value"]) == pytest.approx(float(nothing["latent"]["value"]))
    assert "zero by construction" in (out / "tables.md").read_text()
    record = json.loads((out / "metrics.json").read_text())
    assert record["Scans"] == 3
    assert "[@monteiro2023]" in (out / "methods.md").read_text()
    assert "chong2020" not in (out / "references.bib").read_text()
    assert str(out / "figures" / "age_asked_and_seen.svg") in said
    # Again, where results are already.
    code, _, err = cfgen("evaluate", *options, *given)
    assert code == 2
    assert "--overwrite" in err
    # A counterfactual on another grid than its scan; the scans are prepared already.
    (out / "metrics.csv").unlink()
    scan = read_volume(truths[0].image)
    moved = scan.affine.copy()
    moved[0, 3] += 5
    write_new(Volume(scan.data, moved), truths[0].image, np.int16)
    code, _, err = cfgen("evaluate", *options, *given, "--suite", "quick")
    assert code == 3
    assert "is there already" in err
    assert "is not the grid of its factual scan" in err


def test_what_is_missing_is_said(cfgen, tiny_bundle, stripped_scan, tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"subject,image,age,sex\na,{stripped_scan},40,F\n")
    options = ["--real", manifest, "--counterfactuals", f"a={manifest}", "--out", tmp_path / "o"]
    code, _, err = cfgen("evaluate", *options, "--bundle", tiny_bundle.path)
    assert code == 4
    assert "judge" in err
    code, _, err = cfgen("evaluate", *options, "--suite", "best")
    assert code == 2
    assert "quick, standard, full, paper" in err
    code, _, err = cfgen("evaluate", *options, "--suite", "paper")
    assert code == 2
    assert "--medicalnet" in err
    code, _, err = cfgen("evaluate", *options, "--counterfactuals", f"copy={manifest}")
    assert code == 2
    assert "copy" in err
    code, _, err = cfgen("evaluate", *options, "--split", "val")
    assert code == 2
    assert "is 'val'" in err
    with pytest.raises(ManifestError, match="no column intervention"):
        read_truths([Row("a", Path("a.nii.gz"), source="t.csv:2")], "--truth")
