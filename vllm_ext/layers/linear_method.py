"""In-tree linear methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vllm_ext.contracts.linear_method import LinearLayer, LinearMethod


class UnquantizedLinearMethod(LinearMethod):
    """torch's own product on the weight as it was loaded."""

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        """Nothing to do."""

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, layer.weight, bias)  # type: ignore[arg-type]


class PackedLinearMethod(LinearMethod):
    """oneDNN's product on a weight in oneDNN's own layout, which spares a rearrangement per call.

    Where oneDNN does not compute in the weight's dtype on this machine, the layer changes to the plain method.
    """

    # Packed for 16 rows, a weight is as fast for 1 and for 1000; packed for 1, it takes twice as long for 16.
    _ROWS_HINT = 16

    def process_weights_after_loading(self, layer: LinearLayer) -> None:
        weight = layer.weight
        if weight is None or not _can_pack(weight.dtype):
            layer.linear_method = UnquantizedLinearMethod()
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.data, self._ROWS_HINT)
        # The dense copy goes at once: were all layers packed first, the peak would be twice the weights.
        layer.weight = None

    def apply(self, layer: LinearLayer, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")


def _can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype with the machine's own instructions."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32
