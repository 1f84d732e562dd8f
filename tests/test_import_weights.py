"""Networks of MONAI's, saved, imported by the command and loaded again, give what MONAI's give."""

from __future__ import annotations

import json
import re
from argparse import Namespace

import pytest
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from safetensors.torch import save_file

from cfgen.bundle import read_bundle
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import Edit
from cfgen.edit.latent import edit_latent, load_models
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.condition import Condition
from cfgen.nets.unet import UNet, UNetConfig

CPU = torch.device("cpu")


def randomised(net):
    """Weights that are nowhere zero, so that every path counts."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return net.eval()


def autoencoder_kl(**changed):
    arguments = {
        "spatial_dims": 3,
        "num_res_blocks": (1, 2, 1),
        "channels": (8, 16, 16),
        "attention_levels": (False,) * 3,
        "latent_channels": 3,
        "norm_num_groups": 8,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }
    return randomised(AutoencoderKL(**(arguments | changed)))


def diffusion_unet(**changed):
    arguments = {
        "spatial_dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "num_res_blocks": 1,
        "channels": (8, 16),
        "attention_levels": (False, True),
        "norm_num_groups": 8,
        "num_head_channels": 8,
    }
    return randomised(DiffusionModelUNet(**(arguments | changed)))


def saved(net, path):
    state = net.state_dict() if isinstance(net, torch.nn.Module) else net
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def assert_one_line(err, said):
    assert err.count("\n") == 1, err
    assert re.search(said, err), err


def relative(a, b):
    return float((a - b).norm() / b.norm())


def assert_same_autoencoder(bundle, theirs):
    ours = read_bundle(bundle).network("autoencoder", Autoencoder, AutoencoderConfig, CPU)
    x = torch.rand(1, 1, 8, 16, 8)
    with torch.no_grad():
        mean, sigma = theirs.encode(x)
        found, found_sigma = ours.posterior(x)
        assert relative(found, mean) < 1e-5
        assert relative(found_sigma, sigma) < 1e-5
        assert relative(ours.decode(mean), theirs.decode(mean)) < 1e-5


def assert_same_unet(bundle, theirs, context_dim):
    ours = read_bundle(bundle).network("unet", UNet, UNetConfig, CPU)
    zt, t = torch.randn(2, 3, 8, 4, 8), torch.tensor([0, 731])
    context = None if context_dim is None else torch.randn(2, 3, context_dim)
    with torch.no_grad():
        assert relative(ours(zt, t, context), theirs(zt, t, context)) < 1e-5


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attention_levels": (False, True, True), "num_res_blocks": (2, 1, 1)},
        {"with_encoder_nonlocal_attn": True, "with_decoder_nonlocal_attn": True},
        {
            "attention_levels": (False, False, True),
            "with_encoder_nonlocal_attn": True,
            "with_decoder_nonlocal_attn": True,
            "num_res_blocks": 1,
        },
        {"channels": (32, 64), "attention_levels": (False, True), "num_res_blocks": 2}
        | {"norm_num_groups": 32, "latent_channels": 4},
        {"attention_levels": (False, False, True), "use_combined_linear": True},
    ],
)
def test_an_autoencoder_is_read_off_its_tensors(cfgen, tmp_path, changed, suffix):
    theirs = autoencoder_kl(**changed)
    file = saved(theirs, tmp_path / f"ae.{suffix}")
    groups = changed.get("norm_num_groups", 8)
    out = tmp_path / "bundle"
    code, said, err = cfgen(
        "import-weights", "--autoencoder", file, "--out", out, "--norm-groups", groups
    )
    assert (code, said) == (0, f"{out}\n"), err
    assert_same_autoencoder(out, theirs)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("context_dim", [None, 4, 7])
@pytest.mark.parametrize(
    "changed",
    [
        {"num_head_channels": 4},
        {"channels": (16, 32, 32), "norm_num_groups": 16, "num_res_blocks": 2}
        | {"attention_levels": (False, True, True), "num_head_channels": (0, 8, 32)},
        {"attention_levels": (False, False)},
        {"attention_levels": (True, True), "use_combined_linear": True},
    ],
)
def test_a_unet_is_read_off_its_tensors(cfgen, tmp_path, changed, context_dim, suffix):
    layers = 2 if context_dim == 7 else 1
    theirs = diffusion_unet(
        **changed,
        with_conditioning=context_dim is not None,
        cross_attention_dim=context_dim,
        transformer_num_layers=layers,
    )
    file = saved(theirs, tmp_path / f"unet.{suffix}")
    heads = changed.get("num_head_channels", 8)
    out = tmp_path / "bundle"
    code, _, err = cfgen(
        *("import-weights", "--unet", file, "--out", out),
        *("--norm-groups", changed.get("norm_num_groups", 8)),
        *("--head-channels", heads if isinstance(heads, int) else ",".join(map(str, heads))),
    )
    assert code == 0, err
    assert_same_unet(out, theirs, context_dim)
    expected = {None: "takes no conditions", 4: "only if it learned", 7: "cannot drive it"}
    assert expected[context_dim] in err


def in_older_names(state):
    """As MONAI Generative called them (MONAI's load_old_state_dict has the pairs)."""
    older = {}
    for key, value in state.items():
        name = key.replace("postconv.", "conv.")
        if "transformer_blocks" in name:
            name = name.replace(".out_proj.", ".to_out.0.")
        else:
            name = name.replace(".attn.", ".").replace(".out_proj.", ".proj_attn.")
        older[name] = value
    return older


def test_names_of_monai_generative_are_read_as_monai_reads_them(cfgen, tmp_path):
    theirs = autoencoder_kl(
        attention_levels=(False, False, True),
        with_encoder_nonlocal_attn=True,
        with_decoder_nonlocal_attn=True,
    )
    for context_dim in (None, 5):
        unet = diffusion_unet(
            with_conditioning=context_dim is not None, cross_attention_dim=context_dim
        )
        for net in (theirs, unet):
            older = in_older_names(net.state_dict())
            assert older.keys() != net.state_dict().keys()
            kept = {k: v.clone() for k, v in net.state_dict().items()}
            randomised(net).load_old_state_dict(dict(older))
            assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
        out = tmp_path / f"bundle-{context_dim}"
        code, _, err = cfgen(
            *("import-weights", "--out", out, "--norm-groups", 8),
            *("--autoencoder", saved(in_older_names(theirs.state_dict()), tmp_path / "ae.pt")),
            *("--unet", saved(in_older_names(unet.state_dict()), tmp_path / "unet.pt")),
        )
        assert code == 0, err
        assert_same_autoencoder(out, theirs)
        assert_same_unet(out, unet, context_dim)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: {"epoch": 3, "state_dict": state}, "'state_dict'"),
        (lambda state: {"model": {f"module.{k}": v for k, v in state.items()}}, "'module.'"),
        (lambda state: {"autoencoder_state_dict": state, "unet_state_dict": {}}, "'autoencoder_"),
        (
            lambda state: (
                {f"autoencoder.{k}": v for k, v in state.items()} | {"critic.w": torch.ones(1)}
            ),
            "1 tensors without it left out",
        ),
    ],
)
def test_wrappings_are_taken_off_and_said(cfgen, tmp_path, wrap, said):
    theirs = autoencoder_kl()
    file = saved(wrap(theirs.state_dict()), tmp_path / "ae.ckpt")
    out = tmp_path / "bundle"
    code, _, err = cfgen("import-weights", "--autoencoder", file, "--out", out, "--norm-groups", 8)
    assert code == 0, err
    assert said in err
    assert_same_autoencoder(out, theirs)


def test_both_parts_make_a_model_with_the_latent_scaled_for_the_unet(cfgen, tmp_path):
    out = tmp_path / "bundle"
    unet = {"scale_factor": torch.tensor(4.0), "unet_state_dict": diffusion_unet().state_dict()}
    arguments = (
        *("import-weights", "--out", out, "--norm-groups", 8, "--grid", "cdm-1mm"),
        *("--autoencoder", saved(autoencoder_kl(), tmp_path / "ae.safetensors")),
        *("--unet", saved(unet, tmp_path / "unet.pt"), "--prediction", "v"),
        *("--schedule", "linear", "--beta-end", 0.02, "--timesteps", 500),
    )
    assert cfgen(*arguments)[0] == 0
    bundle = read_bundle(out)
    models = load_models(bundle, CPU)
    assert (models.schedule.T, models.schedule.prediction) == (500, "v")
    assert bundle.part("unet").config["schedule"]["beta_end"] == 0.02
    z0, c = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 2)
    assert torch.allclose(models.latent_mean.residual(z0, c), 4 * z0)
    assert torch.allclose(models.latent_mean.latent(4 * z0, -c, c), z0)
    # As the command says of a UNet without conditions.
    own, other = Condition(c[:1]), Condition(c[1:])
    edit = edit_latent(models, z0[:1], own, [other], Edit(steps=2))
    assert torch.equal(edit.counterfactuals[0], edit.reconstruction)
    code, said, _ = cfgen("info", out)
    assert code == 0
    assert "autoencoder: 0." in said
    assert "grid cdm-1mm" in said
    assert "years, range in training unknown" in said
    code, _, err = cfgen(*arguments)
    assert code == 2
    assert "--overwrite" in err
    assert cfgen(*arguments, "--overwrite", "--scale-factor", 2)[0] == 0
    sigma = LatentMean.from_tensors(read_bundle(out).tensors("latent_mean")).sigma
    assert torch.equal(sigma, torch.full((3, 1, 1, 1), 0.5))


def test_parts_are_added_to_a_bundle_that_keeps_what_still_fits(cfgen, tmp_path, segmenter_bundle):
    source, out = segmenter_bundle.path, tmp_path / "bundle"
    file = saved(autoencoder_kl(), tmp_path / "ae.pt")
    common = ("import-weights", "--bundle", source, "--norm-groups", 8)
    assert cfgen(*common, "--autoencoder", file, "--out", out)[0] == 0
    bundle = read_bundle(out)
    assert bundle.parts.keys() == {"autoencoder", "predictor", "segmenter"}
    assert bundle.schema == segmenter_bundle.schema
    assert bundle.parts["segmenter"].sha256 == segmenter_bundle.parts["segmenter"].sha256
    # The small bundle's latents have 8 channels.
    unet = saved(diffusion_unet(), tmp_path / "unet.pt")
    code, _, err = cfgen(*common, "--unet", unet, "--out", tmp_path / "other")
    assert code == 4
    assert "takes latents of 3 channels; expected 8" in err
    assert not (tmp_path / "other").exists()
    unet = saved(diffusion_unet(in_channels=8, out_channels=8), tmp_path / "unet.pt")
    assert cfgen(*common, "--unet", unet, "--out", tmp_path / "other")[0] == 0
    bundle = read_bundle(tmp_path / "other")
    assert bundle.parts["autoencoder"].sha256 == segmenter_bundle.parts["autoencoder"].sha256
    assert bundle.part("latent_mean").config == {"conditional": False}
    code, _, err = cfgen(*common, "--unet", unet, "--out", source)
    assert code == 2
    assert "the bundle itself" in err


MONAI_BUNDLE = {
    "latent": 3,
    "groups": {"norm": 4},
    "autoencoder_def": {
        "_target_": "monai.networks.nets.AutoencoderKL",
        "spatial_dims": 3,
        "latent_channels": "@latent",
        "num_channels": [8, 16, 16],
        "norm_num_groups": "@groups::norm",
        "norm_eps": 1e-4,
        "use_checkpointing": True,
    },
    "network_def": {
        "_target_": "generative.networks.nets.DiffusionModelUNet",
        "num_res_blocks": 1,
        "attention_levels": [False, True],
        "norm_num_groups": 8,
        "num_head_channels": [0, 4],
        "resblock_updown": False,
    },
    "steps": [{"_target_": "monai.networks.schedulers.DDPMScheduler", "beta_end": 0.03}],
}
TABLES = """
[autoencoder]
norm_num_groups = 4
norm_eps = 1e-4
[unet]
norm_num_groups = 8
num_head_channels = [0, 4]
[scheduler]
beta_end = 0.03
"""


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", json.dumps(MONAI_BUNDLE)), ("a.toml", TABLES)]
)
def test_what_tensors_do_not_tell_comes_from_monais_arguments(cfgen, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    autoencoder = autoencoder_kl(norm_num_groups=4, norm_eps=1e-4)
    unet = diffusion_unet(num_head_channels=4)
    out = tmp_path / "bundle"
    code, _, err = cfgen(
        *("import-weights", "--out", out, "--network-config", tmp_path / name),
        *("--autoencoder", saved(autoencoder, tmp_path / "ae.safetensors")),
        *("--unet", saved(unet, tmp_path / "unet.safetensors")),
    )
    assert code == 0, err
    assert_same_autoencoder(out, autoencoder)
    assert_same_unet(out, unet, None)
    schedule = read_bundle(out).part("unet").config["schedule"]
    # MONAI's scheduler counts betas evenly, from 1e-4, where its arguments are silent.
    assert (schedule["kind"], schedule["beta_start"], schedule["beta_end"]) == (
        "linear",
        1e-4,
        0.03,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"resblock_updown": True}, "resblock_updown: True; expected False"),
        ({"num_channels": [8, 32]}, r"num_channels: \[8, 32\]; expected \[8, 16\]"),
        ({"spatial_dims": 2}, "spatial_dims: 2; expected 3"),
        ({"num_res_block": 1}, "did you mean 'num_res_blocks'"),
        ({"norm_num_groups": "$1 + 1"}, r"norm_num_groups: '\$1 \+ 1'"),
        ({"norm_num_groups": "@norm_num_groups"}, "norm_num_groups: '@norm_num_groups'"),
        ({"norm_num_groups": 2.5}, "norm_num_groups: 2.5; expected a whole number"),
        ({"num_head_channels": "many"}, "num_head_channels: many; expected a number"),
        ([], "is no JSON object"),
    ],
)
def test_arguments_that_the_tensors_contradict(cfgen, tmp_path, arguments, said):
    (tmp_path / "a.json").write_text(json.dumps(arguments))
    code, _, err = cfgen(
        *("import-weights", "--out", tmp_path / "out", "--network-config", tmp_path / "a.json"),
        *("--unet", saved(diffusion_unet(), tmp_path / "unet.pt"), "--norm-groups", 8),
    )
    assert code == 2
    assert_one_line(err, said)


def truncated(net, path):
    saved(net, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


FIRST = "encoder.blocks.0.conv.weight"


def scripted(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    return path


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda p: saved({"state_dict": {}, "args": Namespace()}, p / "a.pt"),
            "argparse.Namespace",
        ),
        (lambda p: truncated(autoencoder_kl(), p / "a.pt"), "a.pt: cannot be read"),
        (lambda p: truncated(autoencoder_kl(), p / "a.safetensors"), "is damaged"),
        (lambda p: scripted(p / "a.pt"), "TorchScript"),
        (lambda p: saved({FIRST: torch.zeros(8, 1, 3, 3, 3)}, p / "a.pt"), "lacks the tensor"),
        (lambda p: p / "a.pt", "is missing"),
        (lambda p: saved({"w": torch.ones(1)}, p / "a.pt"), "holds no such network, but w"),
        (lambda p: saved([torch.ones(1)], p / "a.pt"), "holds a list"),
        (
            lambda p: saved(
                {f"{n}.{k}": v for n in "ab" for k, v in autoencoder_kl().state_dict().items()},
                p / "a.pt",
            ),
            r"holds several: a\., b\.",
        ),
        (lambda p: saved(autoencoder_kl(spatial_dims=2), p / "a.pt"), "2D images"),
        (lambda p: saved(autoencoder_kl(in_channels=2), p / "a.pt"), "2 channels in and 1 out"),
        (lambda p: saved(autoencoder_kl(use_convtranspose=True), p / "a.pt"), "use_convtranspose"),
        (
            lambda p: saved(
                autoencoder_kl(attention_levels=(False, False, True), include_fc=False), p / "a.pt"
            ),
            "include_fc=False",
        ),
        (
            lambda p: saved(autoencoder_kl(with_decoder_nonlocal_attn=True), p / "a.pt"),
            "with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=True",
        ),
        (
            lambda p: saved(autoencoder_kl().state_dict() | {"odd.w": torch.ones(1)}, p / "a.pt"),
            "1 tensors do not fit: has odd.w",
        ),
        (
            lambda p: saved(
                without(autoencoder_kl().state_dict(), "quant_conv_mu.conv.bias"), p / "a.pt"
            ),
            r"lacks quant_conv_mu\.bias",
        ),
        (
            lambda p: saved(
                autoencoder_kl().state_dict() | {"quant_conv_mu.conv.bias": torch.ones(2)},
                p / "a.pt",
            ),
            r"quant_conv_mu\.bias is \(2,\) in place of \(3,\)",
        ),
    ],
)
def test_autoencoders_that_are_refused(cfgen, tmp_path, make, said):
    out = tmp_path / "out"
    code, _, err = cfgen(
        "import-weights", "--autoencoder", make(tmp_path), "--out", out, "--norm-groups", 8
    )
    assert code == 4
    assert_one_line(err, said)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"spatial_dims": 2}, "2D images"),
        ({"resblock_updown": True}, "resblock_updown=True"),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
        ({"num_res_blocks": (1, 2)}, r"num_res_blocks=\[1, 2\]"),
        ({"include_fc": False}, "include_fc=False"),
        ({"in_channels": 7}, "takes 7 channels and gives 3"),
    ],
)
def test_unets_that_are_refused(cfgen, tmp_path, changed, said):
    file = saved(diffusion_unet(**changed), tmp_path / "unet.safetensors")
    code, _, err = cfgen(
        "import-weights", "--unet", file, "--out", tmp_path / "out", "--norm-groups", 8
    )
    assert code == 4
    assert_one_line(err, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--norm-groups", 32), "--norm-groups .*: 32; expected a divisor of the channels 8, 16"),
        (("--head-channels", 12), "--head-channels .*: 12; expected a divisor of the 16 channels"),
        (("--head-channels", "8,8,8"), "one for each of 2 levels"),
        (("--head-channels", "x"), "'x'"),
        (("--schedule", "sigmoid"), "kind 'sigmoid'"),
        (("--prediction", "sample"), "prediction 'sample'"),
        (("--scale-factor", 0), "--scale-factor: 0"),
        (("--grid", "3mm"), "--grid: '3mm'"),
    ],
)
def test_options_that_cannot_be(cfgen, tmp_path, options, said):
    file = saved(diffusion_unet(), tmp_path / "unet.safetensors")
    common = ("import-weights", "--unet", file, "--out", tmp_path / "out", "--norm-groups", 8)
    code, _, err = cfgen(*common, *options)
    assert code == 2
    assert_one_line(err, said)


def test_nothing_to_import_and_a_grid_that_does_not_halve(cfgen, tmp_path):
    code, _, err = cfgen("import-weights", "--out", tmp_path / "out")
    assert code == 2
    assert_one_line(err, "neither --autoencoder nor --unet")
    deep = autoencoder_kl(channels=(8,) * 5, num_res_blocks=1, attention_levels=(False,) * 5)
    file = saved(deep, tmp_path / "ae.pt")
    code, _, err = cfgen(
        "import-weights", "--autoencoder", file, "--out", tmp_path / "out", "--norm-groups", 8
    )
    assert code == 2
    assert_one_line(err, "80 x 96 x 88 voxels; expected multiples of 16")
