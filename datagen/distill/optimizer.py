"""The optimizer of a stage: AdamW, or Muon for matrices and AdamW for the rest.

Source of Muon: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, with its coefficients. torch.optim.Muon
does the same in bfloat16, which a CPU without units for it computes several times slower than float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from datagen.distill.config import StageOptions

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95


class MatrixOptimizer(torch.optim.Optimizer):
    """Muon: the momentum of each matrix is replaced by the nearest orthogonal one, so that all its directions are learned alike."""

    def __init__(self, matrices: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if not self.state[matrix]:
                    self.state[matrix]["momentum"] = torch.zeros_like(matrix)
                momentum = self.state[matrix]["momentum"]
                momentum.lerp_(matrix.grad, 1 - _MOMENTUM)
                update = orthogonal(matrix.grad.lerp(momentum, _MOMENTUM))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix, (N, M), by Newton-Schulz: singular values become 0.7 to 1.2.

    Every iterate is a polynomial of X X^T times X, so that only the small square matrices are iterated.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    gram = wide @ wide.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    total = identity
    for _ in range(_ITERATIONS):
        step = torch.addmm(torch.add(a * identity, gram, alpha=b), gram, gram, alpha=c)
        total, gram = step @ total, step @ (step @ gram)
    found: Tensor = total @ wide
    return found.T if matrix.shape[0] > matrix.shape[1] else found


def make_optimizers(
    options: StageOptions, modules: Iterable[nn.Module], weights: Iterable[nn.Parameter], rates: Mapping[nn.Module, float]
) -> list[torch.optim.Optimizer]:
    """Those that train `weights`; modules: the model's parts among them, whose linear layers have the matrices.

    rates: the share of the learning rates that a module has, where it is not all of it.
    """
    matrices: set[int] = set()
    if options.muon_learning_rate is not None:
        inner = [part for module in modules for part in module.modules()]
        tables = {id(part.weight) for part in inner if isinstance(part, nn.Embedding)}
        matrices = {id(part.weight) for part in inner if isinstance(part, nn.Linear)} - tables
    shares = {id(weight): rate for module, rate in rates.items() for weight in module.parameters()}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for weight in weights:
        groups.setdefault((id(weight) in matrices, shares.get(id(weight), 1.0)), []).append(weight)

    def of(muon: bool, rate: float) -> list[dict[str, Any]]:
        found = [(rate * share, group) for (is_matrix, share), group in groups.items() if is_matrix == muon]
        return [{"params": group, "lr": peak, "peak": peak} for peak, group in found]

    adam, muon, decay = options.learning_rate, options.muon_learning_rate or 0.0, options.weight_decay
    optimizers: list[torch.optim.Optimizer] = []
    if rest := of(False, adam):
        optimizers.append(torch.optim.AdamW(rest, lr=adam, weight_decay=decay, betas=(0.9, 0.98)))
    if found := of(True, muon):
        optimizers.append(MatrixOptimizer(found, lr=muon, weight_decay=decay))
    return optimizers
