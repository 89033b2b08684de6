"""Greedy tokens by transformers, and the comparison with them that allows for nearly equal logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

Process = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""Logits ``[vocabulary]`` and the output so far, to the logits that the likeliest token is taken of."""

NEARLY_EQUAL = 1e-3
MIN_DECIDED = 0.95


@dataclass(frozen=True, slots=True)
class Greedy:
    """What transformers generates for one prompt, and by how much each token's logit leads the second best."""

    token_ids: list[int]
    leads: list[float]

    @property
    def num_decided(self) -> int:
        """Tokens before the first choice between nearly equal logits."""
        return next((i for i, lead in enumerate(self.leads) if lead < NEARLY_EQUAL), len(self.leads))


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


def assert_equal_tokens(token_ids: list[list[int]], references: list[Greedy]) -> None:
    """Equal up to the first nearly equal choice of each sequence; at least 95 % of the positions are decided."""
    num_positions = sum(len(reference.token_ids) for reference in references)
    decided = sum(reference.num_decided for reference in references)
    assert decided >= MIN_DECIDED * num_positions, "the fixture leaves too many greedy choices open"
    for ids, reference in zip(token_ids, references, strict=True):
        assert len(ids) == len(reference.token_ids)
        assert ids[: reference.num_decided] == reference.token_ids[: reference.num_decided]
