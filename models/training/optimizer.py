"""Muon for the matrices of the layers, AdamW for embeddings and norms, under one learning-rate schedule."""

import torch
from torch import Tensor

from models.training.network import Network

MUON_RATE = 0.02
ADAM_RATE = 4e-3
MOMENTUM = 0.95
WEIGHT_DECAY = 0.05
WARMUP_STEPS = 40
# The quintic of Keller Jordan's Muon (2024), five iterations of which bring singular values near 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def schedule(step: int, num_steps: int, decay_share: float) -> float:
    """Factor on the learning rates: warm-up, constant, then linear to 0 over the last `decay_share` of the steps."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, (num_steps - step) / (decay_share * num_steps))


class Optimizer:
    """Both optimizers. step() uses the gradients and clears them."""

    def __init__(self, network: Network) -> None:
        self._network = network
        matrices = [p for p in network.layers.parameters() if p.ndim == 2]
        self._others = [p for p in network.parameters() if not any(p is matrix for matrix in matrices)]
        self._groups: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            self._groups.setdefault(matrix.shape, []).append(matrix)
        self._momentum = {size: torch.zeros(len(group), *size) for size, group in self._groups.items()}
        decayed = [p for p in self._others if p.ndim == 2]
        norms = [p for p in self._others if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98), fused=True)

    def step(self, factor: float) -> None:
        """One update with both learning rates times `factor`."""
        self._step_muon(MUON_RATE * factor)
        torch.nn.utils.clip_grad_norm_(self._others, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self._adam.step()
        self._network.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _step_muon(self, rate: float) -> None:
        """Matrices of one shape are orthogonalised in one batch."""
        for size, group in self._groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            momentum = self._momentum[size]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = gradient.lerp(momentum, MOMENTUM).to(torch.bfloat16)
            tall = size[0] > size[1]
            x = update.mT if tall else update
            x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(torch.bfloat16)
            a, b, c = NEWTON_SCHULZ
            for _ in range(5):
                gram = x @ x.mT
                x = a * x + (b * gram + c * (gram @ gram)) @ x
            x = (x.mT if tall else x).float() * max(1.0, size[0] / size[1]) ** 0.5
            for parameter, change in zip(group, x, strict=True):
                parameter.mul_(1 - rate * WEIGHT_DECAY).add_(change, alpha=-rate)
