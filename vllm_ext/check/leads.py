"""How far a greedy token is decided: two engines that compute right differ in the last bits of their logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_ext.contracts.outputs import CompletionOutput

NEARLY_EQUAL = 1e-3
"""Logits in float32 that differ by less are nearly equal: where the two best ones are, either token is right."""


def leads_of(completion: CompletionOutput) -> list[float]:
    """By how much the logit of each token, the likeliest, leads the second best; empty without log probabilities.

    Args:
        completion: a greedy one with two log probabilities or more for each token, which differ as the logits do.
    """
    leads = []
    for position in completion.logprobs or ():
        best, second, *_ = sorted((entry.logprob for entry in position.values()), reverse=True)
        leads.append(best - second)
    return leads
