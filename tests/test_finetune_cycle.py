"""`cfgen finetune-cycle` from end to end, and what it refuses before anything is computed."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from cfgen.bundle import read_bundle, tuples
from cfgen.data.volume import Volume, write_new
from cfgen.diffusion.preconditioning import v_of
from cfgen.edit.latent import load_models
from cfgen.errors import BundleError
from cfgen.jobs.train_latent_diffusion import _first_net
from cfgen.nets.condition import Condition
from cfgen.space.grids import model_grid
from cfgen.train.latents import LatentData

PEOPLE = (("train", 30, "M"), ("train", 70, "F"), ("train", 50, "M"), ("val", 40, "F"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A ball in the middle of the model grid, a little brighter in each."""
    grid, folder = model_grid("t1w-2mm"), tmp_path_factory.mktemp("images")
    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in grid.shape], indexing="ij")
    ball = sum(x**2 for x in axes) < 30**2
    paths = []
    for number in range(len(PEOPLE)):
        paths.append(folder / f"{number}.nii.gz")
        data = (0.6 + 0.05 * number) * ball.astype(np.float32)
        write_new(Volume(data, grid.affine), paths[-1], np.float32)
    return paths


def manifest(folder, images, people=PEOPLE, columns=("age", "sex")):
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "image", "split", *columns])
        for n, (image, (split, age, sex)) in enumerate(zip(images, people, strict=True)):
            known = {"age": age, "sex": sex}
            writer.writerow([f"p{n}", image, split, *(known[c] for c in columns)])
    return path


def test_a_new_bundle_differs_in_the_unet_alone(cfgen, tiny_bundle, images, tmp_path):
    arguments = (
        *("finetune-cycle", "--manifest", manifest(tmp_path, images)),
        *("--bundle", tiny_bundle.path, "--out", tmp_path / "cycle", "--threads", 1),
        *("--steps", 2, "--batch-size", 2, "--lambda", 3, "--times", "0.1:0.9"),
    )
    code, out, _ = cfgen(*arguments, "--dry-run")
    assert code == 0
    assert "cycle: 0.1 M parameters; on cpu a step of batch 2 takes" in out
    assert not (tmp_path / "cycle").exists()
    code, out, said = cfgen(*arguments)
    assert code == 0, said
    assert out.strip() == str(tmp_path / "cycle")
    bundle = read_bundle(tmp_path / "cycle")
    changed = {n for n, p in bundle.parts.items() if p.sha256 != tiny_bundle.parts[n].sha256}
    assert changed == {"unet"}
    part = bundle.part("unet").config
    assert part["cycle"] == {"weight": 3, "first_term": "factual", "t_low": 0.1, "t_high": 0.9}
    assert tuples(part["net"]) == tiny_bundle.part("unet").config["net"]
    load_models(bundle, torch.device("cpu"))
    folder = tmp_path / "cycle-training" / "cycle"
    with (folder / "log.csv").open(newline="") as file:
        assert [set(row) >= {"first", "second", "cycle"} for row in csv.DictReader(file)] == [
            True
        ] * 2
    assert json.loads((folder / "latents.json").read_text())["done"] == 3


OLD_MEN = tuple((split, age, "M") for split, age, _ in PEOPLE)
OF_ONE_AGE = tuple((split, 50, sex) for split, _, sex in PEOPLE)


@pytest.mark.parametrize(
    ("people", "columns", "options", "said"),
    [
        (OLD_MEN, ("age", "sex"), (), "column sex: 'M' in every train row"),
        (OF_ONE_AGE, ("age", "sex"), (), "column age: '50"),
        (PEOPLE, ("sex",), (), "age"),
        (PEOPLE, ("age", "sex"), ("--batch-size", 4), "3 scans in the train split"),
        (PEOPLE, ("age", "sex"), ("--lambda", -1), "--lambda: -1; expected 0 or more"),
        (PEOPLE, ("age", "sex"), ("--times", "0.5:0.2"), "--times: 0.5:0.2; expected two"),
        (PEOPLE, ("age", "sex"), ("--times", "all"), "--times: 'all'; expected two"),
    ],
)
def test_refusals(cfgen, tiny_bundle, images, tmp_path, people, columns, options, said):
    table = manifest(tmp_path, images, people, columns)
    code, _, err = cfgen(
        *("finetune-cycle", "--manifest", table, "--bundle", tiny_bundle.path),
        *("--out", tmp_path / "cycle", "--batch-size", 2, "--dry-run", *options),
    )
    assert code in (2, 3, 4), err
    assert said in err
    assert not (tmp_path / "cycle").exists()


@pytest.mark.parametrize("missing", ["unet", "autoencoder"])
def test_a_bundle_without_its_parts(cfgen, tiny_bundle, images, tmp_path, missing):
    source = tmp_path / "source"
    shutil.copytree(tiny_bundle.path, source)
    info = json.loads((source / "bundle.json").read_text())
    del info["parts"][missing]
    (source / "bundle.json").write_text(json.dumps(info))
    code, _, err = cfgen(
        *("finetune-cycle", "--manifest", manifest(tmp_path, images), "--bundle", source),
        *("--out", tmp_path / "cycle"),
    )
    assert code == 4
    assert f"has no part '{missing}'" in err


def test_train_ldm_says_in_the_bundle_how_it_was_trained(cfgen, tiny_bundle, images, tmp_path):
    code, _, said = cfgen(
        *("train-ldm", "--manifest", manifest(tmp_path, images), "--bundle", tiny_bundle.path),
        *("--out", tmp_path / "made", "--steps", 1, "--batch-size", 1, "--threads", 1),
        *("--conditioning", "both", "--prediction", "eps", "--loss-weights", "min-snr"),
        *("--noise-shift", 8, "--attention-blocks", 2),
    )
    assert code == 0, said
    part = read_bundle(tmp_path / "made").part("unet").config
    assert part["net"]["conditioning"] == "both"
    assert part["net"]["attention_blocks"] == 2
    assert part["schedule"]["prediction"] == "eps"
    assert part["schedule"]["shift"] == 8
    assert part["loss_weights"] == "min-snr"
    models = load_models(read_bundle(tmp_path / "made"), torch.device("cpu"))
    code, _, said = cfgen(
        *("train-ldm", "--manifest", manifest(tmp_path, images), "--bundle", tiny_bundle.path),
        *("--out", tmp_path / "on", "--steps", 1, "--batch-size", 1, "--threads", 1),
        *("--learning-rate", 0, "--init", tmp_path / "made"),
    )
    assert code == 0, said
    on = read_bundle(tmp_path / "on")
    assert on.part("unet").config == part
    assert on.part("unet").sha256 == read_bundle(tmp_path / "made").part("unet").sha256
    assert hasattr(models.unet, "condition_embed")
    with (tmp_path / "made-training" / "unet" / "report.csv").open(newline="") as file:
        assert "error_t700" in next(csv.DictReader(file))


def test_a_network_that_is_told_the_spread_of_voxels(cfgen, tiny_bundle, images, tmp_path):
    """Untrained it says 0: what it means is the guess of who knows the spread alone, wherever it is
    loaded; and who goes on from it is told too."""
    table = manifest(tmp_path, images)
    usual = ("train-ldm", "--manifest", table, "--bundle", tiny_bundle.path, "--threads", 1)
    short = ("--steps", 1, "--batch-size", 1, "--learning-rate", 0)
    made, on = tmp_path / "made", tmp_path / "on"
    code, _, said = cfgen(*usual, *short, "--latent-scale", "voxel", "--out", made)
    assert code == 0, said
    code, _, said = cfgen(*usual, *short, "--init", made, "--out", on)
    assert code == 0, said
    zt = torch.randn(1, 8, 20, 24, 22, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300])
    for path in (made, on):
        models = load_models(read_bundle(path), torch.device("cpu"))
        spread = models.latent_mean.spread
        assert spread is not None
        assert spread.shape == zt.shape[1:]
        denoise = models.denoiser(Condition(torch.zeros(1, 2)), 2.0)
        guess = v_of(torch.zeros_like(zt), zt, t, models.schedule, spread)
        torch.testing.assert_close(denoise(zt, t), guess)
        assert float(guess.abs().max()) > 0.1
    code, _, said = cfgen(
        *usual, *short, "--latent-scale", "voxel", "--prediction", "eps", "--out", tmp_path / "no"
    )
    assert code == 2
    assert "voxel with a network that says eps" in said


@pytest.mark.parametrize(
    ("channels", "variables", "said"),
    [(4, 2, "its UNet has 8 as channels of the latent"), (8, 3, "as width of a condition")],
)
def test_a_network_for_other_latents_is_not_gone_on_from(tiny_bundle, channels, variables, said):
    latents, c = torch.zeros(3, 1, channels, 8, 8, 8), torch.zeros(3, variables)
    data = LatentData(latents, c, torch.ones(3), latents[:, 0], c)
    with pytest.raises(BundleError, match=said):
        _first_net(tiny_bundle, data, torch.device("cpu"))
