"""Networks of the autoregressive baseline of benchmarks/cycle.py: a tokeniser and a transformer.

The tokeniser is MONAI's VQVAE (van den Oord et al. 2017). MONAI's transformer keeps no keys and
values while it samples, and takes conditions as tokens of the vocabulary; this one keeps them, and
a condition is a vector, so that age stays a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cycle_brains import raw, standard
from torch import Tensor, nn

from cfgen.device import no_autocast

CPU = torch.device("cpu")
LEVELS = 3
# A code that fewer places of a batch take is unused.
UNUSED = 0.2


class Tokeniser(nn.Module):
    """Images (B, 1, D, H, W) <-> tokens (B, D/8 H/8 W/8), each one of `codes`."""

    def __init__(self, centre: Tensor, codes: int, embedding: int, channels: Sequence[int]) -> None:
        super().__init__()
        from monai.networks.nets import VQVAE

        self.register_buffer("centre", centre.clone())
        self.register_buffer("scale", torch.ones(()))
        self.grid = [n // 2**LEVELS for n in centre.shape]
        self.vqvae = VQVAE(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=channels,
            num_res_layers=1,
            num_res_channels=channels,
            downsample_parameters=((2, 4, 1, 1),) * LEVELS,
            upsample_parameters=((2, 4, 1, 1, 0),) * LEVELS,
            num_embeddings=codes,
            embedding_dim=embedding,
            # MONAI's 0.25 is more than what a voxel's variance is worth: to say the same of all
            # brains pays then.
            commitment_cost=0.02,
            decay=0.95,
            ddp_sync=False,
        )

    def encode(self, x: Tensor) -> Tensor:
        """(B, E, D/8, H/8, W/8), not yet quantised."""
        return self.scale * self.vqvae.encode(standard(x, self.centre)).float()

    def decode(self, quantised: Tensor) -> Tensor:
        return raw(self.vqvae.decode(quantised).float(), self.centre)

    def quantised(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder said, in the nearest codes, and how far it is from them."""
        # Distances want all digits.
        with no_autocast(CPU):
            distance, nearest = self.vqvae.quantizer(h)
        return nearest, distance

    def tokens(self, x: Tensor) -> Tensor:
        return self.vqvae.quantizer.quantize(self.encode(x)).flatten(1)

    def images(self, tokens: Tensor) -> Tensor:
        """(B, D, H, W)."""
        quantised = self.vqvae.quantizer.embed(tokens.unflatten(1, self.grid))
        return self.decode(quantised)[:, 0].clamp(0.0, 1.2)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Let the encoder begin with numbers of about 1: of first weights they are a hundredth, and
        the decoder is deaf to them."""
        self.scale.div_(self.encode(x).std())
        self.vqvae.quantizer.quantizer.ema_cluster_size.zero_()

    @torch.no_grad()
    def take_codes(self, h: Tensor, generator: torch.Generator) -> None:
        """Put what the encoder makes of images, (B, E, d, h, w), in the place of codes that are
        hardly chosen: one that is near to nothing is never chosen, and never moves."""
        found = h.transpose(0, 1).flatten(1).T
        quantizer = self.vqvae.quantizer.quantizer
        unused = quantizer.ema_cluster_size < UNUSED
        chosen = torch.randint(len(found), (int(unused.sum()),), generator=generator)
        for codes in (quantizer.embedding.weight, quantizer.ema_w):
            codes[unused] = found[chosen]
        quantizer.ema_cluster_size[unused] = 1.0


@dataclass
class Cache:
    """Keys and values (B, heads, N, C/heads) of a block, of which the first `length` are known."""

    keys: Tensor
    values: Tensor
    length: int = 0

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append some; all that are known."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class CausalBlock(nn.Module):
    """Self-attention to what came before, then two layers a token, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        qkv = self.to_qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        first = cache is None or cache.length == 0
        if cache is not None:
            k, v = cache.add(k, v)
        # After the first ones tokens come singly, and see all that is known.
        h = F.scaled_dot_product_attention(q, k, v, is_causal=first)
        x = x + self.out_proj(h.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """Conditions (B, K), each a token of its own before all others, and tokens (B, N) in the order
    of the grid -> scores of the codes (B, N, codes)."""

    def __init__(
        self, codes: int, grid: Sequence[int], conditions: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        d, h, w = grid
        self.length, self.prefix = d * h * w, conditions
        self.slopes = nn.Parameter(torch.randn(conditions, width) * 0.5)
        self.starts = nn.Parameter(torch.randn(conditions, width) * 0.02)
        self.code = nn.Embedding(codes, width)
        # Where a token is along each axis, and of which place the next one is told.
        self.axes = nn.ModuleList(nn.Embedding(n, width) for n in (d, h, w))
        self.place = nn.Embedding(self.length, width)
        for embedding in (self.code, *self.axes, self.place):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, codes)
        where = torch.cartesian_prod(*(torch.arange(n) for n in (d, h, w)))
        self.register_buffer("where", where, persistent=False)

    def told(self, c: Tensor) -> Tensor:
        """(B, K, width): the conditions; the last of them asks for the first token."""
        x = c[:, :, None] * self.slopes + self.starts
        return torch.cat([x[:, :-1], x[:, -1:] + self.place.weight[0]], 1)

    def embedded(self, tokens: Tensor, first: int = 0) -> Tensor:
        """(B, n, width) of tokens (B, n) that stand at `first` and after, each asking for the next;
        the last of all asks for nothing."""
        places = torch.arange(first, first + tokens.shape[1])
        axes = sum(axis(self.where[places, k]) for k, axis in enumerate(self.axes))
        return self.code(tokens) + axes + self.place((places + 1).clamp(max=self.length - 1))

    def through(self, x: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        for n, block in enumerate(self.blocks):
            x = block(x, caches[n] if caches else None)
        scores: Tensor = self.scores(self.norm(x))
        return scores

    def forward(self, tokens: Tensor, c: Tensor) -> Tensor:
        x = torch.cat([self.told(c), self.embedded(tokens[:, :-1])], 1)
        return self.through(x)[:, self.prefix - 1 :]

    @torch.no_grad()
    def sample(self, c: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Tokens (B, N) by conditions (B, K): each is where the distribution function passes its
        number of `uniforms` (B, N)."""
        block = self.blocks[0]
        shape = (len(c), block.heads, self.prefix + self.length, self.code.embedding_dim)
        shape = (*shape[:3], shape[3] // block.heads)
        caches = [Cache(torch.empty(shape), torch.empty(shape)) for _ in self.blocks]
        x, chosen = self.told(c), []
        for n in range(self.length):
            scores = self.through(x, caches)[:, -1] / temperature
            total = scores.double().softmax(-1).cumsum(-1)
            token = torch.searchsorted(total, uniforms[:, n : n + 1].double() * total[:, -1:])
            chosen.append(token.clamp(max=scores.shape[-1] - 1))
            x = self.embedded(chosen[-1], n)
        return torch.cat(chosen, 1)
