"""Adaptation of a bundle to few scans: what is trained, what stays, what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfgen.bundle import copy_bundle, half, read_bundle, write_part
from cfgen.config import ADAPT_FITS, FitConfig
from cfgen.data.conditions import Schema, with_added
from cfgen.data.volume import Volume, write_new
from cfgen.device import autocast
from cfgen.diffusion.drift import Drift, Drifting
from cfgen.edit.latent import condition_of, load_models
from cfgen.errors import ManifestError, UsageError
from cfgen.jobs import adapt as job
from cfgen.nets.condition import Condition, token_width
from cfgen.nets.lora import RANK, adapted_layers, add_lora, merge_lora
from cfgen.nets.unet import UNet, UNetConfig, token_readers
from cfgen.nets.unet import with_added as with_inputs
from cfgen.space.grids import model_grid
from cfgen.train.adapt import AdaptTask, Prior, choose_weights
from cfgen.train.fit import fit
from cfgen.train.latent_diffusion import LATENT_DIFFUSION
from cfgen.train.latents import LatentData

CPU = torch.device("cpu")


def small_unet(conditioning="both", variables=2, **other):
    torch.manual_seed(0)
    config = UNetConfig(
        4, 4, (8, 16), 1, (False, True), 8, token_width(variables), norm_groups=4, **other
    )
    net = UNet(replace(config, conditioning=conditioning))
    # Nothing that starts at zero may hide what acts.
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return net


def asked(net, c, n=3):
    generator = torch.Generator().manual_seed(1)
    zt = torch.randn(n, 4, 6, 8, 6, generator=generator)
    return net(zt, torch.tensor([10, 400, 900])[:n], Condition(c).tokens())


# --- new conditions -------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioning", ["attention", "norm", "both"])
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_network_with_new_inputs_is_the_parent(conditioning, blocks):
    """Where they are 0, and before training wherever they are."""
    net = small_unet(conditioning, attention_blocks=blocks).eval()
    wide = with_inputs(net, 3)
    c = torch.tensor([[0.3, -1.0], [-2.0, 1.0], [1.0, 1.0]])
    null = torch.cat([c, torch.zeros(3, 3)], 1)
    said = torch.cat([c, torch.randn(3, 3)], 1)
    with torch.no_grad():
        parent = asked(net, c)
        assert torch.allclose(asked(wide, null), parent, atol=1e-5)
        assert torch.allclose(asked(wide, said), parent, atol=1e-5)
        for layer in token_readers(wide).values():
            layer.weight[:, 2:5] = torch.randn(len(layer.weight), 3)
        # Trained, they act where they are said, and the parent is still there where they are not.
        assert torch.allclose(asked(wide, null), parent, atol=1e-5)
        assert (asked(wide, said) - parent).abs().max() > 1e-3


def test_a_second_adaptation_adds_after_the_first():
    net = with_inputs(small_unet(), 1)
    for layer in token_readers(net).values():
        torch.nn.init.normal_(layer.weight)
    wide = with_inputs(net, 2)
    c = torch.tensor([[0.3, -1.0, 0.7]]).expand(3, -1)
    with torch.no_grad():
        before = asked(net, c)
        assert torch.allclose(asked(wide, torch.cat([c, torch.ones(3, 2)], 1)), before, atol=1e-5)


def test_withheld_new_conditions_are_withheld_too():
    net = with_inputs(small_unet(), 1)
    for layer in token_readers(net).values():
        torch.nn.init.normal_(layer.weight)
    tokens = Condition(torch.tensor([[0.3, -1.0, 5.0]])).tokens(torch.tensor([True]))
    folded = net.folded(tokens)
    assert folded.shape == (1, 2, 5)
    assert not folded[..., 2].any()


def test_the_schema_keeps_the_parents_conditions(tiny_bundle):
    known = tiny_bundle.schema
    cells = [{"site": "ours", "field_tesla": t} for t in ("3", "1.5", "3")]
    schema = with_added(known, ["site", "field_tesla"], cells)
    assert schema.variables[:2] == known.variables
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    values = {"age": 40.0, "sex": "F"}
    plain = known.encode(values)
    assert schema.missing(values) == []
    assert schema.encode(values).tolist() == [*plain.tolist(), 0, 0, 0]
    ours = schema.encode(values | {"site": "ours", "field_tesla": 1.5})
    assert ours[:2].tolist() == plain.tolist()
    assert ours[2:4].tolist() == [1, 1]
    assert ours[4] == pytest.approx((1.5 - 2.5) / np.std([3, 1.5, 3]))
    assert schema.decode(np.array([0.0, 1.0], np.float32)) == known.decode(
        np.array([0.0, 1.0], np.float32)
    )
    assert "added" not in known.to_json()[0]
    with pytest.raises(ManifestError, match="column age: is a condition of the parent"):
        with_added(known, ["age"], cells)
    with pytest.raises(ManifestError, match="column coil: is in no row"):
        with_added(known, ["coil"], cells)


# --- what is trained ------------------------------------------------------------------------------


def latents(n=6, variables=2, held_out=2):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(n + held_out, 4, 6, 8, 6, generator=generator)
    c = torch.randn(n + held_out, variables, generator=generator)
    return LatentData(z[:n, None].half(), c[:n], torch.ones(n), z[n:].half(), c[n:])


def trained(tune, folder, net, new=0, drift=None, patience=0, steps=3):
    from cfgen.causal.latent_mean import fit_plain_mean

    data = latents(variables=2 + new)
    config = replace(
        ADAPT_FITS[tune], steps=steps, batch_size=2, report_every=1, checkpoint_every=1
    )
    choose_weights(net, tune, new)
    how = replace(LATENT_DIFFUSION, drift=drift or Drift())
    mean = fit_plain_mean(data.latents[:, 0].float(), 2 + new)
    task = AdaptTask(net, data, mean, CPU, config, how)
    made = fit(task, config, folder, patience=patience)
    merge_lora(made)
    return made


def changed(before, net):
    """Names of weights of which anything is another number, and what of them is."""
    after = net.state_dict()
    assert after.keys() == before.keys()
    return {k: after[k] != before[k] for k in before if not torch.equal(after[k], before[k])}


def expected(tune, net):
    keys = set(net.state_dict())
    if tune in ("full", "prior"):
        return keys
    if tune == "cross-attn":
        return {k for k in keys if "attn2.to_k" in k or "attn2.to_v" in k}
    if tune == "lora":
        return {f"{name}.weight" for name in adapted_layers(net)}
    return {f"{name}.weight" for name in token_readers(net)}


@pytest.mark.parametrize("tune", ["full", "cross-attn", "condition", "lora"])
def test_a_scheme_trains_exactly_its_weights(tune, tmp_path):
    net = small_unet()
    new = 2 if tune == "condition" else 0
    net = with_inputs(net, new) if new else net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    names = expected(tune, net)
    found = changed(before, trained(tune, tmp_path, net, new))
    assert set(found) == names
    if tune == "condition":
        for where in found.values():
            columns = where.any(0)
            assert columns[2:4].all()
            assert not columns[:2].any()
            assert not columns[4:].any()


def test_the_prior_is_kept_to_beside_the_scans(tmp_path):
    """DreamBooth's loss: that of the scans and, weighed, that of the parent's own samples."""
    from cfgen.causal.latent_mean import fit_plain_mean

    net, data, kept = small_unet(), latents(), latents(n=3)
    mean = fit_plain_mean(data.latents[:, 0].float(), 2)
    config = replace(ADAPT_FITS["prior"], batch_size=2)

    def loss(prior):
        task = AdaptTask(net, data, mean, CPU, config, LATENT_DIFFUSION, prior)
        total, figures = task.loss(0, torch.Generator().manual_seed(0))
        return total.item(), figures

    alone, _ = loss(None)
    both, figures = loss(Prior(kept, weight=0.5))
    assert figures["scans"] == pytest.approx(alone, rel=1e-6)
    assert both == pytest.approx(alone + 0.5 * figures["prior"], rel=1e-6)
    assert figures["prior"] > 0


def test_the_prior_is_of_the_parents_making(tiny_bundle, tmp_path, monkeypatch):
    """Samples under its own conditions, whatever is new, and taken up when they are there."""
    monkeypatch.setattr(job, "PRIOR_SAMPLES", 2)
    monkeypatch.setattr(job, "PRIOR_HOW", replace(job.PRIOR_HOW, steps=1))
    schema = with_added(tiny_bundle.schema, ["site"], [{"site": "ours"}])
    models = load_models(tiny_bundle, CPU)
    wide = replace(
        models,
        unet=with_inputs(models.unet, 1).eval(),
        latent_mean=job.with_inputs(models.latent_mean, 1),
    )
    start = job._Start(tiny_bundle, wide, schema, None, None)  # type: ignore[arg-type]
    prior = job._prior(start, wide, 0, tmp_path)
    assert prior.data.latents.shape == (2, 1, 8, 20, 24, 22)
    assert not prior.data.conditions[:, 2].any()
    ages = prior.data.conditions[:, 0] * 20 + 50
    assert ((ages >= 20) & (ages <= 86)).all()
    again = job._prior(start, replace(wide, unet=None), 0, tmp_path)  # type: ignore[arg-type]
    assert torch.equal(again.data.latents, prior.data.latents)


def test_lora_adds_a_low_rank_and_begins_as_the_parent():
    net = small_unet().eval()
    c = torch.tensor([[0.3, -1.0], [-2.0, 1.0], [1.0, 1.0]])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        parent = asked(net, c)
        add_lora(net)
        assert torch.equal(asked(net, c), parent)
        for name, p in net.named_parameters():
            if name.endswith(".B"):
                torch.nn.init.normal_(p)
        adapted = asked(net, c)
        assert not torch.allclose(adapted, parent, atol=1e-3)
        merge_lora(net)
        assert torch.allclose(asked(net, c), adapted, atol=1e-5)
    for name in adapted_layers(net):
        moved = net.state_dict()[f"{name}.weight"] - before[f"{name}.weight"]
        assert torch.linalg.matrix_rank(moved, rtol=1e-4) == min(RANK, *moved.shape)


def test_schemes_without_anything_to_train_are_refused():
    with pytest.raises(UsageError, match="no cross-attention"):
        choose_weights(small_unet("norm"), "cross-attn")
    with pytest.raises(UsageError, match="no new condition"):
        choose_weights(small_unet(), "condition")


def test_drift_in_training_is_in_what_the_network_is_asked(tmp_path):
    """The loss under a drift is that of a network whose input is moved, and of no other."""
    net, drift = small_unet().eval(), Drift((0.3, -0.2, 0.1, 0.0))
    from cfgen.causal.latent_mean import fit_plain_mean

    data = latents()
    mean = fit_plain_mean(data.latents[:, 0].float(), 2)
    config = replace(ADAPT_FITS["full"], batch_size=2)

    class Moved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
            self.config = net.config

        def forward(self, zt, t, context):
            return self.net(drift.plus(zt), t, context)

    def loss(net, how):
        task = AdaptTask(net, data, mean, CPU, config, how)
        return task.loss(0, torch.Generator().manual_seed(0))[0].item()

    drifted = loss(net, replace(LATENT_DIFFUSION, drift=drift))
    assert drifted == pytest.approx(loss(Moved(), LATENT_DIFFUSION), rel=1e-6)
    assert drifted != pytest.approx(loss(net, LATENT_DIFFUSION), rel=1e-4)


# --- early stop -----------------------------------------------------------------------------------


class Told:
    """A task whose held-out figures are told, and whose one weight counts the steps."""

    critic = None

    def __init__(self, figures):
        self.figures, self.net = figures, torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.net.weight)
        self.seen = []

    def loss(self, step, generator):
        return -self.net.weight.sum(), {}

    def report(self, net, picture):
        step = int(picture.stem.split("-")[1])
        self.seen.append((step, net.weight.item()))
        return {"held_out": self.figures[step]}


CONFIG = FitConfig(
    steps=8, learning_rate=0.1, weight_decay=0, ema_decay=0, checkpoint_every=1, report_every=1
)


def test_training_ends_when_held_out_scans_gain_no_more(tmp_path):
    task = Told([5, 4, 3, 3.5, 3.2, 0, 0, 0, 0])
    net = fit(task, CONFIG, tmp_path, patience=2)
    assert [step for step, _ in task.seen] == [0, 1, 2, 3, 4]
    assert net.weight.item() == task.seen[2][1] != task.seen[4][1]
    # The same command finds it done, with the same weights.
    again = Told([9.0] * 9)
    assert fit(again, CONFIG, tmp_path, patience=2).weight.item() == net.weight.item()
    assert again.seen == []


def test_where_nothing_is_gained_the_parent_stays(tmp_path):
    task = Told([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert fit(task, CONFIG, tmp_path, patience=3).weight.item() == 0
    assert len(task.seen) == 4


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_stops_where_it_would_have(tmp_path, after):
    from cfgen.errors import Interrupted

    figures = [5, 4, 3, 3.5, 3.2, 0, 0, 0, 0]
    whole = fit(Told(figures), CONFIG, tmp_path / "whole", patience=2)

    class Stopped(Told):
        def loss(self, step, generator):
            if step == after:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(step, generator)

    with pytest.raises(Interrupted):
        fit(Stopped(figures), CONFIG, tmp_path / "cut", patience=2)
    rest = Told(figures)
    assert fit(rest, CONFIG, tmp_path / "cut", patience=2).weight.item() == whole.weight.item()
    assert rest.seen[-1][0] == 4


# --- the command ----------------------------------------------------------------------------------

PEOPLE = (
    *(("train", 30 + 5 * n, "MF"[n % 2]) for n in range(5)),
    ("val", 40, "F"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A ball in the middle of the model grid, a little brighter in each."""
    grid, folder = model_grid("t1w-2mm"), tmp_path_factory.mktemp("images")
    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in grid.shape], indexing="ij")
    ball = sum(x**2 for x in axes) < 30**2
    paths = []
    for number in range(len(PEOPLE)):
        paths.append(folder / f"{number}.nii.gz")
        write_new(
            Volume((0.5 + 0.03 * number) * ball.astype(np.float32), grid.affine),
            paths[-1],
            np.float32,
        )
    return paths


def manifest(folder, images, people=PEOPLE, columns=("age", "sex", "site")):
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "image", "split", *columns])
        for n, (image, (split, age, sex)) in enumerate(zip(images, people, strict=False)):
            known = {"age": age, "sex": sex, "site": "ours"}
            writer.writerow([f"p{n}", image, split, *(known[c] for c in columns)])
    return path


def test_the_command_adapts_a_bundle(cfgen, tiny_bundle, images, tmp_path):
    arguments = (
        *("train-ldm", "--manifest", manifest(tmp_path, images), "--init", tiny_bundle.path),
        *("--tune", "condition", "--conditions", "site", "--drift", "0.05", "--threads", 1),
        *("--out", tmp_path / "ours", "--steps", 2, "--batch-size", 2),
    )
    code, out, said = cfgen(*arguments, "--dry-run")
    assert code == 0, said
    assert "adaptation (condition)" in out
    assert not (tmp_path / "ours").exists()
    code, out, said = cfgen(*arguments)
    assert code == 0, said
    bundle = read_bundle(tmp_path / "ours")
    changed_parts = {n for n, p in bundle.parts.items() if p.sha256 != tiny_bundle.parts[n].sha256}
    assert changed_parts == {"unet", "latent_mean"}
    assert bundle.schema.variables[:2] == tiny_bundle.schema.variables
    models, parent = load_models(bundle, CPU), load_models(tiny_bundle, CPU)
    assert models.drifting == Drifting(Drift((0.05,)), Drift((0.05,)), 50)
    # Sampled as it was trained: nothing is moved beyond it.
    assert not models.drift(None, 10, 0.6)
    # Where the site is not said the bundle is its parent, but for the drift it is asked under.
    values = {"age": 50.0, "sex": "F"}
    null = condition_of(bundle.schema, values, CPU)
    ours = condition_of(bundle.schema, values | {"site": "ours"}, CPU)
    old = condition_of(tiny_bundle.schema, values, CPU)
    mean = models.latent_mean.mean(null.vector)
    assert torch.allclose(mean, parent.latent_mean.mean(old.vector), atol=1e-5)
    assert (models.latent_mean.mean(ours.vector) - mean).abs().max() > 0.01
    zt, t = torch.randn(1, 8, 20, 24, 22), torch.tensor([500])
    with torch.no_grad():
        expected = parent.unet(zt, t, old.tokens())
        assert torch.allclose(models.unet(zt, t, null.tokens()), expected, atol=2e-3)
        # As it was trained, it is asked at moved latents.
        said = models.denoiser(null, 1.0)(zt, t + 1)
        with autocast(CPU):
            moved, plain = (models.unet(z, t, null.tokens()).float() for z in (zt + 0.05, zt))
        assert torch.equal(said, moved)
        assert not torch.equal(said, plain)
    # A folder's run is gone on with by nobody else's question.
    code, _, said = cfgen(*[a if a != "0.05" else "0.06" for a in arguments])
    assert code == 2
    assert "question.json: belongs to another run" in said
    # A parent's drift of training stays: nothing is added to it.
    more = ("--init", bundle.path, "--tune", "full", "--drift", "auto", "--out", tmp_path / "more")
    code, _, said = cfgen(*arguments[:3], *more, "--threads", 1)
    assert code == 2
    assert "trained with a drift of 0.05 already" in said
    code, out, _ = cfgen("info", bundle.path)
    assert "adapted to 5 scans (condition), trained with drift 0.05, sampled with drift" in out
    part = bundle.part("unet").config
    assert part["adapted"]["tune"] == "condition"
    assert part["adapted"]["parent"] == tiny_bundle.identity


def test_a_bundle_with_a_drift_says_so_in_the_sidecar(
    cfgen, tiny_bundle, images, tmp_path, stripped_scan
):
    code, _, said = cfgen(
        *("train-ldm", "--manifest", manifest(tmp_path, images), "--init", tiny_bundle.path),
        *("--tune", "none", "--drift", "0.05", "--latent-mean", "keep", "--threads", 1),
        *("--out", tmp_path / "ours"),
    )
    assert code == 0, said
    bundle = read_bundle(tmp_path / "ours")
    assert bundle.part("unet").sha256 == tiny_bundle.part("unet").sha256
    assert bundle.part("latent_mean").sha256 == tiny_bundle.part("latent_mean").sha256
    # No network was trained with it: it acts at inference, and goes as far in other steps.
    assert load_models(bundle, CPU).drifting == Drifting(Drift(), Drift((0.05,)), 50)
    code, _, said = cfgen(
        *("counterfactual", "--in", stripped_scan, "--from", "age=40,sex=F", "--sex", "M"),
        *("--bundle", tmp_path / "ours", "--out", tmp_path / "m.nii.gz", "--threads", 1),
        *("--skull-strip", "none", "--steps", 2, "--depth", 0.2, "--no-picture"),
    )
    assert code == 0, said
    sidecar = json.loads((tmp_path / "m.json").read_text())
    assert sidecar["Sampler"]["Drift"] == "0.25"
    assert sidecar["RoundTripError"] < 0.02
    made = ("generate", "--age", 50, "--sex", "F", "--bundle", tmp_path / "ours", "--steps", 2)
    code, _, said = cfgen(*made, "--out", tmp_path / "a", "--threads", 1, "--drift", "0.1,2")
    assert code == 2
    assert "--drift: 2; expected numbers from -1 to 1" in said
    code, _, said = cfgen(*made, "--out", tmp_path / "a", "--threads", 1, "--drift", "0.1,0.2")
    assert code == 2
    assert "2 values for a latent of 8 channels" in said
    code, _, said = cfgen(*made, "--out", tmp_path / "a", "--threads", 1, "--drift", "noise:0.01")
    assert code == 0, said
    record = json.loads(next((tmp_path / "a").glob("*.json")).read_text())
    assert record["Sampler"]["Drift"] == "noise:0.01"


def elsewhere(folder, images):
    """The same with a scan that is not on the model grid."""
    other = folder / "other.nii.gz"
    write_new(Volume(np.ones((8, 8, 8), np.float32), np.eye(4)), other, np.float32)
    return [other, *images[1:]]


@pytest.mark.parametrize(
    ("options", "people", "columns", "said"),
    [
        (("--tune", "lora"), PEOPLE[1:], ("age", "sex"), "4 scans in the train split"),
        (("--tune", "lora"), PEOPLE[:5], ("age", "sex"), "no row has split 'val'"),
        (("--tune", "lora"), PEOPLE, ("age",), "sex missing"),
        (("--tune", "lora", "--drift", "1.5"), PEOPLE, ("age", "sex"), "--drift: 1.5; expected"),
        (
            ("--tune", "none", "--drift", "0.1", "--drift-at", "training"),
            PEOPLE,
            ("age", "sex"),
            "--tune none, which trains nothing",
        ),
        (("--tune", "lora", "--drift", "noise:auto"), PEOPLE, ("age", "sex"), "drift-at inference"),
        (("--tune", "lora", "--drift", "far"), PEOPLE, ("age", "sex"), "--drift: 'far'"),
        (("--tune", "lora", "--drift", "0.1,0.2"), PEOPLE, ("age", "sex"), "8 channels"),
        (("--tune", "condition"), PEOPLE, ("age", "sex"), "no new condition"),
        (("--tune", "lora", "--conditions", "coil"), PEOPLE, ("age", "sex"), "column coil"),
        (("--tune", "lora", "--control", "masks"), PEOPLE, ("age", "sex"), "--control beside"),
        (("--drift", "auto"), PEOPLE, ("age", "sex"), "--drift: without --tune"),
        (("--tune", "lora", "--latent-mean", "ridge"), PEOPLE, ("age", "sex"), "shrink or keep"),
    ],
)
def test_refusals(cfgen, tiny_bundle, images, tmp_path, options, people, columns, said):
    table = manifest(tmp_path, images, people, columns)
    code, _, err = cfgen(
        *("train-ldm", "--manifest", table, "--init", tiny_bundle.path),
        *("--out", tmp_path / "ours", "--threads", 1, *options),
    )
    assert code in (2, 3, 4), err
    assert said in err
    assert not (tmp_path / "ours").exists()


def test_scans_of_another_grid_are_named(cfgen, tiny_bundle, images, tmp_path):
    table = manifest(tmp_path, elsewhere(tmp_path, images))
    code, _, err = cfgen(
        *("train-ldm", "--manifest", table, "--init", tiny_bundle.path, "--tune", "full"),
        *("--out", tmp_path / "ours", "--threads", 1),
    )
    assert code == 2
    assert "other.nii.gz is not on grid t1w-2mm" in err


def test_the_parent_is_named_where_it_is_missing(cfgen, images, tmp_path):
    code, _, err = cfgen(
        *("train-ldm", "--manifest", manifest(tmp_path, images), "--tune", "full"),
        *("--out", tmp_path / "ours", "--threads", 1),
    )
    assert code == 2
    assert "--tune: no --init" in err


@pytest.mark.parametrize("tune", ["decoder", "all"])
def test_an_autoencoder_is_adapted(cfgen, tiny_bundle, images, tmp_path, monkeypatch, tune):
    # The last weights: two steps need not be better than none.
    monkeypatch.setattr("cfgen.jobs.adapt_autoencoder.PATIENCE", 0)
    parent = write_part(
        copy_bundle(tiny_bundle, tmp_path / "parent"), "decoder", {"w": torch.zeros(1)}, {}, {}
    )
    arguments = (
        *("train-ae", "--manifest", manifest(tmp_path, images), "--init", parent.path),
        *("--tune", tune, "--out", tmp_path / "ours", "--threads", 1, "--steps", 2),
    )
    code, _, said = cfgen(*arguments)
    assert code == 0, said
    bundle = read_bundle(tmp_path / "ours")
    changed_parts = {n for n, p in bundle.parts.items() if p.sha256 != tiny_bundle.parts[n].sha256}
    assert changed_parts == {"autoencoder"}
    # That of an autoencoder that is no more.
    assert set(parent.parts) - set(bundle.parts) == {"decoder"}
    assert "diffusion decoder of the old autoencoder is left out" in said
    psnr_db = bundle.part("autoencoder").trained["psnr_db"]
    assert psnr_db["after"] != psnr_db["before"]
    assert ("latents moved" in said) == (tune == "all")
    before, after = tiny_bundle.tensors("autoencoder"), bundle.tensors("autoencoder")
    moved = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert moved
    assert (moved <= {"decoder", "post_quant_conv", "linear_decoder"}) == (tune == "decoder")
    x = torch.rand(1, 1, 80, 96, 88)
    old, new = load_models(tiny_bundle, CPU), load_models(bundle, CPU)
    if tune == "decoder":
        assert torch.equal(old.encode(x), new.encode(x))
    else:
        assert not torch.equal(old.encode(x), new.encode(x))


def test_an_autoencoder_needs_scans_and_a_parent(cfgen, tiny_bundle, images, tmp_path):
    arguments = ("train-ae", "--out", tmp_path / "ours", "--tune", "all", "--threads", 1)
    table = manifest(tmp_path, images, PEOPLE[1:])
    code, _, err = cfgen(*arguments, "--manifest", table, "--init", tiny_bundle.path)
    assert code == 2
    assert "4 scans in the train split; expected at least 5" in err
    code, _, err = cfgen(*arguments, "--manifest", table)
    assert code == 2
    assert "--tune: no --init" in err


def test_a_new_condition_may_be_asked_for_or_left_unsaid(cfgen, tiny_bundle, tmp_path):
    from cfgen.jobs.train_latent_diffusion import unet_description

    models = load_models(tiny_bundle, CPU)
    wide = with_inputs(models.unet, 1)
    schema = with_added(tiny_bundle.schema, ["site"], [{"site": "ours"}])
    bundle = replace(copy_bundle(tiny_bundle, tmp_path / "ours"), schema=schema)
    mean = job.with_inputs(models.latent_mean, 1)
    bundle = write_part(bundle, "latent_mean", mean.tensors(), {"conditional": True}, {})
    description = unet_description(wide.config, LATENT_DIFFUSION)
    write_part(bundle, "unet", half(wide), description, {})
    people = tmp_path / "people.csv"
    people.write_text("subject,age,sex,site\na,40,F,ours\nb,50,M,\n")
    made = ("generate", "--bundle", bundle.path, "--steps", 1, "--threads", 1)
    code, _, said = cfgen(*made, "--manifest", people, "--out", tmp_path / "a")
    assert code == 0, said
    conditions = json.loads((tmp_path / "a" / "b.json").read_text())["Conditions"]
    assert set(conditions) == {"age", "sex"}
    people.write_text("subject,age,sex\nb,50,M\n")
    code, out, said = cfgen(*made, "--manifest", people, "--out", tmp_path / "b", "--dry-run")
    assert code == 0, said
    asked = ("--age", 40, "--sex", "F", "--set", "site=ours", "--out", tmp_path / "c", "--dry-run")
    code, out, said = cfgen(*made, *asked)
    assert code == 0, said
    assert out.strip().endswith("siteours_1.nii.gz")
    code, _, said = cfgen(*made, "--age", 40, "--sex", "F", "--set", "site=x", "--out", tmp_path)
    assert code == 2
    assert "no known site; expected ours" in said
