"""A Llama that likes one token."""

from __future__ import annotations

import torch

from vllm_ext.models.llama import LlamaForCausalLM

FAVOURITE_TOKEN = 7
BONUS = 8.0


class MyDummyLlamaForCausalLM(LlamaForCausalLM):
    """The in-tree Llama with :data:`BONUS` added to the logit of :data:`FAVOURITE_TOKEN`."""

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        logits = super().compute_logits(hidden_states)
        logits[:, FAVOURITE_TOKEN] += BONUS
        return logits
