"""What MONAI writes: checkpoints of its networks, and configurations with its arguments."""

from __future__ import annotations

import json
import logging
import pickle
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cfgen.errors import BundleError, UsageError
from cfgen.nets.autoencoder import AutoencoderConfig
from cfgen.nets.unet import UNetConfig

log = logging.getLogger("cfgen")

Network = Literal["autoencoder", "unet"]

CLASSES = {"autoencoder": "AutoencoderKL", "unet": "DiffusionModelUNet"}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")

PICKLED = (".pt", ".pth", ".ckpt")
# Under these a checkpoint keeps its state dict, a network's own first.
WRAPPERS = {
    "autoencoder": ("autoencoder_state_dict", "autoencoder", "vae"),
    "unet": ("unet_state_dict", "diffusion_state_dict", "unet", "diffusion"),
}
WRAPPERS_OF_ANY = ("state_dict", "model_state_dict", "model", "network", "net")
# A tensor that each network has; what stands before its name is a prefix of all.
FIRST = {"autoencoder": "encoder.blocks.0.conv.weight", "unet": "conv_in.conv.weight"}


def read_state(path: Path, network: Network) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a network, float32, in MONAI's names without prefix; and what the file
    says beside: `scale_factor`, if it does.

    Raises UsageError for another kind of file, BundleError for one that is missing, damaged, holds
    Python objects or no such network.
    """
    content, extras = _read(path), {}
    while True:
        scale = content.get("scale_factor")
        if isinstance(scale, float | int) or (isinstance(scale, Tensor) and scale.numel() == 1):
            extras["scale_factor"] = float(scale)
        wrappers = (*WRAPPERS[network], *WRAPPERS_OF_ANY)
        name = next((n for n in wrappers if isinstance(content.get(n), Mapping)), None)
        if name is None:
            break
        log.info("%s: taken from '%s'", path, name)
        content = content[name]
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    prefix = _prefix(path, state, network, list(content))
    weights = {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}
    if prefix:
        more = f", {len(state) - len(weights)} tensors without it left out"
        log.info("%s: prefix '%s'%s", path, prefix, more if len(weights) < len(state) else "")
    return weights, extras


def _prefix(path: Path, state: Mapping[str, Tensor], network: Network, names: list[Any]) -> str:
    first = FIRST[network]
    prefixes = [k.removesuffix(first) for k in state if f".{k}".endswith(f".{first}")]
    if "" in prefixes:
        return ""
    if len(prefixes) == 1:
        return prefixes[0]
    expected = f"the state dict of one {CLASSES[network]} of MONAI's, with '{first}'"
    if prefixes:
        raise BundleError(path, f"holds several: {', '.join(prefixes)}", expected)
    keys = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
    raise BundleError(path, f"holds no such network, but {keys or 'nothing'}", expected)


def _read(path: Path) -> Mapping[Any, Any]:
    if path.suffix not in (".safetensors", *PICKLED):
        raise UsageError(path, f"'{path.suffix}' file", f".safetensors, {', '.join(PICKLED)}")
    if not path.is_file():
        raise BundleError(path, "is missing", "a checkpoint")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    if not isinstance(content, Mapping):
        raise BundleError(path, f"holds a {type(content).__name__}", "a state dict", SAVE)
    return content


SAVE = "save its state_dict() with safetensors.torch.save_file"


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(path, f"is damaged ({_line(error)})", "safetensors", COPY) from error


COPY = "copy or download it again"


def _read_pickled(path: Path) -> object:
    """Tensors and plain containers alone: whatever else a pickle holds could run code."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged archives raise what they like: RuntimeError, EOFError, UnicodeDecodeError, ...
    except Exception as error:
        objects = re.search(r"GLOBAL (\S+)|(TorchScript archive)", str(error))
        if objects:
            problem = f"holds more than tensors ({objects[1] or objects[2]}) and is not opened"
            raise BundleError(path, problem, "a state dict", SAVE) from error
        reason = "no pickle" if isinstance(error, pickle.UnpicklingError) else _line(error)
        raise BundleError(path, f"cannot be read ({reason})", "a checkpoint", COPY) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Arguments without effect on what a network gives.
_ANY: Any = object()
_NO_EFFECT = dict.fromkeys(
    (
        "use_flash_attention",
        "use_checkpoint",
        "use_checkpointing",
        "use_combined_linear",
        "upcast_attention",
        "dropout_cattn",
        "norm_num_groups",
        "norm_eps",
        "num_head_channels",
    ),
    _ANY,
)


@dataclass(frozen=True)
class Arguments:
    """A network's arguments in MONAI's words, and the fields of `Untold` that they set."""

    where: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    untold: dict[str, Any] = field(default_factory=dict)

    def check(self, config: AutoencoderConfig | UNetConfig) -> None:
        """Raises UsageError for an argument that the tensors contradict, or that is unknown."""
        facts = _facts(config)
        for name, value in self.network.items():
            if name.startswith("_"):
                continue
            if name not in facts:
                near = get_close_matches(name, facts, 1)
                fix = f"did you mean '{near[0]}'?" if near else ""
                raise UsageError(f"{self.where}: {name}", "unknown argument", "MONAI's", fix)
            fact = facts[name]
            each = (value,) * len(fact) if isinstance(fact, tuple) and _plain(value) else value
            if fact is not _ANY and (tuple(each) if isinstance(each, list) else each) != fact:
                expected = list(fact) if isinstance(fact, tuple) else fact
                raise UsageError(
                    f"{self.where}: {name}",
                    f"{value}",
                    f"{expected}: what the tensors show and cfgen can",
                )


def _plain(value: object) -> bool:
    return not isinstance(value, list | tuple)


def _facts(config: AutoencoderConfig | UNetConfig) -> dict[str, Any]:
    """MONAI's arguments as the tensors show them, or as cfgen's networks need them."""
    common = {
        "spatial_dims": 3,
        "channels": config.channels,
        "num_channels": config.channels,
        "num_res_blocks": config.res_blocks,
        "attention_levels": config.attention,
        "include_fc": True,
    }
    if isinstance(config, AutoencoderConfig):
        return (
            _NO_EFFECT
            | common
            | {
                "in_channels": 1,
                "out_channels": 1,
                "latent_channels": config.latent_channels,
                "with_encoder_nonlocal_attn": config.middle_attention,
                "with_decoder_nonlocal_attn": config.middle_attention,
                "use_convtranspose": False,
            }
        )
    conditional = config.context_dim is not None
    return (
        _NO_EFFECT
        | common
        | {
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "num_res_blocks": (config.res_blocks,) * len(config.channels),
            "resblock_updown": False,
            "with_conditioning": conditional,
            "cross_attention_dim": config.context_dim,
            "transformer_num_layers": config.transformer_layers if conditional else _ANY,
            "num_class_embeds": None,
        }
    )


def read_arguments(path: Path | None, networks: Sequence[Network]) -> dict[Network, Arguments]:
    """The arguments of each network in a JSON or TOML file.

    They stand under 'autoencoder', 'unet' and 'scheduler', or anywhere with MONAI's '_target_', or
    alone where one network is imported. Raises UsageError.
    """
    if path is None:
        return {network: Arguments() for network in networks}
    root = _read_config(path)
    sections = {name: _section(root, name, (CLASSES[name],), path) for name in networks}
    if not any(sections.values()):
        if len(networks) > 1:
            raise UsageError(path, "says nothing of either network", "'autoencoder' and 'unet'")
        sections = {networks[0]: _resolved(root, root, path)}
    scheduler = _section(root, "scheduler", SCHEDULERS, path)
    arguments = {}
    for name in networks:
        untold = _untold(sections[name], path)
        if name == "unet":
            untold |= _untold_schedule(scheduler, path)
        arguments[name] = Arguments(str(path), sections[name], untold)
    return arguments


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        root = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(path, f"cannot be read ({_line(error)})", "JSON or TOML") from error
    if not isinstance(root, dict):
        raise UsageError(path, "is no JSON object", "MONAI's arguments by name")
    return root


def _section(root: dict[str, Any], name: str, classes: Sequence[str], path: Path) -> dict[str, Any]:
    blocks = [b for b in _blocks(root) if str(b.get("_target_", "")).split(".")[-1] in classes]
    if isinstance(root.get(name), dict) and root[name] not in blocks:
        blocks.insert(0, root[name])
    return _resolved(blocks[0], root, path) if blocks else {}


def _blocks(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _blocks(part)


def _resolved(block: Mapping[str, Any], root: Mapping[str, Any], path: Path) -> dict[str, Any]:
    return {name: _value(value, root, f"{path}: {name}") for name, value in block.items()}


def _value(value: Any, root: Mapping[str, Any], where: str, depth: int = 0) -> Any:
    """A value with MONAI's references ('@name', '@name::part') followed."""
    if isinstance(value, list):
        return [_value(part, root, where, depth) for part in value]
    if not isinstance(value, str) or value[:1] not in ("@", "$"):
        return value
    target: Any = root
    try:
        if value[0] == "$" or depth > len(root):
            raise KeyError(value)
        for part in re.split("::|#", value[1:]):
            target = target[int(part) if isinstance(target, list) else part]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UsageError(where, f"'{value}'", "a value, or '@' and the name of one") from error
    return _value(target, root, where, depth + 1)


def _untold(arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    untold: dict[str, Any] = {}
    if "norm_num_groups" in arguments:
        untold["norm_groups"] = _whole(arguments, "norm_num_groups", path)
    if "norm_eps" in arguments:
        untold["norm_eps"] = _number(arguments, "norm_eps", path)
    heads = arguments.get("num_head_channels", [])
    each = heads if isinstance(heads, list) else [heads]
    if each:
        name = "num_head_channels"
        untold["head_channels"] = tuple(_whole({name: n}, name, path) for n in each)
    return untold


def _untold_schedule(scheduler: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """MONAI's schedulers have defaults of their own, which hold where the file is silent."""
    if not scheduler:
        return {}
    settings = {
        "num_train_timesteps": 1000,
        "schedule": "linear_beta",
        "prediction_type": "epsilon",
        "beta_start": 1e-4,
        "beta_end": 2e-2,
    } | dict(scheduler)
    prediction = str(settings["prediction_type"])
    return {
        "timesteps": _whole(settings, "num_train_timesteps", path),
        "schedule": str(settings["schedule"]).removesuffix("_beta"),
        "prediction": {"epsilon": "eps", "v_prediction": "v"}.get(prediction, prediction),
        "beta_start": _number(settings, "beta_start", path),
        "beta_end": _number(settings, "beta_end", path),
    }


def _whole(arguments: Mapping[str, Any], name: str, path: Path) -> int:
    number = _number(arguments, name, path)
    if number != int(number):
        raise UsageError(f"{path}: {name}", f"{number}", "a whole number")
    return int(number)


def _number(arguments: Mapping[str, Any], name: str, path: Path) -> float:
    value = arguments[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{path}: {name}", f"{value}", "a number")
    return value
