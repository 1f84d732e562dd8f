"""Mechanisms whose noise is bent: a conditional spline flow over the linear law.

    e = (g(x) - Phi beta) / s,   u = T(e; parents),   u standard normal

T is a monotone rational-quadratic spline (Durkan et al. 2019) of eight bins whose shape a small
network makes, zuko's neural spline flow of one dimension. At the start it is the identity: what the
linear law says already need not be learned. People held out decide: a flow that does not help them
stays the identity, and its shape follows the parents only where that helps them further. One shape
for all cancels in a counterfactual, T^-1(T(e)) = e; one that follows parents by chance does not.
Everything is float64, so that the inverse is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import zuko
from torch import Tensor, nn

from cfgen.causal.design import Columns, Design
from cfgen.causal.mechanisms import Linear, normal_log_density
from cfgen.streams import Purpose, torch_stream

log = logging.getLogger("cfgen")

BINS = 8
HIDDEN = (32, 32)
STEPS = 300
EVERY = 10
# Training ends early when people held out have not gained for so many steps.
PATIENCE = 60
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
# Nats a person that a flow must gain on people held out; less is chance.
LEAST_GAIN = 0.005


@dataclass(frozen=True)
class Shape:
    """How a flow is trained: for so many steps, with a shape that follows the parents or one for
    everybody."""

    steps: int = 0
    by_parents: bool = False


@dataclass(frozen=True, eq=False)
class Flow:
    """The linear law and the network that bends its noise."""

    base: Linear
    net: zuko.flows.NSF
    shape: Shape

    def on(self, base: Linear) -> Flow:
        return Flow(base, self.net, self.shape)

    def abduct(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        e = self.base.abduct(values, parents)
        return self._apply(e, parents, inverse=False)[0]

    def predict(self, noise: np.ndarray, parents: Columns) -> np.ndarray:
        e = self._apply(noise, parents, inverse=True)[0]
        return self.base.predict(e, parents)

    def log_density(self, values: np.ndarray, parents: Columns) -> np.ndarray:
        e = self.base.abduct(values, parents)
        u, stretch = self._apply(e, parents, inverse=False)
        density: np.ndarray = (
            self.base.log_density(values, parents)
            - normal_log_density(e)
            + normal_log_density(u)
            + stretch
        )
        return density

    def equation(self, name: str) -> str:
        bent = self.base.equation(name)
        if self.shape.steps == 0:
            return bent
        parents = ", ".join(t.parent for t in self.base.design.terms)
        given = f"; {parents}" if parents and self.shape.by_parents else ""
        return f"{bent}, e = T^-1(u{given})"

    @torch.inference_mode()
    def _apply(
        self, x: np.ndarray, parents: Columns, *, inverse: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """T or its inverse of x (n,), and the log of its slope; NaN stays NaN."""
        there = np.isfinite(x)
        context = context_of(self.base.design, parents, len(x), self.shape)
        transform = self.net(context).transform
        values = torch.from_numpy(np.where(there, x, 0.0))[:, None]
        if inverse:
            transform = transform.inv
        out, stretch = transform.call_and_ladj(values)
        return np.where(there, out[:, 0].numpy(), np.nan), stretch.numpy()


def new_net(width: int, seed: int, name: str) -> zuko.flows.NSF:
    """A flow that is the identity, of contexts (width,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch_stream(seed, Purpose.WEIGHTS, name).initial_seed()))
        net = zuko.flows.NSF(
            1, width, transforms=1, bins=BINS, hidden_features=HIDDEN, activation=nn.SiLU
        )
    net = net.double()
    # zuko's layers are of its own class.
    last = [m for m in net.modules() if hasattr(m, "weight")][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return net


def context_of(design: Design, parents: Columns, people: int, shape: Shape) -> Tensor:
    """What the network sees of the parents (n, C): their columns, without constant and products;
    zeros where the shape does not follow them, a column of ones where there are none."""
    if not shape.by_parents:
        return torch.zeros(people, context_width(design), dtype=torch.float64)
    phi = design.matrix(parents, people)
    width = 1 + sum(len(t.names) for t in design.terms)
    return torch.from_numpy(np.ascontiguousarray(phi[:, 1:width] if width > 1 else phi[:, :1]))


def context_width(design: Design) -> int:
    return max(1, sum(len(t.names) for t in design.terms))


@dataclass(frozen=True, eq=False)
class Residuals:
    """Noise `e` (n,) of a linear law and contexts (n, C), of people to learn from."""

    e: Tensor
    context: Tensor


def train_flow(
    net: zuko.flows.NSF, data: Residuals, steps: int, held_out: Residuals | None = None
) -> np.ndarray:
    """Maximise the likelihood by AdamW on all people at once. Returns the negative log likelihood
    of those held out, before and after every 10 steps, in nats a person; empty without. Where it
    ended early its last value stands for the rest.
    """
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses = []
    for step in range(steps + 1):
        if held_out is not None and step % EVERY == 0:
            with torch.no_grad():
                losses.append(float(_loss(net, held_out)))
        late = step - EVERY * int(np.argmin(losses)) > PATIENCE if losses else False
        if step == steps or late:
            break
        optimiser.zero_grad()
        loss = _loss(net, data)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    whole = steps // EVERY + 1 if losses else 0
    return np.array(losses + losses[-1:] * (whole - len(losses)))


def best_shape(plain: list[np.ndarray], by_parents: list[np.ndarray], people: list[int]) -> Shape:
    """The shape with the least loss over the folds, from the curves of `train_flow` by fold: the
    identity, one for everybody, or one that follows the parents; a gain by chance is none."""
    loss, shape = float(np.average([c[0] for c in plain], weights=people)), Shape()
    for curves, follows in ((plain, False), (by_parents, True)):
        mean = np.average(curves, axis=0, weights=people)
        best = int(np.argmin(mean))
        if loss - mean[best] > LEAST_GAIN:
            loss, shape = float(mean[best]), Shape(best * EVERY, follows)
    return shape


def net_arrays(net: zuko.flows.NSF) -> Mapping[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}


def net_of_arrays(width: int, arrays: Mapping[str, np.ndarray]) -> zuko.flows.NSF:
    """Raises RuntimeError or KeyError when the arrays are of another network."""
    net = new_net(width, 0, "")
    net.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})
    return net


def _loss(net: zuko.flows.NSF, data: Residuals) -> Tensor:
    u, stretch = net(data.context).transform.call_and_ladj(data.e[:, None])
    loss: Tensor = (u[:, 0] ** 2 / 2 - stretch).mean()
    return loss
