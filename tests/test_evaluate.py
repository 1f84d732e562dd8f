"""What an evaluation says of an oracle, of copies and of strangers; and its files, end to end."""

from __future__ import annotations

import csv
import json
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
from cfgen.evaluate import edits, sets
from cfgen.evaluate.scans import (
    Instruments,
    Made,
    Real,
    Seen,
    conditions_of,
    copies,
    pair,
)
from cfgen.evaluate.suite import Asked, check, replication
from cfgen.evaluate.tables import tables
from cfgen.evaluate.targets import effectiveness
from cfgen.evaluate.truth import read_truths
from cfgen.jobs.simulate import Plan, simulate
from cfgen.measure.judge import Judges, pack
from cfgen.measure.medicalnet import MedicalNet, dilated_resnet, normalised
from cfgen.metrics import aud
from cfgen.metrics.result import Result
from cfgen.nets.judge import Judge, JudgeConfig
from cfgen.scan.prepare import prepare
from cfgen.sim import cohort
from cfgen.sim.graph import graph
from tests.conftest import shipped_schema

RNG = np.random.default_rng(0)
SHAPE = (20, 20, 20)
GRID = Grid(SHAPE, np.diag([2.0, 2, 2, 1]))
CPU = torch.device("cpu")
MAKERS = ("GE", "Philips", "Siemens")


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
    image = RNG.random(SHAPE).astype(np.float32)
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


def value(results: list[Result], metric: str, group: str | None = None, method: str = "") -> float:
    found = [
        r
        for r in results
        if r.metric == metric and group in (None, r.group) and method in ("", r.method)
    ]
    assert found, metric
    return found[-1].value


def test_the_oracle_arrives_and_the_copy_stays(tools, people):
    made = [oracle(r, years) for r in people for years in (10.0, 20.0)]
    arrived = effectiveness(tools, "oracle", made, people)
    assert value(arrived, "age_mae", "all") == 0
    assert value(arrived, "age_slope") == pytest.approx(1)
    assert value(arrived, "sex_accuracy", "kept") == 1
    stayed = effectiveness(tools, "copy", copies(made), people)
    assert value(stayed, "age_mae", "age+20") == pytest.approx(20)
    assert value(stayed, "age_mae", "all") == pytest.approx(15)
    assert value(stayed, "age_slope") == pytest.approx(0, abs=1e-9)
    kept = edits.preservation(tools, "copy", copies(made))
    assert value(kept, "ssim_to_factual") == pytest.approx(1)
    assert value(kept, "perceptual_to_factual") == 0
    assert np.isinf(value(kept, "psnr_to_factual"))


def test_targets_outside_the_training_range_are_left_out(tools, people):
    made = [oracle(r, 40.0) for r in people]
    high = shipped_schema().variable("age").support[1]
    inside = sum(float(m.target["age"]) <= high for m in made)
    assert 0 < inside < len(made)
    own = [r for r in effectiveness(tools, "x", made, people) if r.group == "age+40"]
    assert {r.n for r in own} == {inside}
    assert own[0].note.startswith(f"{len(made) - inside} targets outside 20")


def test_the_judges_own_error_is_the_floor(tools, people):
    floor = next(
        r for r in effectiveness(tools, "x", [oracle(people[0], 5.0)], people) if r.method == "real"
    )
    assert (floor.metric, floor.value, floor.n) == ("age_mae", 0, 16)


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
    assert value(found, "manufacturer_accuracy", "changed") == pytest.approx(6 / 8)
    assert value(found, "manufacturer_accuracy", "", "real") == 1
    assert value(found, "sequence_accuracy", "kept") == 1
    assert value(found, "acquisition_accuracy") == pytest.approx(6 / 8)
    assert value(found, "te_ms_mse", "all") == pytest.approx(0.25)
    assert value(found, "te_ms_r2", "all") == pytest.approx(1 - 8 * 0.25 / 42)
    assert value(found, "te_ms_mse", "", "real") == pytest.approx(0.25)
    assert {r.unit for r in found if r.metric == "te_ms_mse"} == {"ms2"}
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


def test_region_response_is_the_slope_of_the_volumes(people):
    made = [oracle(r, years) for r in people for years in (-10.0, 20.0)]
    found = edits.region_response("oracle", made, people, ["lateral_ventricle", "cortex"])
    ventricles, cortex = found
    due = float(ventricles.note.split(":")[1].split("%")[0])
    assert due == pytest.approx(ventricles.value, rel=0.25)
    assert cortex.value < 0 < ventricles.value
    assert ventricles.low < ventricles.value < ventricles.high


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
    features = {"e": (np.stack([s.embedding for s in own]),) * 2}
    found = sets.feature_distances("same", features, 0, papers=True)
    assert value(found, "fid") == pytest.approx(0, abs=1e-6)
    floors = sets.feature_floors({"e": features["e"][0]}, 0)
    assert value(floors, "fid_floor") > 0.1
    assert sets.feature_floors({"e": features["e"][0][:3]}, 0) == []
    assert "mostly bias" in next(r for r in found if r.metric == "fid").note
    volumes = sets.volume_distances("same", own, own, ["lateral_ventricle", "cortex"], 0)
    assert value(volumes, "cohens_d", "cortex") == 0
    assert value(volumes, "regions_with_small_d") == 100
    older = [seen(80.0, "F", who.image) for who in own]
    apart = sets.volume_distances("old", own, older, ["lateral_ventricle", "cortex"], 0)
    d, g = (value(apart, name, "cortex") for name in ("cohens_d", "hedges_g"))
    assert g == pytest.approx(d * (1 - 3 / (4 * 30 - 1)))
    assert "the largest" in next(r for r in apart if r.metric == "regions_with_large_d").note
    assert value(volumes, "volume_w2_exact") == 0


def test_a_set_that_repeats_itself_has_less_variety():
    own = [seen(50.0, "F", RNG.random((32, 32, 32))) for _ in range(6)]
    found = sets.variety(own, {"same": own, "one": [own[0], own[1]] * 3}, 0)
    assert value(found, "ms_ssim", method="same") == value(found, "ms_ssim", method="real")
    assert value(found, "ms_ssim_difference", method="same") == 0
    assert value(found, "ms_ssim", method="one") > value(found, "ms_ssim", method="real") + 0.1


def test_figures_do_not_depend_on_the_order_of_people(people):
    own = [r.seen for r in people]
    other = [oracle(r, 20.0).seen for r in people]
    order = RNG.permutation(len(other))
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
    assert [r.metric for r in found] == ["auc_real_sex", "auc_train_made_sex", "auc_test_made_sex"]
    assert min(r.value for r in found) > 0.9
    chance = [(s, sex, replace(who, embedding=RNG.normal(size=8))) for s, sex, who in flipped]
    none = sets.transfer(tools, "noise", real, chance, "sex", "F")
    assert value(none, "auc_test_made_sex") < 0.9


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
    d = value(replication("x", made, real), "aud_d", f"{found[0].group}: frontal")
    assert (d > 1) is true
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
    base = Result(n=4, method="ours", group="all", extractor="judge")
    rows = [
        base.named("age_mae", 7.87),
        replace(base, method="real", group="").named("age_mae", 2.23),
        replace(base, group="age-10").named("age_mae", 6.14),
        replace(base, group="age+10").named("age_mae", 8.62),
    ]
    text = tables(rows, ["ours"])
    assert "| method | age MAE |" in text
    assert "| real | 2.23 |" in text
    assert text.index("MAE, -10 years") < text.index("MAE, +10 years")
    assert "sex" not in text


def test_medicalnet_loads_its_own_kind_of_file(tmp_path):
    torch.manual_seed(0)
    net = dilated_resnet(10)
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    state["module.conv_seg.0.weight"] = torch.zeros(1)
    path = tmp_path / "resnet_10_23dataset.pth"
    torch.save({"state_dict": state}, path)
    found = MedicalNet.load(path, CPU)
    image = np.zeros((48, 48, 48), np.float32)
    image[10:40, 10:40, 10:40] = RNG.random((30, 30, 30))
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
        "net": net_config(config),
        "targets": with_columns(shipped_schema(), ["manufacturer"], cells).to_json(),
        "seeds": 2,
        "val": {},
    }
    write_part(copy_bundle(segmenter_bundle, folder), "judge", pack(nets), settings, {})
    return folder


def test_an_evaluation_end_to_end(cfgen, measured, tmp_path):
    """Truths as counterfactuals: the oracle of a simulated cohort, through the command."""
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
    ]
    given = ["--counterfactuals", f"ours={tmp_path / 'cf.csv'}"]
    code, said, err = cfgen("evaluate", *options, *given)
    assert code == 0, err
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = {(r["metric"], r["method"]): r for r in rows}
    assert {"fid", "kid", "ms_ssim", "truth_dice", "composition_l1"} <= {r["metric"] for r in rows}
    assert of["manufacturer_accuracy", "ours"]["n"] == "3"
    assert float(of["untouched_region_change", "copy"]["value"]) == 0
    for method, skill in (("ours", 1), ("oracle", 1), ("copy", 0)):
        assert float(of["truth_skill", method]["value"]) == pytest.approx(skill)
    assert float(of["ssim_to_factual", "copy"]["value"]) == pytest.approx(1, abs=1e-6)
    assert float(of["ssim_to_factual", "ours"]["value"]) < 0.999
    assert float(of["age_mae", "copy"]["value"]) > 0
    record = json.loads((out / "metrics.json").read_text())
    assert record["Scans"] == 3
    assert {"tables.md", "methods.md", "references.bib"} <= {p.name for p in out.iterdir()}
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
