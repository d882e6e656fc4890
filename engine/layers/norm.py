"""RMS norm, with the residual stream's addition fused into it. Must not know what is normalised."""

from torch import Tensor

from engine.layers.weights import Weights
from kernels import Kernels


class RMSNorm:
    """Root-mean-square norm of [T, size] with a learned weight; see `kernels.reference.rms_norm`."""

    def __init__(self, weights: Weights, name: str, size: int, eps: float, kernels: Kernels) -> None:
        self._weight = weights.keep(name + ".weight", (size,))
        self._eps = eps
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """Norm of x [T, size]."""
        return self._kernels.rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual), both [T, size]; `residual` may be overwritten."""
        return self._kernels.add_rms_norm(x, residual, self._weight, self._eps)
