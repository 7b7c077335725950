"""Muon for matrices and full convolutions, Adam for the rest.

Muon: Keller Jordan et al., 2024, kellerjordan.github.io/posts/muon; coefficients of the
Newton–Schulz step from there. torch.optim.Muon processes one matrix at a time, always in bfloat16;
this one batches matrices of the same shape, and takes float32 on CPUs without bfloat16.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from laboratory.training.runs.processes import average_gradients, map_rows

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95
_EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak learning rates."""

    muon: float = 0.015
    adam: float = 2e-3
    embedding: float = 5e-4  # token embeddings, tied to the output head


class Muon(Optimizer):
    """SGD with Nesterov momentum whose updates are orthogonalised, in `dtype`."""

    def __init__(
        self, groups: Sequence[dict[str, object]], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(groups, {"lr": 0.02})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update all parameters that have a gradient."""
        by_shape: dict[tuple[int, int], list[tuple[Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = (len(parameter), parameter[0].numel())
                    by_shape[shape].append((parameter, group["lr"]))
        stacks = list[Tensor]()
        for shape, updated in by_shape.items():
            nesterov = [self._nesterov(parameter).view(shape) for parameter, _ in updated]
            stacks.append(torch.stack(nesterov).to(self._dtype))
        results = map_rows(orthogonalized, stacks)
        for (shape, updated), updates in zip(by_shape.items(), results, strict=True):
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for (parameter, rate), update in zip(updated, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-rate * scale)

    def _nesterov(self, parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        average: Tensor = self.state[parameter].setdefault("average", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(average, _MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (K, R, C) with all singular values near 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + _EPSILON)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    result: Tensor = x.transpose(1, 2) if is_tall else x
    return result


def cosine_factor(progress: float, flat_share: float, final: float) -> float:
    """Return 1 up to `flat_share` of a run, then a cosine down to `final`; `progress` is 0 to 1."""
    fall = max(0.0, (progress - flat_share) / (1 - flat_share))
    return final + (1 - final) * (1 + math.cos(math.pi * fall)) / 2


def set_rates(
    optimizers: Sequence[Optimizer], factor: float, of_parts: Mapping[str, float] | None = None
) -> None:
    """Set the rates to `factor` times the top rates of the groups, and times that of their part."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * factor * (of_parts or {}).get(group.get("part", ""), 1.0)


def descend(
    loss: Tensor, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], max_norm: float
) -> None:
    """Take a step down the gradients of `loss`, clipped in each module to `max_norm`."""
    torch.autograd.backward(loss)
    average_gradients(modules)
    for module in modules:
        nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def make_optimizers(
    parts: Mapping[str, Sequence[nn.Module]],
    embeddings: Tensor,
    rates: Rates,
    muon_dtype: torch.dtype = torch.float32,
) -> list[Optimizer]:
    """Return Muon and Adam for the modules of each part.

    A parameter group has its `part` and its `top` rate.

    Adam also updates all of `heads`, and the token embeddings, which several modules share.
    """
    muon: list[dict[str, object]] = []
    adam: list[dict[str, object]] = [
        {"params": [embeddings], "top": rates.embedding, "part": "embedding"}
    ]
    for part, modules in parts.items():
        matrices: list[Tensor] = []
        every = list[Tensor]()
        for module in modules:
            every += module.parameters()
            for layer in module.modules():
                if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight is embeddings:
                    continue
                if getattr(layer, "groups", 1) == 1:
                    matrices.append(layer.weight)
        taken = {id(embeddings), *map(id, matrices)}
        others = [parameter for parameter in every if id(parameter) not in taken]
        if part == "heads":
            matrices, others = [], [*matrices, *others]
        muon.append({"params": matrices, "top": rates.muon, "part": part})
        adam.append({"params": others, "top": rates.adam, "part": part})
    return [
        Muon([group for group in muon if group["params"]], muon_dtype),
        torch.optim.Adam(adam, betas=(0.9, 0.98)),
    ]
