"""Muon for the matrices, AdamW for the rest.

Muon: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024): momentum, made orthogonal by a
quintic Newton-Schulz iteration. Matrices of one shape are stacked, so that each iteration is one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in fp32: on CUDA, and on CPUs with AVX512-BF16 or AMX."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def orthogonalize(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """About U V^T of each matrix [n, rows, columns] = U S V^T."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if has_fast_bfloat16(matrices.device) else matrices
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if transposed else x).to(matrices.dtype)


class Muon:
    """Momentum with Nesterov, orthogonalised; the step is scaled by sqrt(max(1, rows / columns))."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self.groups = list(groups.values())
        self.buffers = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the gradients, which it clears."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([parameter.grad for parameter in group if parameter.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(buffer, self.momentum))
            scale = max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - learning_rate * self.weight_decay).add_(change, alpha=-learning_rate * scale)
                parameter.grad = None


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices inside the layers (for Muon), and embeddings and norms (for AdamW)."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return matrices, others
