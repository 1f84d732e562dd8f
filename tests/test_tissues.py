"""The tissue network: its classes, what it learns, who must not be in training, and the command.

Toy brains are a ball of white matter in a shell of grey matter, with fluid in the middle.
"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from cfgen.bundle import new_bundle, read_bundle, write_card
from cfgen.config import FitConfig, Preprocess
from cfgen.data.conditions import default_schema
from cfgen.data.manifest import read_manifest
from cfgen.data.regions import table
from cfgen.data.tissues import CSF, GREY, WHITE, tissues_of
from cfgen.data.volume import Volume, write_new
from cfgen.errors import ImageError, ManifestError
from cfgen.measure.tissues import dice, load_tissues, read_tissue_scan, summary, tissue_map
from cfgen.train.tissues import PLAIN, TissueTask, random_example
from cfgen.train.tissues_data import read_tissue_data

CPU = torch.device("cpu")
SHAPE = (24, 26, 22)
WM, CORTEX, VENTRICLE = 2, 3, 4
# Brightness of white matter, grey matter and fluid.
BRIGHT, TURNED = (1000.0, 600.0, 150.0), (300.0, 600.0, 1000.0)


def codes(radius):
    """(D, H, W) uint8."""
    axes = [np.arange(n) - (n - 1) / 2 for n in SHAPE]
    r = np.sqrt(sum(x**2 for x in np.meshgrid(*axes, indexing="ij")))
    labels = np.where(r < radius, CORTEX, 0)
    labels[r < radius - 3] = WM
    labels[r < radius / 2] = VENTRICLE
    return labels.astype(np.uint8)


def study(folder, name, splits, contrast=BRIGHT, spacing=2.0):
    """A manifest of scans with labels; `splits` by subject."""
    folder = folder / name
    folder.mkdir(parents=True)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    lines = []
    for n, (subject, split) in enumerate(splits.items()):
        labels = codes(8 + n % 3)
        image = np.zeros(SHAPE, np.float32)
        for code, level in zip((WM, CORTEX, VENTRICLE), contrast, strict=True):
            image[labels == code] = level
        image += 30 * np.random.default_rng(n).normal(size=SHAPE).astype(np.float32) * (labels > 0)
        write_new(Volume(image, affine), folder / f"{subject}.nii", np.float32)
        write_new(Volume(labels, affine), folder / f"{subject}_dseg.nii", np.uint8)
        line = {"subject": subject, "image": f"{subject}.nii", "labels": f"{subject}_dseg.nii"}
        lines.append(line | {"split": split})
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return path


SPLITS = {f"s{n}": "train" for n in range(4)} | {"s4": "val", "s5": "test", "s6": "test"}


@pytest.fixture
def source(tmp_path):
    return write_card(new_bundle(tmp_path / "source", Preprocess(), default_schema(), {}), {}).path


@pytest.mark.parametrize("name", ["freesurfer", "dlmuse"])
def test_every_region_is_one_tissue(name):
    """By the names of the tables, which the classes are not made from."""
    known = table(name)
    numbers = np.array(sorted(known))
    found = dict(zip(numbers.tolist(), tissues_of(numbers).tolist(), strict=True))
    for code, region in known.items():
        text = region.name.lower()
        if region.group in ("background", "head"):
            assert found[code] == 0
        elif "ventric" in text or "inf-lat-vent" in text:
            assert found[code] == CSF, text
        elif "white-matter" in text or "white matter" in text or "brain-stem" in text:
            assert found[code] == WHITE, text
        elif "cortex" in text or "thalamus" in text or "hippocamp" in text or "putamen" in text:
            assert found[code] == GREY, text
    assert set(found.values()) == {0, CSF, GREY, WHITE}


def test_labels_of_no_known_table_are_refused(tmp_path):
    with pytest.raises(ImageError, match="does not know 99"):
        tissues_of(np.array([0, 2, 3, 99, 5000]), tmp_path / "dseg.nii")


def test_dice_of_masks_that_are_counted_by_hand():
    a, b = torch.zeros(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)
    a[:4], b[2:8] = True, True
    assert dice(a, b) == pytest.approx(2 * 2 / 10)
    assert np.isnan(dice(a & ~a, b & ~b))
    assert dice(a, b & ~b) == 0.0


def test_an_image_and_its_tissues_stay_on_each_other(tmp_path):
    """Whatever is drawn: mirrored both or none, and 'plain' moves no border."""
    people = [[read_tissue_scan(row) for row in rows] for rows in data_of(tmp_path).train]
    for seed in range(6):
        for augmentation in ("none", "plain"):
            g = torch.Generator().manual_seed(seed)
            image, tissues = random_example(people, g, augmentation)
            assert image.shape == tissues.shape
            assert ((image > 0) == (tissues > 0)).float().mean() > 0.99
            means = [float(image[tissues == t].mean()) for t in (CSF, GREY, WHITE)]
            assert means == sorted(means)


def data_of(tmp_path, augmented=(), tests=()):
    return read_tissue_data(study(tmp_path, "own", SPLITS), augmented, tests)


def test_plain_changes_what_it_says_and_none_nothing(tmp_path):
    scan = [[read_tissue_scan(row) for row in rows] for rows in data_of(tmp_path).train][:1]

    def drawn(seed, augmentation):
        return random_example(scan, torch.Generator().manual_seed(seed), augmentation)[0]

    plain = {float(drawn(s, "plain").std()) for s in range(8)}
    none = {float(drawn(s, "none").std()) for s in range(8)}
    assert max(none) - min(none) < 1e-5
    assert max(plain) - min(plain) > 0.02
    assert (PLAIN.log_gamma, PLAIN.noise_probability) > (0.0, 0.0)
    assert PLAIN.log_bias > 0


def test_nobody_of_val_or_test_gets_into_training(tmp_path):
    """Counterfactuals of all people are given, and a test of people who were trained on."""
    everybody = study(tmp_path, "edited", dict.fromkeys(SPLITS, "train"))
    other = study(tmp_path, "other", dict.fromkeys(SPLITS, ""))
    data = data_of(tmp_path, [everybody], [other, tmp_path / "own" / "manifest.csv"])
    trained = {row.subject for rows in data.train for row in rows}
    assert trained == {"s0", "s1", "s2", "s3"}
    assert [len(rows) for rows in data.train] == [2, 2, 2, 2]
    assert {rows[0].image.parent.name for rows in data.train} == {"own"}
    assert {r.subject for r in data.val} == {"s4"}
    # Without a split of its own a study is tested on all whom nobody trained on.
    assert {r.subject for r in data.tests["other"]} == {"s4", "s5", "s6"}
    assert {r.subject for r in data.tests["own"]} == {"s5", "s6"}


@pytest.mark.parametrize(
    ("splits", "augmented", "tested", "said"),
    [
        (dict.fromkeys(SPLITS, "train"), {}, {}, "no row with labels has split 'val'"),
        (dict.fromkeys(SPLITS, "val"), {}, {}, "no row with labels has split 'train'"),
        (SPLITS, {"s4": "train"}, {}, "nobody of it is in train"),
        (SPLITS, {}, {"s0": "test"}, "no row to test on"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, splits, augmented, tested, said):
    own = study(tmp_path, "own", splits)
    edited = [study(tmp_path, "edited", augmented)] if augmented else []
    tests = [study(tmp_path, "tested", tested)] if tested else []
    with pytest.raises(ManifestError, match=said):
        read_tissue_data(own, edited, tests)


def test_two_tests_of_one_name_are_refused(tmp_path):
    paths = [study(tmp_path / place, "other", {"s5": "test"}) for place in "ab"]
    with pytest.raises(ManifestError, match="two of one name"):
        data_of(tmp_path, (), paths)


def test_everybody_counts_once_in_the_figures():
    """Two scans of one person against one of another."""
    found = {"csf": np.array([0.2, 0.4, 0.9]), "grey": np.array([0.4, 0.6, 0.9])}
    figures = summary(found, ["a", "a", "b"])
    assert figures["csf"]["dice"] == pytest.approx((0.3 + 0.9) / 2)
    assert figures["mean"]["dice"] == pytest.approx((0.4 + 0.9) / 2)
    assert figures["csf"]["low"] is None


def test_it_learns_a_contrast_and_fails_at_another_unless_it_saw_it(cfgen, source, tmp_path):
    """What the command is for: Dice there and elsewhere, with and without the true other scans."""
    own, other = (
        study(tmp_path, name, SPLITS, contrast)
        for name, contrast in (("own", BRIGHT), ("other", TURNED))
    )
    command = ["train-predictor", "--manifest", own, "--bundle", source, "--target", "segmentation"]
    command += ["--test", own, "--test", other, "--steps", 300, "--device", "cpu", "--threads", 1]
    command += ["--learning-rate", 0.005]
    figures = {}
    for name, more in (("none", []), ("oracle", ["--augmented", other])):
        out = tmp_path / name
        code, _, err = cfgen(*command, "--out", out, *more)
        assert code == 0, err
        part = read_bundle(out).part("tissues")
        assert set(part.config["dice"]) == {"val", "own", "other"}
        assert part.trained["images"] == (8 if more else 4)
        figures[name] = {n: part.config["dice"][n]["mean"]["dice"] for n in ("own", "other")}
        with (tmp_path / f"{name}-training" / "tissues" / "dice.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["subject"] for line in lines] == ["s4", "s5", "s6", "s5", "s6"]
    assert figures["none"]["own"] > 0.8
    assert figures["none"]["other"] < 0.6
    assert figures["oracle"]["other"] > 0.75
    # The weights that are written are those that were measured.
    net = load_tissues(read_bundle(tmp_path / "oracle"), CPU)
    row = next(r for r in read_manifest(own, default_schema()) if r.subject == "s6")
    scan = read_tissue_scan(row)
    labels = tissue_map(net, scan.image, CPU)
    again = [f"{dice(labels == t, scan.tissues == t):.5f}" for t in (CSF, GREY, WHITE)]
    assert again == [lines[2][t] for t in ("csf", "grey", "white")]
    _, text, _ = cfgen("info", tmp_path / "none", "--json")
    said = json.loads(text)["bundle"]["parts"]["tissues"]["dice"]["own"]["mean"]["dice"]
    assert said == figures["none"]["own"]
    _, text, _ = cfgen("info", tmp_path / "none")
    assert "on other: csf 0." in text
    # A step of nothing from the first network leaves what it knows.
    on = ["--init", tmp_path / "none", "--augmented", other, "--steps", 1]
    code, _, err = cfgen(*command, *on, "--learning-rate", 1e-12, "--out", tmp_path / "on")
    assert code == 0, err
    dice_on = read_bundle(tmp_path / "on").part("tissues").config["dice"]
    for name, before in figures["none"].items():
        assert dice_on[name]["mean"]["dice"] == pytest.approx(before, abs=2e-3)


def test_training_cannot_go_on_from_a_bundle_without_the_network(cfgen, source, tmp_path):
    own = study(tmp_path, "own", SPLITS)
    command = ["train-predictor", "--manifest", own, "--bundle", source, "--target", "segmentation"]
    code, _, err = cfgen(*command, "--init", source, "--out", tmp_path / "o")
    assert code == 4
    assert "tissues" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "segmentation", "--target", "age"], "segmentation alone"),
        (["--target", "segmentation", "--networks", "2"], "--networks"),
        (["--target", "age", "--test", "other.csv"], "without --target segmentation"),
        (["--augmentation", "plain"], "without --target segmentation"),
        (["--target", "age", "--init", "first/"], "without --target segmentation"),
    ],
)
def test_options_that_do_not_go_together(cfgen, source, tmp_path, options, said):
    own = study(tmp_path, "own", SPLITS)
    out = tmp_path / "o"
    code, _, err = cfgen(
        "train-predictor", "--manifest", own, "--bundle", source, "--out", out, *options
    )
    assert code == 2
    assert said in err
    assert not (out / "bundle.json").exists()


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    """The loop's promise holds for this task: a batch is of the seed and the step alone."""
    people = [[read_tissue_scan(row) for row in rows] for rows in data_of(tmp_path).train]
    config = FitConfig(2, 1e-3, batch_size=2, warmup_steps=1, report_every=10)

    def loss(step):
        task = TissueTask(people, [], CPU, config, "plain")
        g = torch.Generator().manual_seed(step)
        return task.loss(step, g)[0].item()

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
