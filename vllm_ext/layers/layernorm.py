"""Root-mean-square normalisation."""

from __future__ import annotations

import torch

from vllm_ext import _custom_ops
from vllm_ext.contracts.custom_op import CustomOp
from vllm_ext.layers.cpu_kernel_op import CpuKernelOp
from vllm_ext.layers.linear import copy_checked, new_parameter


@CustomOp.register("rms_norm")
class RMSNorm(CpuKernelOp):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension. vLLM: ``RMSNorm``."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.variance_epsilon = eps
        self._epsilon: torch.Tensor
        self.register_buffer("_epsilon", torch.tensor(eps, dtype=torch.float32), persistent=False)
        self.weight = new_parameter((hidden_size,), lambda param, loaded: copy_checked(param.data, loaded))

    def forward_native(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Normalise ``x``; with ``residual``, normalise ``x + residual``, and return that sum as the new residual.

        Args:
            x: ``[..., hidden]``, floating-point; only read.
            residual: of the same shape and the same dtype; overwritten in place, it holds the sum afterwards.

        Returns: a new tensor ``[..., hidden]`` of the same dtype; with ``residual`` a pair of it and ``residual``.
        """
        if residual is None:
            return self._normalise(x)
        residual.add_(x)
        return self._normalise(residual), residual

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """One pass over ``x`` in a compiled kernel; as :meth:`forward_native`."""
        if x.dtype is not self.weight.dtype or not (residual is None or residual.is_contiguous()):
            return self.forward_native(x, residual)
        shape = x.shape
        if x.dim() not in (2, 3) or x.stride()[1:] != (self.hidden_size, 1)[3 - x.dim() :]:
            x = x.reshape(-1, x.shape[-1])
        normalised = _custom_ops.rms_norm(x, self.weight, self.variance_epsilon, residual).view(shape)
        return normalised if residual is None else (normalised, residual)

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        # By way of the norm, which is one kernel: fewer passes over x than squares and their mean.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self._epsilon, norm, norm, value=1 / self.hidden_size).rsqrt_()
        return (x * scale).to(x.dtype).mul_(self.weight)
