"""Greedy tokens by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from vllm_ext.testing import Greedy, assert_equal_tokens

__all__ = ["Greedy", "Process", "assert_equal_tokens", "greedy_reference", "reference_logits"]

Process = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""Logits ``[vocabulary]`` and the output so far, to the logits that the likeliest token is taken of."""


def greedy_reference(
    model: Path,
    prompts: list[list[int]],
    max_tokens: int,
    logit_bias: dict[int, float] | None = None,
    process: Process = lambda logits, output: logits,
) -> list[Greedy]:
    """Greedy continuations in float32, each prompt by itself and each token from a full forward pass."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    bias = torch.zeros(reference.config.vocab_size)
    for token, value in (logit_bias or {}).items():
        bias[token] = value
    return [
        _continue(reference, prompt, max_tokens, lambda logits, output: process(logits + bias, output))
        for prompt in prompts
    ]


@torch.inference_mode()
def reference_logits(model: Path, token_ids: list[int]) -> torch.Tensor:
    """float32 ``[tokens, vocabulary]``: row ``i`` predicts token ``i + 1``."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return reference(torch.tensor([token_ids])).logits[0]


@torch.inference_mode()
def _continue(model: torch.nn.Module, prompt: list[int], max_tokens: int, process: Process) -> Greedy:
    token_ids, leads = list(prompt), []
    for _ in range(max_tokens):
        logits = process(model(torch.tensor([token_ids])).logits[0, -1], token_ids[len(prompt) :])
        (best, second), (token, _) = logits.topk(2)
        token_ids.append(int(token))
        leads.append(float(best - second))
    return Greedy(token_ids[len(prompt) :], leads)
