"""From hidden states to logits."""

from __future__ import annotations

import torch
from torch import nn

from vllm_ext.contracts.custom_op import PluggableLayer


@PluggableLayer.register("logits_processor")
class LogitsProcessor(PluggableLayer):
    """The last layer of a model: its head's product, then what the model does to logits.

    vLLM: ``LogitsProcessor`` of ``model_executor.layers``. It has nothing to do with :class:`vllm_ext.LogitsProcessor`,
    which acts on sampling parameters.

    Args:
        vocab_size: rows of the head.
        org_vocab_size: tokens of the model, where the head has rows beyond them; those are cut off.
        scale: factor on the logits, after the cap.
        logits_as_input: what is given are logits, and the head is not asked.
        soft_cap: ``c`` in ``c * tanh(logits / c)``.
    """

    def __init__(
        self,
        vocab_size: int,
        org_vocab_size: int | None = None,
        scale: float = 1.0,
        logits_as_input: bool = False,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.org_vocab_size = vocab_size if org_vocab_size is None else org_vocab_size
        self.scale = scale
        self.logits_as_input = logits_as_input
        self.soft_cap = soft_cap

    def forward(
        self, lm_head: nn.Module | None, hidden_states: torch.Tensor, embedding_bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits, on every rank.

        Args:
            lm_head: a :class:`~vllm_ext.layers.vocab_parallel_embedding.ParallelLMHead`; only read.
            hidden_states: ``[rows, hidden]`` in the model's dtype; logits where ``logits_as_input``. They are only
                read.
            embedding_bias: ``[vocab_size]`` of the same dtype, added to the product; only read.

        Returns: ``[rows, org_vocab_size]`` of the same dtype.

        Raises:
            TypeError: there is no head, and what is given are no logits.
        """
        logits = hidden_states if self.logits_as_input else self._product(lm_head, hidden_states)
        if embedding_bias is not None:
            logits = logits + embedding_bias
        if self.org_vocab_size != self.vocab_size:
            logits = logits[..., : self.org_vocab_size]
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits if self.scale == 1.0 else logits * self.scale

    def _product(self, lm_head: nn.Module | None, hidden_states: torch.Tensor) -> torch.Tensor:
        if lm_head is None:
            raise TypeError("LogitsProcessor: without a head it takes logits; build it with logits_as_input=True")
        product: torch.Tensor = lm_head(hidden_states)
        return product

    def extra_repr(self) -> str:
        """For people, where the model is printed."""
        return f"vocab_size={self.vocab_size}, scale={self.scale}, soft_cap={self.soft_cap}"
