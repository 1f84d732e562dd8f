"""The judge: it learns from real train scans alone; what its guesses and distances mean.

Toy brains are balls with a dark blob in the middle, which grows with age and sits deeper in women.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.bundle import new_bundle, read_bundle, write_card
from cfgen.config import FitConfig, Preprocess
from cfgen.data.conditions import Schema, Variable, default_schema
from cfgen.data.volume import Volume, write_new
from cfgen.errors import BundleError, Interrupted, ManifestError
from cfgen.jobs import train_judge as job
from cfgen.jobs.train_judge import train_judge
from cfgen.measure.judge import Judges, load_judge
from cfgen.measure.judge_errors import category_errors, number_errors
from cfgen.nets.judge import Judge, JudgeConfig
from cfgen.space.grids import model_grid
from cfgen.train.augmentation import Augmentation
from cfgen.train.fit import fit
from cfgen.train.judge import (
    JudgeTask,
    level_weights,
    target_errors,
    target_weights,
    usual_augmentation,
)
from cfgen.train.judge_data import JudgeData, encode, read_judge_data, usual

GRID = "t1w-2mm"
CPU = torch.device("cpu")
AGE = Variable("age", "continuous", "years", center=50.0, scale=15.0)
SEX = default_schema().variable("sex")
SHORT = FitConfig(4, 1e-3, batch_size=2, warmup_steps=1, checkpoint_every=2, report_every=4)
GENTLE = Augmentation(warp_probability=0.0, elastic_voxels=0.0)


def brain(shape, age, sex, noise=0.0, seed=0):
    """(D, H, W) float32."""
    axes = [np.arange(n) - (n - 1) / 2 for n in shape]
    edge = min(shape)
    x, y, z = np.meshgrid(*axes, indexing="ij")
    image = ((x**2 + y**2 + z**2) < (0.45 * edge) ** 2) * 0.8
    depth = 0.1 * edge * (1 if sex == "F" else -1)
    blob = (x**2 + y**2 + (z - depth) ** 2) < (edge * (0.08 + 0.0025 * age)) ** 2
    image = np.where(blob, 0.2, image)
    image += noise * np.random.default_rng(seed).normal(size=shape) * (image > 0)
    return image.astype(np.float32)


def toy_data(n, seed, shape=(24, 24, 24)):
    rng = np.random.default_rng(seed)
    ages, sexes = rng.uniform(20, 80, n), rng.choice(["M", "F"], n)
    images = [brain(shape, a, s, 0.05, k) for k, (a, s) in enumerate(zip(ages, sexes, strict=True))]
    targets = np.stack([(ages - AGE.center) / AGE.scale, sexes == "F"], 1).astype(np.float32)
    data = JudgeData(torch.from_numpy(np.stack(images)).half(), torch.from_numpy(targets), [])
    return data, ages, sexes


@pytest.fixture(scope="module")
def judges():
    """Untrained networks for what does not depend on training."""
    torch.manual_seed(0)
    nets = [Judge(JudgeConfig((16, 16, 16), 1, (2,), channels=(8, 8, 8, 16))) for _ in range(3)]
    return Judges(tuple(net.eval() for net in nets), Schema((AGE, SEX)), CPU)


@pytest.fixture(scope="module")
def images():
    return torch.rand(11, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def cohort(folder, rows, labels=False):
    """Prepared toy scans and their manifest; `rows` are its columns beside subject and image."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = model_grid(GRID)
    lines = []
    for n, row in enumerate(rows):
        image = brain(grid.shape, 20 + 5 * (n % 8), row.get("sex", "M"))
        write_new(Volume(image, grid.affine), folder / f"{n}.nii", np.float32)
        line = {"subject": f"s{n}", "image": f"{n}.nii"} | row
        if labels:
            # White matter and ventricle of DLMUSE.
            codes = np.where(image > 0.5, 81, np.where(image > 0, 51, 0)).astype(np.uint8)
            codes[40, 48, :3] = 207
            write_new(Volume(codes, grid.affine), folder / f"{n}_dseg.nii", np.uint8)
            line["labels"] = f"{n}_dseg.nii"
        lines.append(line)
    path = folder / "manifest.csv"
    columns = list(dict.fromkeys(c for line in lines for c in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(lines)
    return path


def people(train=6, val=2, **val_values):
    sexes = "MF" * (train + val)
    rows = [
        {"age": 20 + 7 * n, "sex": sexes[n], "split": "train" if n < train else "val"}
        for n in range(train + val)
    ]
    return rows[:train] + [row | val_values for row in rows[train:]]


@pytest.fixture
def source(tmp_path):
    schema = Schema((replace(AGE, support=(20.0, 80.0)), SEX))
    return write_card(new_bundle(tmp_path / "source", Preprocess(), schema, {}), {}).path


def test_it_learns_age_and_sex_of_toy_brains(tmp_path):
    train, _, _ = toy_data(60, 0)
    val, ages, sexes = toy_data(30, 1)
    config = FitConfig(150, 3e-3, batch_size=8, warmup_steps=10, ema_decay=0.95, report_every=150)
    task = JudgeTask(Schema((AGE, SEX)), train, val, CPU, config, GENTLE)
    net = fit(task, config, tmp_path)
    guess = Judges((net,), Schema((AGE, SEX)), CPU).judge(val.images.float())
    assert np.corrcoef(guess["age"], ages)[0, 1] > 0.8
    assert ((guess["sex"] > 0.5) == (sexes == "F")).mean() > 0.8


def test_the_ensemble_is_the_mean_of_its_networks(judges, images):
    alone = [replace(judges, nets=(net,)).judge(images) for net in judges.nets]
    together = judges.judge(images)
    for name in ("age", "sex"):
        assert together[name].shape == (11,)
        np.testing.assert_allclose(together[name], np.mean([a[name] for a in alone], 0), rtol=1e-5)
    assert ((together["sex"] > 0) & (together["sex"] < 1)).all()
    # In years: the centre and the spread of the schema.
    with torch.inference_mode():
        first = judges.nets[0](images[:, None])[:, 0].numpy()
    np.testing.assert_allclose(alone[0]["age"], first * 15 + 50, rtol=1e-5)


def test_a_guess_does_not_depend_on_the_rest_of_the_batch(judges, images):
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(judges.embed(images[order]), judges.embed(images)[order], atol=1e-5)
    np.testing.assert_allclose(judges.embed(images[3:4]), judges.embed(images)[3:4], atol=1e-5)
    assert judges.embed(images).shape == (11, 3 * 16)
    assert judges.embed(images).dtype == np.float32
    np.testing.assert_array_equal(judges.embed(images), judges.embed(images.numpy()))


def test_distance_is_zero_for_equals_symmetric_and_grows(judges, images):
    other = images.flip(0)
    np.testing.assert_array_equal(judges.perceptual_distance(images, images), 0)
    there, back = (judges.perceptual_distance(*p) for p in ((images, other), (other, images)))
    np.testing.assert_allclose(there, back, rtol=1e-5)
    # The middle image of eleven is paired with itself.
    assert (there == 0).tolist() == [n == 5 for n in range(11)]
    near, far = (judges.perceptual_distance(images, images + s * other) for s in (0.01, 0.3))
    assert (near < far)[there > 0].all()


def test_unknown_targets_cost_nothing():
    config = JudgeConfig((8, 8, 8), 1, (2,))
    found = torch.tensor([[1.0, 0.0, 0.0], [5.0, 9.0, -9.0]])
    truth = torch.tensor([[3.0, float("nan")], [float("nan"), float("nan")]])
    alike = [torch.ones(2)]
    assert target_errors(found, truth, config, alike).tolist() == [4.0, 0.0]
    truth = torch.tensor([[3.0, 1.0], [5.0, 0.0]])
    entropy = target_errors(found, truth, config, alike)[1].item()
    assert entropy == pytest.approx(np.log(2) / 2, abs=1e-6)


def test_levels_count_alike_however_many_scans_have_them():
    """Of ten scans with a maker nine are GE's, and one guess is the same for all: the loss asks for
    even odds, not for nine to one; whoever says nothing of the maker changes nothing."""
    config = JudgeConfig((8, 8, 8), 1, (3,))
    levels = torch.tensor([0.0] * 9 + [1.0] + [float("nan")] * 5)
    truth = torch.stack([torch.zeros(15), levels], 1)
    weights = level_weights(truth, config)
    torch.testing.assert_close(weights[0], torch.tensor([10 / 18, 5.0, 0.0]))
    guess = torch.zeros(15, 4, requires_grad=True)
    target_errors(guess, truth, config, weights)[1].backward()
    # d loss / d score is 0 where the guess is right on average, and nobody has the third level.
    pull = guess.grad[:, 1:3].sum(0)
    assert pull[0].item() == pytest.approx(pull[1].item(), abs=1e-6)
    assert (guess.grad[10:] == 0).all()


def test_a_judge_of_scanners_sees_contrast_as_it_is():
    maker = Variable("Manufacturer", "categorical", levels=("GE", "Siemens"))
    assert usual_augmentation(Schema((AGE, SEX))).log_gamma > 0
    views = usual_augmentation(Schema((AGE, maker)))
    assert (views.log_gamma, views.log_brightness, views.log_bias) == (0.0, 0.0, 0.0)


def test_val_is_measured_and_never_learned_from(source, tmp_path):
    """Absurd targets of val change the errors that are written down, and no bit of a weight."""
    made = {}
    for name, absurd in (("sane", {}), ("absurd", {"age": 119, "sex": "M"})):
        manifest = cohort(tmp_path / name, people(**absurd))
        bundle = train_judge(
            manifest, ["age", "sex"], source, tmp_path / f"{name}-out", SHORT, "cpu", 2
        )
        made[name] = bundle
    sane, absurd = (b.part("judge") for b in made.values())
    assert sane.sha256 == absurd.sha256
    assert sane.config["targets"] == absurd.config["targets"]
    assert sane.config["val"] != absurd.config["val"]
    assert absurd.config["val"]["age"]["mae_of_the_mean"] > 60
    assert absurd.config["val"]["sex"]["auc"] is None


def test_synthetic_rows_are_left_out_and_counted(source, tmp_path, caplog):
    real = cohort(tmp_path / "real", people())
    rows = people() + [{"age": 90, "sex": "F", "split": "train", "synthetic": "true"}] * 3
    mixed = cohort(tmp_path / "mixed", rows)
    a = train_judge(real, ["age", "sex"], source, tmp_path / "a", SHORT, "cpu", 1)
    b = train_judge(mixed, ["age", "sex"], source, tmp_path / "b", SHORT, "cpu", 1)
    assert "3 synthetic rows of manifest.csv are left out" in caplog.text
    assert a.part("judge").sha256 == b.part("judge").sha256
    assert b.part("judge").trained["scans"] == 6
    with pytest.raises(ManifestError, match="no real scan has split 'train'"):
        read_judge_data(cohort(tmp_path / "none", rows[-3:]), ["age"], GRID)


def test_an_interrupted_training_goes_on_to_the_same_weights(source, tmp_path, monkeypatch):
    import os
    import signal

    manifest = cohort(tmp_path / "scans", people())
    arguments = (manifest, ["age", "sex"], source)
    whole = train_judge(*arguments, tmp_path / "whole", SHORT, "cpu", 2)
    usual_loss, calls = JudgeTask.loss, []

    def loss(self, step, generator):
        calls.append(step)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual_loss(self, step, generator)

    monkeypatch.setattr(JudgeTask, "loss", loss)
    with pytest.raises(Interrupted):
        train_judge(*arguments, tmp_path / "broken", SHORT, "cpu", 2)
    resumed = train_judge(*arguments, tmp_path / "broken", SHORT, "cpu", 2)
    assert resumed.part("judge").sha256 == whole.part("judge").sha256
    # Four steps of the first network, two of the second, and the two that were left of it.
    assert calls == [0, 1, 2, 3, 0, 1, 2, 3]


def test_of_two_processes_each_trains_networks_of_its_own(source, tmp_path, monkeypatch):
    arguments = (cohort(tmp_path / "scans", people()), ["age", "sex"], source)
    whole = train_judge(*arguments, tmp_path / "whole", SHORT, "cpu", 2)
    usual_loss, calls = JudgeTask.loss, []
    monkeypatch.setattr(
        JudgeTask, "loss", lambda self, *given: calls.append(given[0]) or usual_loss(self, *given)
    )
    # One after the other, instead of at once: nobody has to be waited for.
    monkeypatch.setattr(job, "join", lambda device: None)
    monkeypatch.setattr(job, "wait", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    train_judge(*arguments, tmp_path / "two", SHORT, "cpu", 2)
    assert calls == [0, 1, 2, 3]
    assert not (tmp_path / "two").exists()
    monkeypatch.setenv("RANK", "0")
    two = train_judge(*arguments, tmp_path / "two", SHORT, "cpu", 2)
    assert calls == [0, 1, 2, 3] * 2
    assert two.part("judge").sha256 == whole.part("judge").sha256


def test_columns_and_volumes_are_targets(tmp_path):
    rows = people(train=6, val=2)
    for n, row in enumerate(rows):
        row |= {"score": str(n * 1.5), "diagnosis": ("AD", "CN", "MCI")[n % 3]}
    rows[1]["score"], rows[2]["diagnosis"], rows[6]["diagnosis"] = "n/a", "", "never seen"
    manifest = cohort(tmp_path / "scans", rows, labels=True)
    names = ["diagnosis", "volumes", "age", "score"]
    targets, train, val = read_judge_data(manifest, names, GRID)
    kinds = {v.name: v.kind for v in targets.variables}
    assert kinds["score"] == "continuous"
    assert targets.variables[-1].levels == ("AD", "CN", "MCI")
    assert kinds["volume_lateral_ventricle"] == "continuous"
    at = {name: n for n, name in enumerate(targets.names)}
    assert train.targets[:, at["diagnosis"]].nan_to_num(-1).tolist() == [0, 1, -1, 0, 1, 2]
    assert train.targets.isnan().sum() == 2
    assert val.targets[0, at["diagnosis"]].isnan()
    ventricles = train.targets[:, at["volume_lateral_ventricle"]]
    assert (ventricles.diff() > 0).all()
    known = train.targets[:, at["score"]]
    known = known[known.isfinite()]
    assert (known.mean().item(), known.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-6)
    volumes = [n.startswith("volume_") for n in targets.names]
    weights = target_weights(targets)
    assert weights[torch.tensor(volumes)].sum().item() == pytest.approx(1)
    assert weights[at["age"]] == 1
    assert usual(targets, train)[at["age"]] == pytest.approx(
        np.mean([20 + 7 * n for n in range(6)])
    )
    row = replace(train.rows[0], values={"age": targets.variable("age").center})
    assert encode(targets, row)[at["age"]] == 0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("height", r"manifest\.csv column height: there is none; expected one of subject, image"),
        ("volumes", r"manifest\.csv column labels: no train row has one"),
        ("remark", r"manifest\.csv column remark: 12 different texts; expected at most 10"),
        ("site", r"manifest\.csv column site: says 'A' in every row"),
        ("score", r"manifest\.csv:14 column score: 'high' is not a number"),
    ],
)
def test_targets_that_cannot_be_learned(tmp_path, target, said):
    rows = people(train=12, val=1)
    for n, row in enumerate(rows):
        row |= {"remark": f"r{n}", "site": "A", "score": "high" if n == 12 else str(n)}
    with pytest.raises(ManifestError, match=said):
        read_judge_data(cohort(tmp_path, rows), [target], GRID)


def test_targets_of_the_acquisition_by_names_of_bids_or_of_cfgen(tmp_path):
    rows = people(train=6, val=2)
    for n, row in enumerate(rows):
        row |= {"EchoTime": 0.003 + 0.0005 * (n % 3), "Manufacturer": ["GE", "Siemens"][n % 2]}
    rows[1]["EchoTime"] = "n/a"
    path = cohort(tmp_path, rows)
    schema, train, _ = read_judge_data(path, ["te_ms", "manufacturer"], GRID)
    own, known, _ = read_judge_data(path, ["EchoTime", "Manufacturer"], GRID)
    assert schema.names == ["te_ms", "manufacturer"]
    assert own.names == ["EchoTime", "Manufacturer"]
    assert schema.variable("te_ms").support == (3.0, 4.0)
    # One target in two units, and the value that is missing is missing in both.
    torch.testing.assert_close(train.targets, known.targets, equal_nan=True)
    assert train.targets.isnan().nonzero().tolist() == [[1, 0]]


def test_the_errors_say_what_a_judge_without_eyes_would_say():
    truth = np.array([20.0, 40.0, 60.0, 80.0])
    leaning = 50 + 0.5 * (truth - 50)
    found = number_errors(np.stack([leaning - 1, leaning + 1]), truth, 50.0, 10.0)
    assert found["mae"] == pytest.approx(10)
    assert found["mae_of_the_mean"] == pytest.approx(20)
    assert (found["slope"], found["offset"]) == pytest.approx((0.5, 25))
    assert found["mae_corrected"] == pytest.approx(0, abs=1e-9)
    assert found["r2"] == pytest.approx(0.75)
    assert (found["mse"], found["mse_standardised"]) == pytest.approx((125, 1.25))
    # Of four ages, 35 and 45 are called 40, and 65 is called 60.
    assert found["accuracy"] == 0.5
    assert number_errors(np.zeros((1, 9)), np.arange(9.0), 0.0, 1.0)["accuracy"] is None
    said = category_errors(np.array([[0.9, 0.2, 0.6, 0.7]]), np.array([1.0, 0, 0, 1]), 1.0)
    assert (said["accuracy"], said["balanced_accuracy"], said["auc"]) == (0.75, 0.75, 1.0)
    three = category_errors(np.eye(3)[None], np.array([0.0, 1, 1]), 1.0)
    assert (three["accuracy"], three["auc"]) == (pytest.approx(2 / 3), None)


def test_the_command_and_the_part_it_writes(cfgen, source, tmp_path):
    manifest = cohort(tmp_path / "scans", people(), labels=True)
    out = tmp_path / "judged"
    command = ["train-predictor", "--manifest", manifest, "--bundle", source, "--out", out]
    targets = ["--target", "age", "--target", "sex", "--target", "volumes"]
    code, printed, err = cfgen(*command, *targets, "--steps", "2", "--batch-size", "2")
    assert (code, printed.strip()) == (0, str(out)), err
    assert "judge on 2 real scans of val: age: MAE" in err
    bundle = read_bundle(out)
    judges = load_judge(bundle, CPU)
    assert len(judges.nets) == 3
    assert (out / "judge.safetensors").stat().st_size < 3e6
    assert set(bundle.part("judge").config["val"]) == set(judges.targets.names)
    code, said, _ = cfgen("info", out)
    assert code == 0
    assert "on val age: MAE" in said
    _, said, _ = cfgen("info", out, "--json")
    assert json.loads(said)["bundle"]["parts"]["judge"]["val"]["age"]["n"] == 2
    code, _, err = cfgen(*command, "--steps", "2")
    assert code == 2
    assert "--target" in err


def test_a_bundle_without_a_judge_says_how_to_train_one(source):
    with pytest.raises(BundleError, match="train-predictor --target age --target sex"):
        load_judge(read_bundle(source), CPU)
