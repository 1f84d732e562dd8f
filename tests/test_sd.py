"""Stable Diffusion on slices, end to end on a pipeline of random weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="the extra cfgen[sd] is not installed")

from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_sd import make_cohort, make_pipeline, make_scan

from cfgen.config import FitConfig, SdEdit
from cfgen.data.record import read_record
from cfgen.data.volume import is_synthetic, read_volume
from cfgen.diffusion.drift import NO_DRIFT, Drift
from cfgen.errors import BundleError
from cfgen.jobs import sd_drift
from cfgen.jobs.sd_edit import rendered
from cfgen.jobs.sd_generate import SliceOfNobody
from cfgen.sd.model import CARD, Card, open_model, save_model
from cfgen.sd.prompts import Style
from cfgen.sd.sampling import Edited, Sampling, generate, zero_shot
from cfgen.sd.schemes import NEW_WORD, prepare_scheme, widened
from cfgen.sd.sidecar import SdSidecar
from cfgen.sd.slices import Slices
from cfgen.train.fit import fit
from cfgen.train.slices import Prior, SliceData, SliceTask, withheld_of

CPU = torch.device("cpu")
FIT = FitConfig(
    steps=4, learning_rate=1e-2, batch_size=2, warmup_steps=0, checkpoint_every=2, report_every=4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("sd") / "sd-tiny")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("visits"), visits=2)


@pytest.fixture
def tuned(cfgen, folder, cohort, tmp_path):
    """`sd-tune` of so few steps as may be: the folder that it wrote."""

    def run(*options, model=folder, manifest=cohort, name="tuned"):
        out = tmp_path / name
        code, said, err = cfgen(
            "sd-tune",
            *("--model", model, "--manifest", manifest, "--out", out, "--steps", 3),
            *("--batch-size", 2, "--slices-per-scan", 2, "--threads", 1, *options),
        )
        assert (code, said.strip()) == (0, str(out)), err
        return out

    return run


def weights(folder):
    return {
        f"{part}.{name}": value
        for part, file in (
            ("text_encoder", "model"),
            ("unet", "diffusion_pytorch_model"),
            ("vae", "diffusion_pytorch_model"),
        )
        for name, value in load_file(folder / part / f"{file}.safetensors").items()
    }


def data_of(model, n=6, seed=0):
    stream = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, *model.latent_shape, generator=stream)
    return SliceData(latents, [{"age": 60.0 + i, "sex": "M"} for i in range(n)])


def task_of(folder, tune, drift=NO_DRIFT, prior=None, config=FIT):
    model = open_model(folder, CPU)
    torch.manual_seed(0)
    scheme = prepare_scheme(tune, model)
    return SliceTask(scheme, data_of(model), data_of(model, 2, 1), Style(), drift, config, prior)


ATTENTION = ("attn1.to_", "attn2.to_")
EXPECTED = {
    "full": lambda name: name.startswith("unet."),
    "cross-attn": lambda name: "attn2.to_k." in name or "attn2.to_v." in name,
    "condition": lambda name: name.endswith("token_embedding.weight"),
    "prior": lambda name: name.startswith("unet."),
    "lora": lambda name: any(a in name for a in ATTENTION) and not name.endswith("bias"),
}


@pytest.mark.parametrize("tune", list(EXPECTED))
def test_a_scheme_trains_exactly_the_weights_that_it_says(tune, folder, tmp_path):
    # Rates that lift the low-rank change above the rounding of the weights it is added to.
    task = task_of(folder, tune, config=replace(FIT, steps=2, learning_rate=0.5))
    task.scheme.trained.take(fit(task, task.fit, tmp_path / "run"))
    task.scheme.finish()
    save_model(task.scheme.model, Card(), tmp_path / "out")
    before, after = weights(folder), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {n for n, w in before.items() if not torch.equal(w, after[n][: len(w)])}
    if tune == "condition":
        # The words that were known are as they were; the new one is behind them.
        assert changed == set()
        changed = {n for n, w in before.items() if w.shape != after[n].shape}
    assert changed == {name for name in before if EXPECTED[tune](name)}
    if tune == "lora":
        ranks = [torch.linalg.matrix_rank(after[n] - before[n], rtol=1e-3) for n in changed]
        assert max(ranks) <= 4


def test_a_new_word_is_learnt_and_told(tuned, cfgen, cohort, tmp_path):
    out = tuned("--tune", "condition", "--drift", "0.05", "--age-words", "word")
    card = read_record(Card, out / CARD, "")
    assert (card.noun, card.drift, card.age_words, card.scans) == (NEW_WORD, [0.05], "word", 5)
    assert card.diagnoses == ["AD", "CN"]
    assert all(np.isfinite(card.held_out_error))
    model = open_model(out, CPU)
    number = model.tokenizer.convert_tokens_to_ids(NEW_WORD)
    assert model.tokenizer(f"a {NEW_WORD} scan").input_ids.count(number) == 1
    row = model.text_encoder.get_input_embeddings().weight[number]
    start = open_model(out, CPU).text_encoder.get_input_embeddings().weight[: number - 1]
    assert not any(torch.equal(row, other) for other in start)
    # What it writes it can take up: the word stays in its prompts, the drift in its steps.
    made = tmp_path / "edit.nii.gz"
    scan = make_scan(tmp_path / "scan.nii.gz", 5)
    code, _, err = cfgen(
        *("sd-edit", "--in", scan, "--model", out, "--out", made, "--threads", 1),
        *("--from", "diagnosis=CN", "--set", "diagnosis=AD", "--steps", 2, "--slices", "50"),
    )
    assert code == 0, err
    sidecar = read_record(SdSidecar, tmp_path / "edit.json", "")
    assert sidecar.prompt == f"a {NEW_WORD} with CN"
    assert sidecar.direction == (f"a {NEW_WORD} with CN", f"a {NEW_WORD} with AD")
    assert sidecar.drift == sidecar.trained_drift == [0.05]


def test_diffusers_opens_what_was_written(tuned, folder):
    out = tuned("--tune", "cross-attn")
    assert not list(out.rglob("*.bin"))
    assert not list(out.parent.glob(".*part"))
    # Latents are never clipped, of which the parent's file says nothing.
    assert "clip_sample" not in (folder / "scheduler" / "scheduler_config.json").read_text()
    assert open_model(folder, CPU).levels["clip_sample"] is False
    scheduler = Sampling(NO_DRIFT).scheduler(open_model(folder, CPU))
    assert scheduler.config.clip_sample is False
    levels = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert (levels["clip_sample"], levels["beta_end"]) == (False, 0.012)
    theirs = StableDiffusionPipeline.from_pretrained(str(out), local_files_only=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    expected = theirs(["a brain MRI"] * 2, latents=noise, **how).images
    sampling = Sampling(NO_DRIFT, edit=SdEdit(4, 3.0))
    made = generate(open_model(out, CPU), ["a brain MRI"] * 2, noise, sampling, 0)
    # No drift is diffusers' own pipeline and scheduler, to the bit.
    assert torch.equal(made, expected)
    moved = generate(
        open_model(out, CPU), ["a brain MRI"] * 2, noise, replace(sampling, drift=Drift((0.1,))), 0
    )
    assert (moved - expected).mean() > 0.1


def test_the_network_sees_latents_under_drift_and_learns_their_noise(folder):
    """z_t = signal z0 + noise eps + delta, and the target is eps (diffusion/drift.py)."""
    delta = Drift((0.2, -0.1, 0.0, 0.4))
    seen = []
    for drift in (NO_DRIFT, delta):
        task = task_of(folder, "full", drift)
        task.scheme.model.unet.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].detach())
        )
        z0, eps = task.data.latents[:2], torch.ones(2, 4, 8, 8)
        error = task.error(z0, torch.tensor([0, 999]), eps, ["a", "b"])
        said = task.scheme.model.unet(
            seen[-1], torch.tensor([0, 999]), task.scheme.model.read(["a", "b"])
        ).sample
        assert torch.allclose(error, (said - eps).square().flatten(1).mean(1))
        seen.pop()
    shift = torch.tensor(delta.delta).reshape(1, 4, 1, 1)
    assert torch.allclose(seen[1] - seen[0], shift.expand(2, 4, 8, 8), atol=1e-6)
    signal = float(DDIMScheduler.from_config(task.scheme.model.levels).alphas_cumprod[999]) ** 0.5
    assert torch.allclose(seen[0][1], signal * z0[1] + (1 - signal**2) ** 0.5, atol=1e-5)


def test_samples_of_the_parent_hold_it_back(folder):
    model = open_model(folder, CPU)
    prior = Prior(data_of(model, 3, 2).latents, "a brain MRI", weight=2.0)
    stream = torch.Generator().manual_seed(0)
    loss, figures = task_of(folder, "prior", prior=prior).loss(0, stream)
    assert loss.item() == pytest.approx(figures["error"] + 2 * figures["prior"], rel=1e-5)
    assert task_of(folder, "prior").scheme.noun == "sks brain MRI"


@pytest.mark.parametrize("tune", ["condition", "lora"])
def test_a_training_that_was_killed_ends_as_one_that_was_not(tune, folder, tmp_path):
    whole = fit(task_of(folder, tune), FIT, tmp_path / "whole")
    killed = task_of(folder, tune)
    killed.loss, real = None, killed.loss

    def dies(step, generator):
        if step == 3:
            raise KeyboardInterrupt
        return real(step, generator)

    killed.loss = dies
    with pytest.raises(KeyboardInterrupt):
        fit(killed, FIT, tmp_path / "killed")
    again = fit(task_of(folder, tune), FIT, tmp_path / "killed")
    pairs = zip(whole.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # A checkpoint is as small as the scheme.
    assert (tmp_path / "whole" / "checkpoint.safetensors").stat().st_size < 100_000


def test_training_learns(folder, tmp_path):
    config = replace(FIT, steps=20, batch_size=6, learning_rate=1e-2, ema_decay=0.5)
    task = task_of(folder, "full", Drift((0.1,)), config=config)
    before = task.report(task.net, tmp_path)["held_out"]
    net = fit(task, config, tmp_path)
    after = task.report(net, tmp_path)["held_out"]
    assert after < 0.8 * before
    # Figures of the average leave the network as it was.
    assert task.report(task.net, tmp_path)["held_out"] != after


def test_what_is_withheld_from_an_editor():
    draws = torch.linspace(0, 1, 10001)[:-1]
    no_text, no_source = withheld_of(draws)
    shares = [float(x.float().mean()) for x in (no_text & ~no_source, no_source & ~no_text)]
    shares.append(float((no_text & no_source).float().mean()))
    assert shares == pytest.approx([0.05] * 3, abs=1e-3)


def test_an_editor_begins_as_its_parent(folder):
    parent, editor = open_model(folder, CPU), widened(open_model(folder, CPU))
    z, source = torch.randn(2, 1, 4, 8, 8)
    told, t = parent.read(["a brain MRI"]), torch.tensor([500])
    said = editor.unet(torch.cat([z, source], 1), t, told).sample
    assert torch.allclose(said, parent.unet(z, t, told).sample, atol=1e-6)
    assert editor.edits
    assert not parent.edits


def test_slices_of_nobody(cfgen, folder, tmp_path):
    def make(name, *options):
        code, said, err = cfgen(
            *("sd-generate", "--model", folder, "--out", tmp_path / name, "--steps", 2),
            *("--threads", 1, *options),
        )
        assert code == 0, err
        return [Path(line) for line in said.split()]

    both = make("both", "--age", "70", "--set", "diagnosis=CN,AD", "--n", 2)
    names = [f"age70_diagnosis{d}_{k}.png" for d in ("CN", "AD") for k in (1, 2)]
    assert [p.name for p in both] == names
    record = read_record(SliceOfNobody, both[2].with_suffix(".json"), "")
    assert record.synthetic
    assert "brain MRI" in record.prompt
    assert record.prompt.replace("AD", "CN") != record.prompt
    assert "of a 70 year old person" in record.prompt
    picture = Image.open(both[0])
    assert (picture.mode, picture.size) == ("L", (16, 16))
    assert picture.text["Description"].startswith("SYNTHETIC: cfgen")
    # A slice is its own, whoever else is asked for; and follows the drift.
    alone = make("alone", "--age", "70", "--set", "diagnosis=AD")
    assert alone[0].read_bytes() == both[2].read_bytes()
    drifting = make("drifting", "--age", "70", "--set", "diagnosis=AD", "--drift", "0.2")
    assert drifting[0].read_bytes() != alone[0].read_bytes()
    lines = (tmp_path / "both" / "slices.csv").read_text().splitlines()
    assert lines[0] == "subject,image,age,diagnosis,prompt,seed,synthetic"
    assert len(lines) == 5
    assert (tmp_path / "both" / "sheet.png").exists()
    assert [p.name for p in make("plain", "--n", 2)] == ["slice_1.png", "slice_2.png"]


def test_ageing_by_instruction(tuned, cfgen, visits, tmp_path):
    out = tuned("--pairs", "--age-words", "binned", "--drift", "0.1", manifest=visits)
    scan = visits.parent / "p5_0.nii.gz"
    made = {}
    for name, more in {"a": (), "b": (), "ddpm": ("--sampler", "ddpm")}.items():
        code, said, err = cfgen(
            *("sd-edit", "--in", scan, "--model", out, "--out", tmp_path / f"{name}.nii.gz"),
            *("--from", "age=65,sex=F,diagnosis=AD", "--age", "+7", "--slices", "40:60"),
            *("--steps", 3, "--threads", 1, *more),
        )
        assert code == 0, err
        made[name] = (tmp_path / f"{name}.nii.gz").read_bytes()
    assert made["a"] == made["b"] != made["ddpm"]
    assert [line.rsplit(".", 1)[-1] for line in said.split()] == ["gz", "json", "png"]
    sidecar = read_record(SdSidecar, tmp_path / "a.json", "")
    assert sidecar.synthetic
    assert sidecar.method == "InstructPix2Pix"
    assert sidecar.prompt == "Age this AD female brain MRI moderately into a brain MRI with AD"
    assert sidecar.direction is None
    assert (sidecar.factual["age"], sidecar.target["age"]) == (65.0, 72.0)
    assert "/" not in json.dumps(sidecar.sources[0].file)
    assert is_synthetic(tmp_path / "a.nii.gz")
    # The scan's own grid; slices that were not edited have every byte of theirs.
    before, after = nib.load(scan), nib.load(tmp_path / "a.nii.gz")
    assert before.header.get_data_dtype() == after.header.get_data_dtype()
    assert np.array_equal(before.affine, after.affine)
    places = [s.place for s in sidecar.slices]
    assert len(places) >= 2
    change = np.asarray(after.dataobj) != np.asarray(before.dataobj)
    moved = np.flatnonzero(change.any(tuple({0, 1, 2} - {sidecar.axis})))
    assert moved.tolist() == sorted(places)
    assert all(s.round_trip_error > 0 for s in sidecar.slices)


def test_no_change_by_pix2pix_zero_is_the_scan_and_a_change_is_not(cfgen, folder, tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz", 3)
    changes = {}
    for target in ("CN", "AD"):
        out = tmp_path / f"{target}.nii.gz"
        code, _, err = cfgen(
            *("sd-edit", "--in", scan, "--model", folder, "--out", out, "--threads", 1),
            *("--from", "age=65,diagnosis=CN", "--set", f"diagnosis={target}", "--steps", 4),
            *("--drift", "0.05", "--slices", "50", "--no-picture"),
        )
        assert code == 0, err
        assert not out.with_name(f"{target}.png").exists()
        change = nib.load(out).get_fdata() - nib.load(scan).get_fdata()
        changes[target] = np.abs(change).max()
    # Rounding to the scan's integers is all that is left where nothing is asked for.
    assert changes["CN"] <= 1
    assert changes["AD"] > 5


@pytest.mark.parametrize("how", ["residual", "latent"])
def test_an_edit_is_put_into_the_scan(how, tmp_path):
    """In the scan's own units, where the empty background stays empty."""
    scan = read_volume(make_scan(tmp_path / "scan.nii.gz", 2))
    slices = Slices.of(scan, 32)
    picture = slices.picture(8)
    grey = (picture + 1) / 2
    made = rendered(slices, [8], [Edited(grey * 1.2 - 1 + 0.1, picture)], how)
    before, after = slices.data[:, :, 8], made[:, :, 8]
    assert np.array_equal(np.delete(made, 8, 2), np.delete(slices.data, 8, 2))
    assert (after[before == 0] == 0).sum() > 50
    # Well inside: 0.6 of the grey level, and a twentieth of white more.
    deep = np.s_[5:9, 4:8]
    seen = slices.values(picture)[deep] if how == "latent" else before[deep]
    less = 0.4 * slices.values(picture)[deep]
    assert np.allclose(after[deep], seen - less + 0.05 * slices.white, atol=0.02 * slices.white)


def test_drift_changes_an_edit_and_the_network_is_left_as_it_was(folder, tmp_path):
    model = open_model(folder, CPU)
    before = {n: p.clone() for n, p in model.unet.state_dict().items()}
    attention = model.unet.attn_processors
    slices = Slices.of(read_volume(make_scan(tmp_path / "scan.nii.gz", 1)), model.size)
    picture = slices.picture(8)
    ends = (["a brain MRI with CN"], ["a brain MRI with AD"])
    made = [
        zero_shot(model, picture, "a brain MRI", ends, Sampling(d, edit=SdEdit(4)), 0).picture
        for d in (NO_DRIFT, NO_DRIFT, Drift((0.2,)))
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-3)
    assert all(torch.equal(before[n], p) for n, p in model.unet.state_dict().items())
    assert model.unet.attn_processors == attention
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_the_drift_is_found_on_held_out_slices(tuned, cfgen, folder, cohort, monkeypatch, tmp_path):
    """Of a model whose slices grow brighter with the drift, those as bright as the scans win."""
    asked = []

    def slices_under(model, prompts, delta, seed):
        assert len(prompts) == 16
        assert all("65 year old female with CN" in prompt for prompt in prompts)
        asked.append(delta)
        return targets.mean(0, keepdim=True).expand(4, -1, -1) + (delta - 0.06)

    def grey(model, latents):
        return targets

    targets = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)) * 1e-3
    monkeypatch.setattr(sd_drift, "slices_under", slices_under)
    monkeypatch.setattr(sd_drift, "_grey", grey)
    out = tuned("--drift", "auto", "--tune", "cross-attn")
    assert read_record(Card, out / CARD, "").drift == [0.06]
    assert 0.06 in asked
    curve = (tmp_path / "tuned-training" / "sd" / "drift" / "curve.csv").read_text()
    assert "best" in curve.splitlines()[1 + sorted(asked).index(0.06)]
    found = len(asked)
    tuned("--drift", "auto", "--tune", "cross-attn", "--overwrite")
    assert len(asked) == found
    code, _, err = cfgen(
        *("sd-tune", "--model", folder, "--manifest", cohort, "--out", out, "--overwrite"),
        *("--drift", "0.1", "--tune", "cross-attn", "--slices-per-scan", 2, "--threads", 1),
    )
    assert code == 2
    assert "tuned-training" in err


def test_slices_of_the_search_are_of_one_noise(folder):
    model = open_model(folder, CPU)
    how = SdEdit(steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sd_drift, "HOW", how)
        made = [sd_drift.slices_under(model, ["a", "a"], d, 0) for d in (0.0, 0.0, 0.2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[0][0], made[0][1])
    assert made[0].shape == (2, 16, 16)
    assert 0 <= float(made[0].min()) <= float(made[0].max()) <= 1


def test_dry_runs_write_nothing(cfgen, folder, cohort, tmp_path):
    before = set(tmp_path.rglob("*"))
    code, out, err = cfgen(
        *("sd-tune", "--model", folder, "--manifest", cohort, "--out", tmp_path / "new"),
        *("--tune", "prior", "--dry-run", "--threads", 1, "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["parameters"] > 10_000
    scan = cohort.parent / "p0_0.nii.gz"
    code, out, err = cfgen(
        *("sd-edit", "--in", scan, "--model", folder, "--out", tmp_path / "new.nii.gz"),
        *("--from", "diagnosis=CN", "--set", "diagnosis=AD", "--dry-run", "--threads", 1),
    )
    assert code == 0, err
    said = json.loads(out)
    assert said["prompt"] == "a brain MRI with CN"
    assert said["slices"] == 1
    code, out, err = cfgen(
        *("sd-generate", "--model", folder, "--out", tmp_path / "new", "--dry-run"),
        *("--set", "diagnosis=AD", "--threads", 1),
    )
    assert code == 0, err
    assert "with AD" in json.loads(out)[str(tmp_path / "new" / "diagnosisAD_1.png")]
    assert set(tmp_path.rglob("*")) == before


def test_what_is_no_model_is_refused(folder, tmp_path):
    with pytest.raises(BundleError, match=r"has no model_index\.json"):
        open_model(tmp_path, CPU)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BundleError, match="never as pickles"):
        open_model(pickled, CPU)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "vae" / "config.json").write_text("{")
    with pytest.raises(BundleError, match="broken/vae: cannot be opened"):
        open_model(broken, CPU)
    cut = shutil.copytree(folder, tmp_path / "cut")
    part = cut / "text_encoder" / "model.safetensors"
    part.write_bytes(part.read_bytes()[:5000])
    with pytest.raises(BundleError, match="cut/text_encoder: cannot be opened"):
        open_model(cut, CPU)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--drift", "1.5"), "--drift: 1.5; expected numbers from -1 to 1"),
        (("--drift", "0.1,0.1"), "2 values for a latent of 4 channels"),
        (("--drift", "much"), "--drift: 'much'"),
        (("--age-words", "binned"), "a change of age"),
        (("--slices", "70:20"), "--slices: '70:20'"),
        (("--prior-samples", 5), "--prior-samples: with --tune full"),
        (("--pairs",), "no pair of visits is held out"),
        (("--pairs", "--drift", "auto"), "--drift auto: with --pairs"),
        (("--pairs", "--no-patient"), "--no-patient: with --pairs"),
    ],
)
def test_bad_options_end_before_training(options, said, cfgen, folder, cohort, tmp_path):
    out = tmp_path / "out"
    code, _, err = cfgen(
        *("sd-tune", "--model", folder, "--manifest", cohort, "--out", out, *options),
        *("--threads", 1),
    )
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_too_few_scans_and_none_held_out(cfgen, folder, tmp_path):
    few = make_cohort(tmp_path / "few", train=2)
    code, _, err = cfgen("sd-tune", "--model", folder, "--manifest", few, "--out", tmp_path / "x")
    assert code == 2
    assert "--tune full: 2 scans to train on in cohort.csv; expected 5 at least" in err
    few.write_text(few.read_text().replace("val", "train"))
    code, _, err = cfgen("sd-tune", "--model", folder, "--manifest", few, "--out", tmp_path / "x")
    assert code == 2
    assert "no scan is held out" in err
    # A name of a model on the net is no folder.
    code, _, err = cfgen(
        *("sd-tune", "--model", "CompVis/stable-diffusion-v1-4"),
        *("--manifest", make_cohort(tmp_path / "more"), "--out", tmp_path / "x"),
    )
    assert code == 4
    assert "has no model_index.json" in err


def test_a_folder_of_something_else_is_not_replaced(cfgen, folder, cohort, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    code, _, err = cfgen(
        *("sd-tune", "--model", folder, "--manifest", cohort, "--out", tmp_path, "--overwrite"),
    )
    assert code == 2
    assert "no folder of Stable Diffusion" in err
    assert (tmp_path / "thesis.txt").exists()


def test_models_and_tasks_that_do_not_go_together(cfgen, tuned, folder, cohort, visits, tmp_path):
    def tune(*options, model=folder, manifest=visits):
        given = ("--model", model, "--manifest", manifest, "--out", tmp_path / "x")
        return cfgen("sd-tune", *given, *options)

    code, _, err = tune("--pairs", "--tune", "lora")
    assert (code, "would stay at zero" in err) == (2, True)
    code, _, err = tune("--pairs", "--tune", "prior")
    assert (code, "have no source" in err) == (2, True)
    editor = tuned("--pairs", manifest=visits, name="editor")
    code, _, err = cfgen("sd-generate", "--model", editor, "--out", tmp_path / "x")
    assert (code, "which edits slices" in err) == (2, True)
    code, _, err = tune(model=editor, manifest=cohort)
    assert (code, "learns from pairs" in err) == (2, True)
    # Visits that are not on one grid.
    moved = nib.load(visits.parent / "p0_1.nii.gz")
    other = shutil.copytree(visits.parent, tmp_path / "moved")
    nib.save(nib.Nifti1Image(moved.dataobj, moved.affine + np.eye(4)), other / "p0_1.nii.gz")
    code, _, err = tune("--pairs", manifest=other / "cohort.csv")
    assert code == 2
    assert "is not on the grid of cohort.csv:2" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "diagnosis=AD", "--sampler", "ddpm"), "which can be inverted"),
        (("--set", "diagnosis=AD", "--image-guidance", 2), "a model of InstructPix2Pix"),
        (("--set", "diagnosis=AD", "--image-guidance", 0.5), "a number from 1 on"),
        (("--set", "diagnosis=AD", "--guidance", 1), "a number above 1"),
        (("--set", "diagnosis=AD", "--steps", 5000), "500 at most"),
        (("--set", "diagnosis=PD"), "CN or MCI or AD"),
        (("--sex", "M"), "sex of the scan unknown"),
        (("--age", "60:80:10"), "one age"),
        ((), "nothing to change"),
    ],
)
def test_bad_edits(options, said, cfgen, folder, cohort, tmp_path):
    code, _, err = cfgen(
        *("sd-edit", "--in", cohort.parent / "p0_0.nii.gz", "--model", folder),
        *("--from", "age=70,diagnosis=CN", "--out", tmp_path / "x.nii.gz", *options),
    )
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_edits_of_and_into_no_image(cfgen, folder, cohort, tmp_path):
    how = ("--model", folder, "--from", "diagnosis=CN", "--set", "diagnosis=AD")
    scan = cohort.parent / "p0_0.nii.gz"
    code, _, err = cfgen("sd-edit", "--in", scan, *how, "--out", tmp_path / "x")
    assert (code, "no image suffix" in err) == (2, True)
    code, _, err = cfgen(
        "sd-edit", "--in", tmp_path / "no.nii.gz", *how, "--out", tmp_path / "x.nii"
    )
    assert (code, "no.nii.gz" in err) == (3, True)
    assert not list(tmp_path.iterdir())
