"""Brains of nobody: the mathematics, seeds that no batch changes, files, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal

import nibabel as nib
import numpy as np
import pytest
import torch

from cfgen.bundle import copy_bundle
from cfgen.config import Generation
from cfgen.data.manifest import read_manifest
from cfgen.data.volume import file_sha256
from cfgen.diffusion.schedule import time_grid
from cfgen.edit.generation import brain_alone, sample_latent
from cfgen.edit.latent import condition_of, load_models
from cfgen.jobs import generate as job
from cfgen.measure.background import empty_value
from cfgen.space.grids import model_grid

CPU = torch.device("cpu")
QUICK = ("--steps", 2, "--no-picture")


def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def models(tiny_bundle):
    return load_models(tiny_bundle, CPU)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 7), ("dpm++", 7)])
def test_a_network_that_says_nothing_leaves_the_latent_mean_and_shrunk_noise(
    models, tiny_bundle, sampler, steps
):
    """v = 0 is z0 = cos(phi) zt: DDIM turns zt by each step's angle, and keeps its cosine."""

    class Silent(torch.nn.Module):
        def forward(self, zt, t, context):
            return torch.zeros_like(zt)

    silent = type(models)(**{**vars(models), "unet": Silent()})
    noise = torch.randn(1, 8, 20, 24, 22, generator=torch.Generator().manual_seed(0))
    c = condition_of(tiny_bundle.schema, {"age": 60.0, "sex": "F"}, CPU)
    z0 = sample_latent(silent, c, noise, Generation(sampler, steps, 1.0))
    r = (z0 - models.latent_mean.mean(c.vector)) / models.latent_mean.sigma
    phi = torch.arccos(models.schedule.alpha_bar[time_grid(steps, 1000)].sqrt())
    if sampler == "ddim":
        assert torch.allclose(r, torch.cos(phi.diff()).prod().float() * noise, atol=1e-5)
    else:
        # Another path, but a line through the same noise.
        assert float(torch.corrcoef(torch.stack([r.flatten(), noise.flatten()]))[0, 1]) > 0.9999


def test_outside_the_brain_there_is_nothing(tiny_bundle):
    image = torch.zeros(80, 96, 88)
    image[20:60, 20:70, 20:70] = 0.8
    image[35:45, 40:50, 40:50] = 0.0  # a ventricle
    image[2:5, 2:5, 2:5] = 0.5  # a speck
    image += 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    brain = brain_alone(image, tiny_bundle.preprocess)
    inside = torch.zeros_like(image, dtype=torch.bool)
    inside[20:60, 20:70, 20:70] = True
    found = brain > 0
    dice = 2 * float((found & inside).sum()) / float(found.sum() + inside.sum())
    assert dice > 0.99
    assert found[40, 45, 45]
    assert not found[3, 3, 3]
    assert empty_value(brain.numpy()) == 0


def test_the_same_seed_gives_the_same_bytes_in_any_list_or_shard(cfgen, tiny_bundle, tmp_path):
    given = ("--bundle", tiny_bundle.path, *QUICK, "--guidance", 1.5)
    whole = tmp_path / "whole"
    code, out, err = cfgen(
        "generate", "--age", "30:70:40", "--sex", "F", "--n", 2, "--out", whole, *given, "--json"
    )
    assert code == 0, err
    names = [f"age{a}_sexF_{k}" for a in (30, 70) for k in (1, 2)]
    assert json.loads(out)["outputs"] == [str(whole / f"{n}.nii.gz") for n in names]
    hashes = {n: file_sha256(whole / f"{n}.nii.gz") for n in names}
    assert len(set(hashes.values())) == len(names)

    def same(folder, wanted):
        found = {p.name.removesuffix(".nii.gz"): file_sha256(p) for p in folder.glob("*.nii.gz")}
        assert found == {n: hashes[n] for n in wanted}

    one = tmp_path / "one"
    assert cfgen("generate", "--age", 70, "--sex", "F", "--out", one, *given)[0] == 0
    same(one, ["age70_sexF_1"])
    part = tmp_path / "part"
    question = ("--age", "30:70:40", "--sex", "F", "--n", 2)
    assert cfgen("generate", *question, "--out", part, *given, "--shard", "2/4")[0] == 0
    same(part, names[1:2])
    # What was made can be made again, from its own manifest, in another order.
    listed = lines(whole / "manifest.csv")
    assert [row["subject"] for row in listed] == names
    columns = ["seed", "sex", "subject", "age"]
    text = "\n".join(",".join(row[c] for c in columns) for row in listed[3:1:-1])
    (tmp_path / "again.csv").write_text(f"{','.join(columns)}\n{text}\n")
    again = tmp_path / "again"
    code, _, err = cfgen("generate", "--manifest", tmp_path / "again.csv", "--out", again, *given)
    assert code == 0, err
    same(again, names[2:4])
    other = tmp_path / "other"
    assert cfgen("generate", "--age", 70, "--sex", "F", "--out", other, *given, "--seed", 1)[0] == 0
    assert file_sha256(other / "age70_sexF_1.nii.gz") != hashes["age70_sexF_1"]


def test_files_say_that_nobody_is_shown(cfgen, tiny_bundle, tmp_path):
    out = tmp_path / "brains"
    given = ("--bundle", tiny_bundle.path, "--steps", 2, "--sampler", "dpm++")
    code, _, err = cfgen("generate", "--age", "90", "--sex", "F", "--n", 2, "--out", out, *given)
    assert code == 0, err
    assert "age 90 is outside the training range 20 to 86 years: an extrapolation (2 brains)" in err
    (first, _) = read_manifest(out / "manifest.csv", tiny_bundle.schema)
    assert first.values == {"age": 90, "sex": "F"}
    assert first.extra["synthetic"] == "true"
    image = nib.load(first.image)
    assert image.header["descrip"].tobytes().startswith(b"SYNTHETIC: cfgen")
    assert np.allclose(image.affine, model_grid("t1w-2mm").affine)
    assert image.shape == (80, 96, 88)
    said = json.loads((out / "age90_sexF_1.json").read_text())
    assert said["Synthetic"] is True
    assert said["Conditions"]["age"] == {"Value": 90, "Unit": "years"}
    assert said["Seed"] == int(first.extra["seed"])
    assert said["Sampler"] == {"Sampler": "dpm++", "Steps": 2, "Guidance": 1.0}
    assert said["SpatialReference"] == "MNI152NLin2009aSym"
    assert said["Bundle"]["SHA256"] == tiny_bundle.identity
    assert [w["Code"] for w in said["Warnings"]] == ["extrapolation"]
    assert (out / "sheet.png").stat().st_size > 5000
    assert not (out / "failed.csv").exists()


def test_a_batch_goes_on_where_it_was_stopped(cfgen, tiny_bundle, tmp_path, monkeypatch):
    out = tmp_path / "brains"
    question = ("generate", "--age", "40:60:10", "--sex", "M", "--out", out)
    command = (*question, "--bundle", tiny_bundle.path, *QUICK)
    made, really = [], job.generate

    def stopping(*given):
        made.append(given)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return really(*given)

    monkeypatch.setattr(job, "generate", stopping)
    code, _, err = cfgen(*command)
    assert code == 75
    assert "1 scan left" in err
    # What a killed run leaves: an image without its record.
    (out / "age50_sexM_1.json").unlink()
    kept = (out / "age40_sexM_1.nii.gz").stat().st_mtime_ns
    code, _, err = cfgen(*command)
    assert code == 0, err
    assert "age40_sexM_1 is there already" in err
    assert len(made) == 4
    assert (out / "age40_sexM_1.nii.gz").stat().st_mtime_ns == kept
    assert len(lines(out / "manifest.csv")) == 3
    # Another request does not take them for its own; rows that failed are a table again.
    other = (*command, "--guidance", 2)
    code, _, err = cfgen(*other)
    assert code == 1
    assert "--overwrite" in err
    failed = lines(out / "failed.csv")
    assert [row["age"] for row in failed] == ["40", "50", "60"]
    assert len(lines(out / "manifest.csv")) == 3
    again = ("generate", "--manifest", out / "failed.csv", *other[7:], "--overwrite")
    code, _, err = cfgen(*again, "--out", out)
    assert code == 0, err
    assert not (out / "failed.csv").exists()
    # A row that fails does not end the others.
    monkeypatch.setattr(
        job, "generate", lambda *given: really(*given) if given[2]["age"] != 50 else 1 / 0
    )
    code, _, err = cfgen(*command, "--overwrite")
    assert code == 1
    assert [row["subject"] for row in lines(out / "failed.csv")] == ["age50_sexM_1"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--age", "30"], 2, "sex not said"),
        ([], 2, "age and sex not said"),
        (["--age", "+30", "--sex", "M"], 2, "write age 30"),
        (["--age", "30", "--sex", "M,X"], 2, "'X' is no known sex"),
        (["--age", "30", "--sex", "M", "--set", "height=3"], 2, "unknown variable 'height'"),
        (["--age", "30", "--sex", "M", "--set", "age=40"], 2, "age given twice"),
        (["--age", "300", "--sex", "M"], 2, "'300' is implausible"),
        (["--age", "30", "--sex", "M", "--steps", "2000"], 2, "1 to 1000"),
        (["--age", "30", "--sex", "M", "--sampler", "euler"], 2, "euler"),
        (["--age", "30", "--sex", "M", "--shard", "3/2"], 2, "'3/2'"),
        (["--age", "30", "--sex", "M", "--shard", "auto"], 2, "Slurm"),
        (["--age", "30", "--manifest", "seeds.csv"], 2, "one or the other"),
        (["--manifest", "seeds.csv"], 2, "seeds.csv:3 column seed: '1.5'"),
        (["--manifest", "names.csv"], 2, "rename 'agee' to 'age'?"),
        (["--manifest", "values.csv"], 2, "values.csv:2 column age"),
        (["--manifest", "double.csv"], 2, "double.csv:3 column subject: 'a' stands twice"),
        (["--manifest", "case.csv"], 2, "name the subjects apart"),
        (["--age", "30", "--sex", "M", "--bundle", "no-unet"], 4, "has no part 'unet'"),
        (["--age", "30", "--sex", "M", "--bundle", "no-autoencoder"], 4, "'autoencoder'"),
        (["--age", "30", "--sex", "M", "--bundle", "deaf"], 4, "its UNet takes no conditions"),
    ],
)
def test_refusals(cfgen, tiny_bundle, tmp_path, monkeypatch, arguments, code, said):
    tables = {
        "seeds.csv": "age,sex,seed\n30,M,7\n40,F,1.5\n",
        "names.csv": "agee,sex\n30,M\n",
        "values.csv": "age,sex\nold,M\n",
        "double.csv": "subject,age,sex\na,30,M\na,30,M\n",
        "case.csv": "subject,age,sex\na,30,M\nA,30,M\n",
    }
    monkeypatch.chdir(tmp_path)
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    changes = {
        "no-unet": lambda parts: parts.pop("unet"),
        "no-autoencoder": lambda parts: parts.pop("autoencoder"),
        "deaf": lambda parts: (
            parts["unet"]["config"]["net"].update(context_dim=None),
            parts["latent_mean"]["config"].update(conditional=False),
        ),
    }
    for name, change in changes.items():
        copied = copy_bundle(tiny_bundle, tmp_path / name)
        info = json.loads((copied.path / "bundle.json").read_text())
        change(info["parts"])
        (copied.path / "bundle.json").write_text(json.dumps(info))
    if "--bundle" not in arguments:
        arguments = [*arguments, "--bundle", str(tiny_bundle.path)]
    found, out, err = cfgen("generate", *arguments, "--out", "brains", "--dry-run")
    assert found == code, err
    assert said in err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "brains").exists()


def test_a_dry_run_names_the_brains_and_makes_none(cfgen, tiny_bundle, tmp_path, monkeypatch):
    (tmp_path / "people.csv").write_text("age,sex,site\n30,M,a\n30,M,b\n44.5,f,a\n")
    for name, value in (("ID", "8"), ("MIN", "7"), ("COUNT", "3")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    given = ("--manifest", tmp_path / "people.csv", "--bundle", tiny_bundle.path, "--dry-run")
    code, out, err = cfgen("generate", *given, "--out", tmp_path / "brains")
    assert code == 0, err
    names = [line.rpartition("/")[2] for line in out.split()]
    assert names == ["age30_sexM_1.nii.gz", "age30_sexM_2.nii.gz", "age44.5_sexF_1.nii.gz"]
    _, out, _ = cfgen("generate", *given, "--out", tmp_path / "brains", "--shard", "auto")
    assert [line.rpartition("/")[2] for line in out.split()] == names[1:2]
    assert not (tmp_path / "brains").exists()
