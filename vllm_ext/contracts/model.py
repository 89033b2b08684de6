"""The model contract: what a registered model class offers. In vLLM: ``VllmModelForTextGeneration``.

A tensor that is an argument is only read.
"""

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

    Where it has ``supports_logits_indices = True``, an extension of vLLM's contract, :meth:`forward` takes a third
    argument ``logits_indices``, int64 ``[rows]`` or ``None``: it then returns the hidden states of these tokens alone,
    which spares most of the last layer for the others of a prompt.
    """

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens.

        Args:
            input_ids: int64 ``[tokens]``.

        Returns: ``[tokens, hidden]`` in the model's dtype.
        """

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states of tokens; the attention layers write their keys and values into the KV cache.

        Runs inside :func:`vllm_ext.contracts.forward_context.set_forward_context`.

        Args:
            input_ids: int64 ``[tokens]``, one request's after another's.
            positions: int64 ``[tokens]``, of each token in its request, from 0 on.

        Returns: ``[tokens, hidden]`` in the model's dtype.
        """

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits of the tokens that may follow.

        Args:
            hidden_states: rows of what :meth:`forward` returned: ``[rows, hidden]`` in the model's dtype.

        Returns: ``[rows, vocabulary]``, floating-point, complete on every rank, without what a padded head has beyond
            the ``vocab_size`` of ``config.json``; the sampler may change it.
        """

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str] | None:
        """Copy the checkpoint's tensors into parameters.

        Args:
            weights: each tensor's name in the checkpoint, and the tensor in host memory: any shape and any dtype that
                weights are stored in.

        Returns: the names of the parameters that were filled completely, so that the loader can say what the checkpoint
            lacks; ``None``, which vLLM takes as well, leaves that unknown, with a warning.

        Raises:
            CheckpointError: a tensor does not fit, or nobody knows what it is.
        """


TEXT_GENERATION_METHODS = ("embed_input_ids", "forward", "compute_logits", "load_weights")
