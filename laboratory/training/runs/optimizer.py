"""Muon for matrices and full convolutions, Adam for the rest.

Muon: Keller Jordan et al., 2024, kellerjordan.github.io/posts/muon; coefficients of the
Newton–Schulz step from there. torch.optim.Muon processes one matrix at a time in bfloat16, which is
slow on CPUs without bfloat16; this one batches matrices of the same shape.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

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
    """SGD with Nesterov momentum whose updates are orthogonalised."""

    def __init__(self, groups: Sequence[dict[str, object]]) -> None:
        super().__init__(groups, {"lr": 0.02})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[(len(parameter), parameter[0].numel())].append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonalized(
                    torch.stack([self._momentum(p).view(shape) for p in parameters])
                )
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Return the gradient with Nesterov momentum."""
        state = self.state[parameter]
        gradient = parameter.grad
        assert gradient is not None
        average = state.setdefault("average", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - _MOMENTUM)
        nesterov: Tensor = gradient.lerp(average, _MOMENTUM)
        return nesterov


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (K, R, C) with all singular values near 1."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + _EPSILON)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    result: Tensor = x.transpose(1, 2) if is_tall else x
    return result


def make_optimizers(
    parts: Mapping[str, Sequence[nn.Module]], embeddings: Tensor, rates: Rates
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
        matrices, others = _split(modules, embeddings)
        if part == "heads":
            matrices, others = [], [*matrices, *others]
        muon.append({"params": matrices, "top": rates.muon, "part": part})
        adam.append({"params": others, "top": rates.adam, "part": part})
    return [
        Muon([group for group in muon if group["params"]]),
        torch.optim.Adam(adam, betas=(0.9, 0.98)),
    ]


def _split(modules: Sequence[nn.Module], embeddings: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return matrices of linear layers and full convolutions, and the rest but `embeddings`."""
    layers = [layer for module in modules for layer in module.modules()]
    matrices: list[Tensor] = [
        layer.weight
        for layer in layers
        if (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1))
        and layer.weight is not embeddings
    ]
    taken = {id(embeddings), *map(id, matrices)}
    every = [parameter for module in modules for parameter in module.parameters()]
    return matrices, [parameter for parameter in every if id(parameter) not in taken]
