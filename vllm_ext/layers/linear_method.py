"""In-tree linear methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vllm_ext import _custom_ops
from vllm_ext.contracts.linear_method import LinearLayer, LinearMethod


class UnquantizedLinearMethod(LinearMethod):
    """torch's own product on the weight as it was loaded."""

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Nothing to do."""

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, layer.weight, bias)  # type: ignore[arg-type]


class PackedLinearMethod(LinearMethod):
    """Dense weights in the layout of whatever multiplies them fastest here, which spares a rearrangement per call.

    That is the compiled kernel where it runs; else oneDNN, where it computes in the weight's dtype; else the layer
    changes to the plain method. The dense copy goes at once: were all layers packed first, the peak would be twice the
    weights.
    """

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        weight = layer.weight
        if weight is not None and _custom_ops.can_multiply(weight):
            layer.linear_method = KernelLinearMethod(weight.data)
            layer.weight = None
        elif weight is not None and OneDNNLinearMethod.can_pack(weight.dtype):
            layer.linear_method = OneDNNLinearMethod(weight.data)
            layer.weight = None
        else:
            layer.linear_method = UnquantizedLinearMethod()

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise RuntimeError("process_weights_after_loading() was not called for this layer")


class KernelLinearMethod(LinearMethod):
    """The compiled kernel on a weight ``[out, in]`` in panels: against oneDNN, 0.7 of the time for up to 8 rows, 0.8
    for 16, and the same for hundreds (``tools/bench_linear.py``, Zen 4; with AVX2 0.6, 0.7 and the same on Zen). What
    torch does in 16 bits without AVX-512 takes twice as long for one row, and six times as long for 64.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = _custom_ops.pack_weight(weight)
        self._out_features = weight.shape[0]

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Nothing to do."""

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return _custom_ops.linear(x, self._packed, bias, self._out_features)


class OneDNNLinearMethod(LinearMethod):
    """oneDNN's product on a weight ``[out, in]`` in oneDNN's own layout."""

    # Packed for 16 rows, a weight is as fast for 1 and for 1000; packed for 1, it takes twice as long for 16.
    _ROWS_HINT = 16

    @staticmethod
    def can_pack(dtype: torch.dtype) -> bool:
        """Whether oneDNN multiplies this dtype with the machine's own instructions."""
        if not torch.backends.mkldnn.is_available():
            return False
        if dtype is torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if dtype is torch.float16:
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
        return dtype is torch.float32

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, self._ROWS_HINT)

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Nothing to do."""

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
