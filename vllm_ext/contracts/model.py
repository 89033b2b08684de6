"""The model contract: what a registered model class offers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class SupportsTextGeneration(Protocol):
    """A decoder: an ``nn.Module`` built as ``cls(vllm_config=..., prefix="")``.

    It may have a classmethod ``check_tensor_parallel_size(vllm_config)`` besides, which raises ConfigError where the
    model cannot be split over ``parallel_config.tensor_parallel_size`` ranks. It is called, if that is more than one,
    before workers are started, and knows nothing but the configuration.
    """

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids ``[tokens]`` to embeddings ``[tokens, hidden]``."""

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Token ids and positions, int64 ``[tokens]`` each, to hidden states ``[tokens, hidden]``.

        Runs inside :func:`vllm_ext.contracts.forward_context.set_forward_context`.
        """

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[rows, hidden]`` to logits ``[rows, vocabulary]``."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Copy the checkpoint's tensors into parameters; returns the names of the parameters that were filled."""


TEXT_GENERATION_METHODS = ("embed_input_ids", "forward", "compute_logits", "load_weights")
