"""MedicalNet's 3D ResNets (Chen et al. 2019) as feature extractors, from weights on this machine.

    https://github.com/Tencent/MedicalNet (MIT)

MONAI builds the network; MedicalNet's has dilated instead of strided convolutions in its last two
stages, which is put back. Images are brought to its input as its own code does for brains: the
brain's voxels to mean 0 and SD 1, and noise of the same spread around it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cfgen.errors import BundleError

# Depth -> width of the features.
WIDTHS = {10: 512, 50: 2048, 101: 2048}


@dataclass(frozen=True)
class MedicalNet:
    """`name` says depth and weights, for the tables."""

    net: nn.Module
    name: str
    device: torch.device

    @staticmethod
    def load(path: Path, device: torch.device) -> MedicalNet:
        """From resnet_10.pth, resnet_50_23dataset.pth, ... Raises BundleError."""
        depth = re.search(r"resnet_?(\d+)", path.name.lower())
        if not path.is_file() or depth is None or int(depth[1]) not in WIDTHS:
            raise BundleError(
                path,
                "is no file of MedicalNet weights" if path.exists() else "no such file",
                "resnet_10.pth, resnet_50.pth or resnet_101.pth of Tencent/MedicalNet",
            )
        raw = path.read_bytes()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = {k.removeprefix("module."): v for k, v in state["state_dict"].items()}
            net = dilated_resnet(int(depth[1]))
            net.load_state_dict({k: v for k, v in state.items() if not k.startswith("conv_seg")})
        except Exception as error:
            raise BundleError(
                path,
                f"does not hold the weights of a ResNet-{depth[1]} "
                f"({str(error).splitlines()[0][:200]})",
                "a .pth file of Tencent/MedicalNet",
            ) from error
        digest = hashlib.sha256(raw).hexdigest()[:12]
        return MedicalNet(
            net.to(device).eval(), f"MedicalNet ResNet-{depth[1]}, SHA-256 {digest}", device
        )

    @torch.inference_mode()
    def embed(self, image: np.ndarray) -> np.ndarray:
        """Features (512 or 2048,) of an image (D, H, W) that is zero outside the brain."""
        x = torch.from_numpy(normalised(image.astype(np.float32)))[None, None]
        out: Tensor = self.net(x.to(self.device))
        return out[0].float().cpu().numpy()


def normalised(image: np.ndarray) -> np.ndarray:
    """Brain voxels to mean 0 and SD 1; outside, noise from N(0, 1), the same for every image."""
    inside = image > 0
    values = image[inside]
    noise = np.random.default_rng(0).normal(size=image.shape)
    return np.where(inside, (image - values.mean()) / (values.std() + 1e-8), noise).astype(
        np.float32
    )


def dilated_resnet(depth: int) -> nn.Module:
    """MONAI's ResNet of a depth, with stride 1 and dilation 2 and 4 in its last two stages, and
    global average pooling in place of the classifier."""
    from monai.networks.nets import resnet10, resnet50, resnet101

    make = {10: resnet10, 50: resnet50, 101: resnet101}[depth]
    net: nn.Module = make(
        pretrained=False,
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
    )
    for stage, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for module in stage.modules():  # type: ignore[union-attr]
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3
    return net
