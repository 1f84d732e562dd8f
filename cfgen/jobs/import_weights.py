"""A bundle of networks that were trained with MONAI."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cfgen.bundle import Bundle, copy_bundle, net_config, new_bundle, read_bundle, write_part
from cfgen.causal.latent_mean import LatentMean
from cfgen.config import DEFAULT_GRID, GRIDS, Preprocess
from cfgen.data.conditions import Schema, default_schema
from cfgen.data.volume import file_sha256
from cfgen.diffusion.schedule import Schedule, ScheduleConfig
from cfgen.errors import BundleError, UsageError
from cfgen.jobs.monai_files import Network, read_arguments, read_state
from cfgen.nets.autoencoder import Autoencoder, AutoencoderConfig
from cfgen.nets.condition import token_width
from cfgen.nets.convert import autoencoder_from_monai, unet_from_monai
from cfgen.nets.infer import autoencoder_config, unet_config
from cfgen.nets.unet import UNet, UNetConfig
from cfgen.nets.untold import UNTOLD, Untold

log = logging.getLogger("cfgen")

Config = TypeVar("Config", AutoencoderConfig, UNetConfig)

# Parts that are of one latent space: those of another autoencoder are not kept.
OF_THE_LATENT = ("autoencoder", "latent_mean", "unet")
# Of many tensors that do not fit, this many are named.
NAMED = 3


@dataclass(frozen=True)
class Imported:
    """A network on its way into a bundle: weights in our names, float32."""

    path: Path
    weights: dict[str, Tensor]
    config: AutoencoderConfig | UNetConfig
    untold: Untold

    @property
    def origin(self) -> dict[str, Any]:
        """Where the weights are from, for bundle.json."""
        return {"imported": self.path.name, "imported_sha256": file_sha256(self.path)}


def import_weights(
    out: Path,
    autoencoder: Path | None,
    unet: Path | None,
    given: dict[str, Any],
    source: Path | None = None,
    grid: str | None = None,
    network_config: Path | None = None,
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle with the networks of checkpoints in MONAI's format.

    `given` are fields of `Untold`; they win over `network_config`, the MONAI arguments in a JSON
    or TOML file. With `source`, the parts of a bundle that are of no latent space are kept, and its
    autoencoder where none is imported. Raises UsageError for what contradicts itself or the
    tensors, BundleError for a checkpoint that cannot be read or that our networks cannot be.
    """
    _check_out(out, source, overwrite)
    files: dict[Network, Path] = {}
    if autoencoder is not None:
        files["autoencoder"] = autoencoder
    if unet is not None:
        files["unet"] = unet
    if not files:
        raise UsageError("import-weights", "neither --autoencoder nor --unet", "one or both")
    bundle = _start(out, source, grid, files)
    arguments_by_network = read_arguments(network_config, list(files))
    imported: dict[Network, Imported] = {}
    for network, path in files.items():
        state, file_untold = read_state(path, network)
        arguments = arguments_by_network[network]
        untold = replace(UNTOLD, **(file_untold | arguments.untold | given))
        if network == "autoencoder":
            imported[network] = _autoencoder(path, state, untold)
        else:
            imported[network] = _unet(path, state, untold)
        arguments.check(imported[network].config)
    _check_together(bundle, imported)
    for network, part in imported.items():
        log.info("%s: %s", network, described(part.config, part.untold))
    return _write(bundle, out, imported, about or {})


def _check_out(out: Path, source: Path | None, overwrite: bool) -> None:
    if source is not None and source.resolve() == out.resolve():
        raise UsageError("--out", f"{out} is the bundle itself", "another folder")
    if (out / "bundle.json").exists() and not overwrite:
        raise UsageError("--out", f"{out} is a bundle already", fix="use --overwrite to replace it")


def _start(
    out: Path, source: Path | None, grid: str | None, files: Mapping[Network, Path]
) -> Bundle:
    """The bundle without the imported parts, not yet on disk."""
    if source is None:
        name = grid or DEFAULT_GRID
        if name not in GRIDS:
            raise UsageError("--grid", f"'{name}'", " or ".join(GRIDS))
        return new_bundle(out, Preprocess(grid=name), default_schema(), {})
    bundle = read_bundle(source)
    if grid not in (None, bundle.preprocess.grid):
        raise UsageError("--grid", f"{grid}", f"{bundle.preprocess.grid}, the grid of {source}")
    left_out = [
        name
        for name in OF_THE_LATENT
        if name in bundle.parts and ("autoencoder" in files or name != "autoencoder")
    ]
    for name in left_out:
        if name not in files:
            log.info("%s: its %s is left out: it was fitted to what is replaced", source, name)
    return bundle.without(left_out)


def _autoencoder(path: Path, state: dict[str, Tensor], untold: Untold) -> Imported:
    weights = autoencoder_from_monai(state)
    with _naming(path, "AutoencoderKL"):
        config = autoencoder_config(weights, untold.norm_groups, untold.norm_eps)
    _check_groups(config.channels, untold.norm_groups)
    _check_fits(path, lambda: Autoencoder(config), weights)
    return Imported(path, weights, config, untold)


def _unet(path: Path, state: dict[str, Tensor], untold: Untold) -> Imported:
    weights = unet_from_monai(state)
    heads = untold.head_channels
    with _naming(path, "DiffusionModelUNet"):
        config = unet_config(
            weights, heads[0] if len(heads) == 1 else heads, untold.norm_groups, untold.norm_eps
        )
    _check_groups(config.channels, untold.norm_groups)
    _check_heads(config, heads)
    _check_fits(path, lambda: UNet(config), weights)
    if not untold.scale_factor > 0:
        raise UsageError("--scale-factor", f"{untold.scale_factor:g}", "a number above 0")
    if config.in_channels != config.out_channels:
        raise BundleError(
            path,
            f"takes {config.in_channels} channels and gives {config.out_channels}",
            "as many: conditions that are joined to the latent as channels are not supported",
        )
    _schedule(untold)
    return Imported(path, weights, config, untold)


@contextmanager
def _naming(path: Path, network: str) -> Iterator[None]:
    """Says of a network that ours cannot be which file it is in."""
    try:
        yield
    except KeyError as error:
        raise BundleError(path, f"lacks the tensor {error}", f"all of MONAI's {network}") from error
    except ValueError as error:
        raise BundleError(path, f"{error}", f"a {network} that cfgen's network can be") from error


def _check_groups(channels: tuple[int, ...], groups: int) -> None:
    if groups < 1 or any(width % groups for width in channels):
        widths = ", ".join(map(str, channels))
        raise UsageError(
            "--norm-groups (norm_num_groups)", f"{groups}", f"a divisor of the channels {widths}"
        )


def _check_heads(config: UNetConfig, heads: tuple[int, ...]) -> None:
    option, text = "--head-channels (num_head_channels)", ",".join(map(str, heads))
    levels = len(config.channels)
    if len(heads) not in (1, levels):
        raise UsageError(option, text, f"one number, or one for each of {levels} levels")
    each = heads * levels if len(heads) == 1 else heads
    # The middle has attention always, in the width of the last level.
    attended = [level for level in range(levels) if config.attention[level] or level == levels - 1]
    for level in attended:
        width = config.channels[level]
        if each[level] < 1 or width % each[level]:
            raise UsageError(option, text, f"a divisor of the {width} channels on level {level}")


def _check_fits(path: Path, make: Callable[[], nn.Module], weights: dict[str, Tensor]) -> None:
    """Every tensor of the network, and none beside, in its shape."""
    with torch.device("meta"):
        expected = make().state_dict()
    faults = [f"lacks {key}" for key in expected if key not in weights]
    faults += [f"has {key}" for key in weights if key not in expected]
    faults += [
        f"{key} is {tuple(weights[key].shape)} in place of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise BundleError(
            path,
            f"{len(faults)} tensors do not fit: {', '.join(faults[:NAMED])}{more}",
            "every tensor of one network of MONAI's, and no other",
            "save the network's state_dict() alone",
        )


def _check_together(bundle: Bundle, imported: Mapping[Network, Imported]) -> None:
    """The autoencoder, the UNet and the grid fit each other."""
    latent = None
    if "autoencoder" in imported:
        config = imported["autoencoder"].config
        assert isinstance(config, AutoencoderConfig)
        latent = config.latent_channels
        shape = GRIDS[bundle.preprocess.grid][0]
        if any(edge % config.factor for edge in shape):
            raise UsageError(
                "--grid",
                f"{bundle.preprocess.grid} has {' x '.join(map(str, shape))} voxels",
                f"multiples of {config.factor}, as this autoencoder needs",
            )
    elif "autoencoder" in bundle.parts:
        latent = bundle.part("autoencoder").config["net"]["latent_channels"]
    if "unet" in imported:
        unet = imported["unet"]
        assert isinstance(unet.config, UNetConfig)
        if latent not in (None, unet.config.in_channels):
            raise BundleError(
                unet.path,
                f"takes latents of {unet.config.in_channels} channels",
                f"{latent}, those of the autoencoder",
            )


def _schedule(untold: Untold) -> ScheduleConfig:
    """Raises UsageError for an unknown kind or prediction."""
    config = ScheduleConfig(
        untold.schedule,  # type: ignore[arg-type]
        untold.prediction,  # type: ignore[arg-type]
        untold.timesteps,
        untold.beta_start,
        untold.beta_end,
    )
    Schedule.make(config)
    return config


def described(config: AutoencoderConfig | UNetConfig, untold: Untold) -> str:
    """What was read off the tensors, and what had to be taken as said."""
    if isinstance(config, AutoencoderConfig):
        detail = f"middle attention {config.middle_attention}, latent {config.latent_channels}"
        training = ""
    else:
        schedule = _schedule(untold)
        detail = f"context {config.context_dim}"
        training = (
            f", {','.join(map(str, untold.head_channels))} channels a head, {schedule.kind} "
            f"schedule of {schedule.T} steps and beta {schedule.beta_start:g} to "
            f"{schedule.beta_end:g}, prediction of {schedule.prediction}, scale factor "
            f"{untold.scale_factor:g}"
        )
    return (
        f"channels {config.channels}, residual blocks {config.res_blocks}, attention "
        f"{config.attention}, {detail}, by the tensors; {config.norm_groups} norm groups, eps "
        f"{config.norm_eps:g}{training}, as said"
    )


def _write(
    bundle: Bundle, out: Path, imported: Mapping[Network, Imported], about: dict[str, Any]
) -> Bundle:
    names = ", ".join(part.path.name for part in imported.values())
    data = bundle.data | about | {"imported": names}
    if bundle.path != out:
        bundle = copy_bundle(bundle, out)
    bundle = replace(bundle, data=data)
    if "autoencoder" in imported:
        part = imported["autoencoder"]
        config = net_config(part.config)
        bundle = write_part(bundle, "autoencoder", part.weights, config, part.origin)
    if "unet" in imported:
        part = imported["unet"]
        assert isinstance(part.config, UNetConfig)
        variables = _inputs(bundle.schema)
        mean = plain_mean(variables, part.config.in_channels, part.untold.scale_factor)
        bundle = write_part(bundle, "latent_mean", mean.tensors(), {"conditional": False}, {})
        config = net_config(part.config) | {"schedule": asdict(_schedule(part.untold))}
        bundle = write_part(bundle, "unet", part.weights, config, part.origin)
        log.warning("%s", driven(part.config, variables))
    return bundle


def _inputs(schema: Schema) -> int:
    """Length of a condition vector."""
    return sum(variable.width for variable in schema.variables)


def plain_mean(variables: int, channels: int, scale_factor: float) -> LatentMean:
    """No mean: the residual is the latent times `scale_factor`, as latent diffusion is trained."""
    return LatentMean(
        torch.full((variables, 4), math.nan),
        torch.zeros(1 + variables, channels, 1, 1, 1),
        torch.full((channels, 1, 1, 1), 1 / scale_factor),
        torch.ones(1),
    )


def driven(config: UNetConfig, variables: int) -> str:
    """What the bundle's conditions mean to an imported UNet, which never saw them."""
    width = token_width(variables)
    trains = "'cfgen train-ldm' trains a UNet on them, in the latent of this autoencoder"
    if config.context_dim is None:
        return f"the UNet takes no conditions: counterfactuals of it change nothing; {trains}"
    if config.context_dim != width:
        return (
            f"the UNet's context is {config.context_dim} wide and this bundle's condition tokens "
            f"{width}: 'cfgen counterfactual' cannot drive it; {trains}"
        )
    return (
        f"the UNet's context is {width} wide, as this bundle's condition tokens are: it answers to "
        f"them only if it learned from the like; else, {trains}"
    )
