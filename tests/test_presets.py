"""The paper's setting, what a step of it takes, and cohorts that do not fit into memory."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch

from cfgen.config import CYCLE_FIT, GRIDS, PRESETS
from cfgen.data.conditions import default_schema
from cfgen.data.volume import Volume, write_new
from cfgen.errors import ManifestError
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.blocks import set_checkpointing
from cfgen.nets.condition import token_width
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.space.grids import model_grid
from cfgen.streams import Purpose, torch_stream
from cfgen.train import cohort as cohorts
from cfgen.train.ahead import Ahead
from cfgen.train.latent_diffusion import unet_config
from cfgen.train.mapped import FLUSHED_EVERY, mapped
from cfgen.train.presets import NETWORKS


def test_cdm_1mm_is_the_papers_setting():
    preset, networks = PRESETS["cdm-1mm"], NETWORKS["cdm-1mm"]
    assert GRIDS[preset.grid] == ((160, 192, 176), 1.0)
    assert networks.crop == (160, 192, 176)
    for stage in (preset.autoencoder, preset.latent_diffusion):
        assert (stage.steps, stage.batch_size) == (400_000, 1)
    assert CYCLE_FIT.steps == 2000
    assert (networks.loss.adversarial, networks.loss.kl) == (0.005, 1e-7)
    assert (networks.loss.gradient, networks.loss.background) == (0.0, 1.0)
    with torch.device("meta"):
        autoencoder = Autoencoder(networks.autoencoder)
        latent = autoencoder.encode(torch.empty(1, 1, *networks.crop))
        assert latent.shape == (1, 8, 20, 24, 22)
        config = unet_config(2, tuple(latent.shape[1:]), networks.diffusion)
        unet = UNet(config)
    assert config.channels == (384, 512, 512)
    assert config.attention == (False, True, True)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(365e6, rel=0.01)


def kept_bytes(run) -> int:
    """What autograd keeps of the forward pass of `run` for the way back."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept)


@pytest.mark.parametrize("which", ["autoencoder", "unet", "attention"])
def test_checkpointing_changes_memory_and_nothing_else(which):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16, 16, 16)
    if which == "autoencoder":
        config = AutoencoderConfig((8, 8), (2, 2), (False, True), 4, norm_groups=4)
        net, given = Autoencoder(config), (x[:, :1],)
    else:
        context = None if which == "attention" else token_width(2)
        config = UNetConfig(4, 4, (8, 16), 2, (False, True), 8, context, norm_groups=4)
        tokens = None if context is None else torch.randn(1, 2, context)
        net, given = UNet(config), (x, torch.tensor([3]), tokens)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    saving = copy.deepcopy(net)
    set_checkpointing(saving, True)

    def loss(of):
        return of(*given).square().mean()

    assert kept_bytes(lambda: loss(saving)) < 0.5 * kept_bytes(lambda: loss(net))
    for one in (net, saving):
        loss(one).backward()
    assert loss(net) == loss(saving)
    pairs = list(zip(net.parameters(), saving.parameters(), strict=True))
    # A reconstruction knows nothing of the posterior's width.
    unknown = 2 if which == "autoencoder" else 0
    assert sum(a.grad is None and b.grad is None for a, b in pairs) == unknown
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None)
    # The moving average is a deep copy: it computes with its own weights.
    average = copy.deepcopy(saving)
    with torch.no_grad():
        next(average.parameters()).zero_()
    assert loss(average) != loss(saving)


def test_what_lies_on_disk_is_made_once(tmp_path):
    path, asked = tmp_path / "deep" / "bank.npy", []
    shape = (FLUSHED_EVERY + 5, 2, 3)

    def make(number, stop=None):
        if number == stop:
            raise KeyboardInterrupt
        asked.append(number)
        return np.full(shape[1:], number, np.float32)

    with pytest.raises(KeyboardInterrupt):
        mapped(path, "a", shape, lambda n: make(n, FLUSHED_EVERY + 2), "things")
    asked.clear()
    bank = mapped(path, "a", shape, make, "things")
    assert asked == list(range(FLUSHED_EVERY, shape[0]))
    assert bank.dtype == torch.float16
    assert torch.equal(bank[:, 0, 0], torch.arange(shape[0]).half())
    bank[:] = 7
    asked.clear()
    assert torch.equal(
        mapped(path, "a", shape, make, "things")[:, 1, 2].float(), torch.arange(shape[0]).float()
    )
    assert asked == []
    mapped(path, "b", shape, make, "things")
    assert len(asked) == shape[0]


@pytest.fixture
def prepared(tmp_path):
    """Four scans as `preprocess` leaves them, in a manifest."""
    grid = model_grid("t1w-2mm")
    lines = ["subject,image,age,sex,split"]
    for n in range(4):
        image = np.random.default_rng(n).random(grid.shape, np.float32)
        write_new(Volume(image, grid.affine), tmp_path / f"{n}.nii.gz", np.float32)
        lines.append(f"{n},{n}.nii.gz,{30 + 10 * n},{'MF'[n % 2]},{'train' if n < 3 else 'val'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "manifest.csv"


def test_a_large_cohort_lies_in_a_file(prepared, tmp_path, monkeypatch):
    def read(folder):
        return cohorts.read_cohort(prepared, default_schema(), "t1w-2mm", "train", folder=folder)

    in_memory = read(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(cohorts, "IN_MEMORY_BYTES", 0)
    on_disk = read(tmp_path / "runs")
    assert (tmp_path / "runs" / "train.npy").exists()
    assert torch.equal(on_disk.images, in_memory.images)
    # Not read again where nothing changed, and read where a scan did.
    monkeypatch.setattr(cohorts, "read_volume", lambda path: 1 / 0)
    assert torch.equal(read(tmp_path / "runs").images, in_memory.images)
    monkeypatch.undo()
    monkeypatch.setattr(cohorts, "IN_MEMORY_BYTES", 0)
    grid = model_grid("t1w-2mm")
    small = Volume(np.ones((4, 4, 4), np.float32), grid.affine)
    write_new(small, prepared.parent / "1.nii.gz", np.float32)
    for _ in range(2):
        with pytest.raises(ManifestError, match=r"manifest.csv:3: 1.nii.gz is not on grid"):
            read(tmp_path / "runs")


def test_a_dry_run_says_what_a_step_takes(cfgen, tiny_bundle, prepared, tmp_path):
    out = tmp_path / "out"
    given = ("--manifest", prepared, "--out", out, "--steps", 10, "--batch-size", 1, "--dry-run")
    code, said, err = cfgen("train-ae", *given, "--json", "--checkpointing")
    assert code == 0, err
    trial = json.loads(said)
    assert trial["stage"] == "autoencoder"
    assert trial["critic_parameters"] > 0
    assert trial["seconds"] > 0
    assert 0.1 < trial["memory_gib"] < 8
    code, said, err = cfgen("train-ldm", *given, "--bundle", tiny_bundle.path)
    assert code == 0, err
    assert "latent diffusion: 6.6 M parameters; on cpu a step of batch 1 takes" in said
    assert not out.exists()
    assert not (tmp_path / "out-training").exists()


@pytest.mark.parametrize("command", ["train-ae", "train-ldm", "train-segmenter", "finetune-cycle"])
def test_a_world_that_does_not_divide_the_batch_is_refused_at_once(
    cfgen, tiny_bundle, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    given = ["--manifest", "none.csv", "--out", tmp_path / "out", "--batch-size", 4]
    given += [] if command == "train-ae" else ["--bundle", tiny_bundle.path]
    given += ["--label-maps", "maps"] if command == "train-segmenter" else []
    code, _, err = cfgen(command, *given)
    assert code == 2
    assert "4 in 3 processes; expected a multiple of 3" in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_is_refused(cfgen, tmp_path):
    code, _, err = cfgen("train-ae", "--manifest", "m.csv", "--out", tmp_path, "--preset", "cdm")
    assert code == 2
    assert "t1w-2mm or cdm-1mm" in err
    assert math.prod(GRIDS["cdm-1mm"][0]) == 8 * math.prod(GRIDS["t1w-2mm"][0])


def test_the_next_batch_is_made_meanwhile_and_is_the_one_that_is_asked_for():
    made = []

    def make(generator):
        made.append(generator.initial_seed())
        return torch.randn(3, generator=generator)

    def of(step, seed=0):
        return torch_stream(seed, Purpose.BATCHES, step=step)

    ahead = Ahead(make, 0, torch.device("cuda"))
    for step in (0, 1, 2, 7):
        assert torch.equal(ahead.batch(step, of(step)), torch.randn(3, generator=of(step)))
    # Another seed's batch is not the one that was made for this one's next step.
    assert torch.equal(ahead.batch(8, of(8, 1)), torch.randn(3, generator=of(8, 1)))
    assert [made.count(of(step).initial_seed()) for step in (0, 1, 2, 7)] == [1] * 4
    at_once = Ahead(make, 0, torch.device("cpu"))
    made.clear()
    at_once.batch(0, of(0))
    assert len(made) == 1
