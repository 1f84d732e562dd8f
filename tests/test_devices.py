"""On an accelerator everything gives what it gives on the CPU, and nothing is left behind there.

`pytest --device cuda` asks a real one; without, it is `second_device`, which refuses the same.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from second_device import DEVICE, StrayError, second_device

from cfgen import device as devices
from cfgen.causal.latent_mean import features, fit_latent_mean
from cfgen.config import Edit, FitConfig
from cfgen.data.conditions import Schema, Variable, default_schema
from cfgen.data.parcellation import NAMES, SETS
from cfgen.data.volume import Volume
from cfgen.device import channels_last, number_type, pick_device
from cfgen.diffusion.guidance import guided
from cfgen.diffusion.inversion import invert_ddim
from cfgen.diffusion.samplers import denoise_ddim, denoise_ddpm, denoise_dpmpp_2m
from cfgen.diffusion.schedule import Schedule, ScheduleConfig, time_grid
from cfgen.edit.edits import Drawing, decoded, edit_latents
from cfgen.edit.latent import condition_of, edit_latent, load_models
from cfgen.edit.samples import sample_noise
from cfgen.errors import UsageError
from cfgen.evaluate import axioms
from cfgen.measure.judge import Judges
from cfgen.measure.medicalnet import MedicalNet, dilated_resnet
from cfgen.measure.predictor import predict_conditions
from cfgen.measure.segmenter import posteriors, scaled
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.condition import Condition, token_width
from cfgen.nets.judge import Judge, JudgeConfig
from cfgen.nets.predictors import Predictor, PredictorConfig
from cfgen.nets.segmenter import Segmenter, SegmenterConfig
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.scan.factual import Factual, complete
from cfgen.space.flow import grow
from cfgen.space.sampling import sample, smoothed
from cfgen.space.warp import exponential, voxels
from cfgen.train.autoencoder import AutoencoderTask
from cfgen.train.judge import JudgeTask
from cfgen.train.judge_data import JudgeData
from cfgen.train.latent_diffusion import LatentDiffusionTask
from cfgen.train.latents import LatentData, encode_views, fit_mean
from cfgen.train.painting import Synthesis
from cfgen.train.segmenter import LabelledScan, LabelMap, SegmenterTask, meet_volumes

CPU = torch.device("cpu")
AUTOENCODER = AutoencoderConfig((8, 8), (1, 1), (False, True), 4, norm_groups=4, pack=2)
SEGMENTER = SegmenterConfig(len(NAMES), (8, 8), norm_groups=4)
TARGETS = Schema(
    (
        Variable("age", "continuous", "years", center=50.0, scale=15.0),
        default_schema().variable("sex"),
    )
)
FIT = FitConfig(4, 1e-3, batch_size=2)


@pytest.fixture
def far(device, monkeypatch):
    """An accelerator on which the networks compute in float32, as they do beside it."""
    devices.fast_bf16.cache_clear()
    monkeypatch.setattr(devices, "fast_bf16", lambda _: False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if device.type != "cpu":
        yield device
        return
    with second_device() as second:
        yield second


def same(found, expected):
    """Equal but for the rounding of float32, in sums that a device may take in another order."""
    found, expected = torch.as_tensor(found).cpu(), torch.as_tensor(expected).cpu()
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, rtol=2e-3, atol=2e-4)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def unet():
    config = UNetConfig(4, 4, (8, 16), 1, (False, True), 8, token_width(2), norm_groups=4)
    return randomised(UNet(config))


def test_the_second_device_computes_and_refuses_what_an_accelerator_refuses():
    with second_device() as second:
        x = draw(3, 4)
        y = x.to(second)
        assert y.device == second
        assert torch.equal((2 * y.relu() + torch.tensor(1.0)).cpu(), 2 * x.relu() + 1)
        assert torch.equal(y[torch.tensor([2, 0])].cpu(), x[[2, 0]])
        for stray in (
            lambda: y + torch.ones(3, 4),
            lambda: torch.stack([torch.ones(4), y[0]]),
            lambda: torch.arange(9)[torch.tensor([1, 2]).to(second)],
            lambda: torch.nn.Linear(4, 2)(y),
            lambda: y.double(),
            lambda: torch.ones(3, dtype=torch.float64, device=second),
            lambda: torch.randn(3, generator=torch.Generator(), device=second),
        ):
            with pytest.raises(StrayError):
                stray()
        with pytest.raises(RuntimeError, match="numpy"):
            y.numpy()


@pytest.mark.parametrize("kind", ["autoencoder", "unet", "predictor", "segmenter", "judge"])
def test_networks(kind, far):
    image = draw(2, 1, 16, 16, 16).abs()
    latent, t, tokens = draw(2, 4, 6, 5, 4), torch.tensor([3, 700]), Condition(draw(2, 2)).tokens()
    net, inputs = {
        "autoencoder": (Autoencoder(AUTOENCODER), (image,)),
        "unet": (unet(), (latent, t, tokens)),
        "predictor": (Predictor(PredictorConfig(2, (16, 16, 16))), (image,)),
        "segmenter": (Segmenter(SEGMENTER), (image,)),
        "judge": (Judge(JudgeConfig((16, 16, 16), 1, (2,), channels=(8, 8, 8, 16))), (image,)),
    }[kind]
    net.eval()
    with torch.inference_mode():
        expected = net(*inputs)
    net = channels_last(net, far)
    with torch.inference_mode():
        found = net(*(x.to(far) for x in inputs))
    for a, b in zip(_several(found), _several(expected), strict=True):
        assert a.device.type == far.type
        same(a, b)


def _several(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("way", ["ddim", "dpmpp", "ddpm", "inversion"])
def test_samplers_under_guidance(way, prediction, far):
    schedule = Schedule.make(ScheduleConfig("cosine", prediction))
    net, start, times = unet(), draw(2, 4, 6, 5, 4), time_grid(3, 600)

    def run(where):
        net.to(where)
        c = Condition(draw(2, 2)).to(where)
        nothing = c.tokens(dropped=torch.ones(2, dtype=torch.bool))
        denoiser = guided(net, c.tokens(), nothing, 1.5)
        z = start.to(where)
        with torch.inference_mode():
            if way == "ddpm":
                generators = [torch.Generator().manual_seed(n) for n in range(2)]
                return denoise_ddpm(denoiser, schedule, z, times, generators)
            if way == "inversion":
                return invert_ddim(denoiser, schedule, z, times)
            return {"ddim": denoise_ddim, "dpmpp": denoise_dpmpp_2m}[way](
                denoiser, schedule, z, times
            )

    expected = run(CPU)
    found = run(far)
    assert found.device.type == far.type
    same(found, expected)


def test_latent_mean(far):
    c, z0 = draw(60, 2), draw(60, 3, 2, 2, 2, seed=1)
    splined = torch.tensor([True, False])
    mean = fit_latent_mean(z0, c, torch.ones(60), splined)
    there = fit_latent_mean(z0.to(far), c.to(far), torch.ones(60).to(far), splined).to(far)
    assert not mean.knots[0].isnan().any()
    same(features(c.to(far), there.knots), features(c, mean.knots))
    r = mean.residual(z0, c)
    same(there.residual(z0.to(far), c.to(far)), r)
    same(there.latent(r.to(far), (c + 1).to(far), c.to(far)), mean.latent(r, c + 1, c))


@pytest.mark.parametrize(("sample", "guidance"), [(0, 1.0), (1, 2.0)])
def test_the_whole_edit(sample, guidance, far, tiny_bundle):
    """Image to image: the factual condition, a changed one and none at depth 0."""
    schema, image = tiny_bundle.schema, draw(1, 1, 80, 96, 88).abs()
    how = Edit(steps=2, fixed_point=1, guidance=guidance)

    def run(where):
        models = load_models(tiny_bundle, where)
        z0 = models.encode(image)
        c, target = (condition_of(schema, {"age": a, "sex": "F"}, where) for a in (50.0, 70.0))
        noise = sample_noise(z0.shape, 0, "a", sample, where)
        made = edit_latent(models, z0, c, [c, target], how, noise)
        latents = [z0, made.reconstruction, *made.counterfactuals, models.decode(z0)]
        assert all(v.device.type == where.type for v in latents)
        return latents, made.round_trip

    (expected, lost), (found, lost_there) = run(CPU), run(far)
    assert lost_there == pytest.approx(lost, rel=1e-3)
    for a, b in zip(found, expected, strict=True):
        same(a, b)


def test_fields_between_voxels(far):
    field, points = draw(3, 6, 7, 8), 3 * draw(4, 5, 3).abs()
    same(sample(field.to(far), points.to(far)), sample(field, points))
    same(smoothed(field[0].to(far), 1.0), smoothed(field[0], 1.0))
    same(exponential(field.to(far), 2.0), exponential(field, 2.0))


def test_what_reads_an_image(far, tiny_bundle):
    image = draw(80, 96, 88).abs().numpy()
    expected = predict_conditions(tiny_bundle, image, CPU)
    found = predict_conditions(tiny_bundle, image, far)
    assert found["age"] == pytest.approx(expected["age"], abs=0.2)
    assert found["sex"] == expected["sex"]

    nets = [Judge(JudgeConfig((16,) * 3, 1, (2,), channels=(8, 8, 8, 16))).eval() for _ in range(2)]
    images = draw(3, 16, 16, 16).abs().numpy()
    here = Judges(tuple(nets), TARGETS, CPU)
    expected = here.judge(images), here.embed(images), here.perceptual_distance(images, 1 - images)
    there = Judges(tuple(net.to(far) for net in nets), TARGETS, far)
    guesses, embedded, apart = expected
    for name, guess in there.judge(images).items():
        same(guess, guesses[name])
    same(there.embed(images), embedded)
    same(there.perceptual_distance(images, 1 - images), apart)

    resnet = dilated_resnet(10).eval()
    embedded = MedicalNet(resnet, "resnet", CPU).embed(images[0])
    same(MedicalNet(resnet.to(far), "resnet", far).embed(images[0]), embedded)


def test_segmenter(far):
    torch.manual_seed(0)
    net = Segmenter(SEGMENTER).eval()
    scan = Volume(draw(20, 22, 18).abs().numpy(), np.diag([2.0, 2, 2, 1]))
    expected = posteriors(net, scan, CPU)
    same(scaled(torch.from_numpy(scan.data).to(far)), scaled(torch.from_numpy(scan.data)))
    net.to(far)
    found = posteriors(net, scan, far)
    same(found.classes, expected.classes)
    same(found.left, expected.left)


def latent_diffusion(where):
    latents, c, w = draw(6, 2, 4, 6, 5, 4), draw(6, 2, seed=1), torch.ones(6)
    mean = fit_mean(latents, c, w, torch.tensor([True, False]), True)
    task = LatentDiffusionTask(LatentData(latents, c, w, latents[:, 0], c), mean, where, FIT)
    randomised(task.net)
    return task


def autoencoder(where):
    images = draw(3, 32, 32, 32).abs()
    return AutoencoderTask(
        images, torch.ones(3), images[:1], images[:1] > 0.1, where, FIT, AUTOENCODER
    )


def judge(where):
    targets = torch.stack([draw(4), torch.tensor([0.0, 1, 1, 0])], 1)
    data = JudgeData(draw(4, 32, 32, 32).abs(), targets, [])
    return JudgeTask(TARGETS, data, data, where, FIT)


def segmenter(where):
    sets = torch.randint(len(SETS), (24, 24, 24), generator=torch.Generator().manual_seed(0))
    sides = (sets % 3).to(torch.uint8)
    sets = sets.to(torch.uint8)
    maps = [LabelMap(sets, len(SETS), sets, sides, 2.0)]
    scans = [LabelledScan(draw(24, 24, 24).abs().half(), sets, sides, 2.0)]
    how = Synthesis(crop=(16, 16, 16))
    return SegmenterTask(maps, scans, scans, where, FIT, SEGMENTER, synthesis=how, gentle=how)


@pytest.mark.parametrize("make", [latent_diffusion, autoencoder, judge, segmenter])
def test_losses_their_gradients_and_reports(make, far, tmp_path):
    def run(where):
        task = make(where)
        # At the end every term of the loss is there.
        task.net.train()
        torch.manual_seed(0)
        loss, _ = task.loss(FIT.steps, torch.Generator().manual_seed(1))
        loss.backward()
        found = [p.grad.norm() for p in task.net.parameters() if p.grad is not None]
        critic = task.critic_loss(FIT.steps)
        assert (critic is None) == (task.critic is None)
        report = task.report(task.net.eval(), tmp_path / "picture.png")
        return torch.stack([loss.detach(), *found]).cpu(), report

    (expected, figures), (found, figures_there) = run(CPU), run(far)
    if make is autoencoder and far != DEVICE:
        # The noise of its latents is the device's own.
        assert found.isfinite().all()
        return
    same(found, expected)
    assert figures_there == pytest.approx(figures, rel=1e-2, nan_ok=True)


def test_what_training_does_beside_its_loss(far):
    images = draw(2, 32, 32, 32).abs()
    net = randomised(Autoencoder(AUTOENCODER))
    expected = encode_views(net, images, 3, CPU, 0)
    same(encode_views(net.to(far), images, 3, far, 0), expected)

    def shifted(where):
        task = segmenter(where)
        meet_volumes(task.net.eval(), task.scans, where, rounds=2)
        return task.net.conv_out.bias.detach()

    # A voxel more or less, of the four hundred of a class, moves its shift by 0.8 / 400.
    expected = shifted(CPU)
    assert (shifted(far).cpu() - expected).abs().max() < 0.01 < expected.abs().max()


def test_number_type_is_what_a_convolution_computes_in(monkeypatch, device):
    net = torch.nn.Conv3d(1, 1, 1).to(device)
    for fast in (True, False):
        monkeypatch.setattr(devices, "fast_bf16", lambda _, fast=fast: fast)
        with devices.autocast(device):
            made = net(torch.ones(1, 1, 2, 2, 2, device=device)).dtype
            with devices.no_autocast(device):
                plain = net(torch.ones(1, 1, 2, 2, 2, device=device)).dtype
        assert number_type(device) == {torch.bfloat16: "bf16", torch.float32: "fp32"}[made]
        assert plain == torch.float32


@pytest.mark.parametrize(("major", "fast"), [(7, False), (8, True), (9, True)])
def test_bf16_is_not_fast_where_it_is_emulated(monkeypatch, major, fast):
    """A V100 or T4 says that it supports bf16; it computes it many times slower than fp32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    devices.fast_bf16.cache_clear()
    assert devices.fast_bf16(torch.device("cuda", 0)) == fast
    devices.fast_bf16.cache_clear()


def test_tissue_moves(far):
    shape = (14, 12, 13)
    distance = (voxels(shape) - 6).square().sum(-1).sqrt()
    cavity, ball = distance < 6, (3 - distance).clamp(0, 1)
    maps = torch.stack([ball, (4.5 - distance).clamp(0, 1) * (1 - ball)]) * cavity
    fluid = (1 - maps.sum(0)) * cavity
    targets = maps.sum((1, 2, 3)).numpy() * [1.3, 0.95]

    def run(where):
        given = (maps.to(where), fluid.to(where), targets, cavity.to(where), 2.0)
        return [grow(*given).displacement]

    for a, b in zip(run(far), run(CPU), strict=True):
        same(a, b)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("auto").type == "cuda"
    for name in ("cuda:1", "mps:1", "meta", "gpu"):
        with pytest.raises(UsageError, match="--device"):
            pick_device(name)


def test_edits_of_the_command_and_of_the_protocol(far, tiny_bundle, monkeypatch):
    """What `counterfactual` and `evaluate` do with a prepared scan, but for its registration."""
    image = draw(80, 96, 88).abs().numpy()
    older = {"age": 70.0, "sex": "F"}
    how = Edit(steps=2, fixed_point=1)
    monkeypatch.setattr(axioms, "EDIT", how)

    def run(where):
        models = load_models(tiny_bundle, where)
        engine = SimpleNamespace(bundle=tiny_bundle, models=models, device=where)
        factual, _ = complete(tiny_bundle, image, where, Factual({"sex": "F"}, {}))
        opened = SimpleNamespace(prepared=SimpleNamespace(image=image))
        edited = edit_latents(engine, opened, factual.values, [older], Drawing(how, samples=2))
        made = [decoded(engine, e.counterfactuals[0]) for e in edited.latents]
        scan = SimpleNamespace(mask=image > 0.5)
        tools = SimpleNamespace(bundle=tiny_bundle)
        rebuilt, back = axioms._edited(
            tools, models, scan, image[None], older, [older, {**older, "age": 50.0}]
        )
        return factual.values["age"], [*made, rebuilt, *back]

    (age, expected), (age_there, found) = run(CPU), run(far)
    assert age_there == pytest.approx(age, abs=0.2)
    for a, b in zip(found, expected, strict=True):
        same(a, b)
