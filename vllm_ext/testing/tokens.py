"""Greedy tokens of a model on a platform, and what counts as the same tokens.

Two engines that compute right differ in the last bits. So tokens are compared in float32, and only as far as they are
decided: where the reference's two best logits are nearly equal either is right, and the comparison of that sequence
ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_ext.check.leads import NEARLY_EQUAL, leads_of

if TYPE_CHECKING:
    from vllm_ext.contracts.outputs import CompletionOutput

MIN_DECIDED = 0.95
"""The share of all tokens that has to be decided for a comparison to say something."""
PROMPTS = ("It was a truth universally acknowledged", "My dear Miss", "She had", "The evening was", "In the morning")
"""Prompts of 2 to 11 tokens, after which the model that comes with vllm_ext decides its next 32."""

Prompts = Sequence[str] | Sequence[list[int]]


@dataclass(frozen=True, slots=True)
class Greedy:
    """What a reference generates for one prompt, and by how much each token's logit leads the second best."""

    token_ids: list[int]
    leads: list[float]

    @property
    def num_decided(self) -> int:
        """Tokens before the first choice between nearly equal logits."""
        return next((i for i, lead in enumerate(self.leads) if lead < NEARLY_EQUAL), len(self.leads))


def greedy_tokens(
    platform: str,
    prompts: Prompts | None = None,
    *,
    max_tokens: int = 32,
    model: str | PathLike[str] | None = None,
    **engine_settings: Any,
) -> list[list[int]]:
    """Token ids that a platform generates in float32, the likeliest one each time, for each prompt.

    Args:
        platform: its name; it runs or the call fails.
        prompts: texts, or token ids; :data:`PROMPTS` if omitted, which are for the model that comes with vllm_ext.
        max_tokens: tokens for each prompt; none ends earlier.
        model: a model directory; the model that comes with vllm_ext if omitted.
        engine_settings: of the settings' section ``engine``, and other arguments of ``LLM``.

    Raises:
        VllmExtError: what prevents the start, or fails in a step.
    """
    completions = _run(platform, prompts, max_tokens, model, None, engine_settings)
    return [completion.token_ids for completion in completions]


def greedy_reference(
    prompts: Prompts | None = None,
    *,
    platform: str = "cpu",
    max_tokens: int = 32,
    model: str | PathLike[str] | None = None,
    **engine_settings: Any,
) -> list[Greedy]:
    """The same with the leads, of a platform that gives log probabilities; arguments are those of
    :func:`greedy_tokens`.
    """
    completions = _run(platform, prompts, max_tokens, model, 2, engine_settings)
    return [Greedy(completion.token_ids, leads_of(completion)) for completion in completions]


def _run(
    platform: str,
    prompts: Prompts | None,
    max_tokens: int,
    model: str | PathLike[str] | None,
    logprobs: int | None,
    engine_settings: dict[str, Any],
) -> list[CompletionOutput]:
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.engine.llm import LLM

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs)
    settings = {"dtype": "float32", "platform": platform, **engine_settings}
    with LLM(None if model is None else Path(model), **settings) as llm:
        return [output.outputs[0] for output in llm.generate(list(PROMPTS if prompts is None else prompts), params)]


def assert_equal_tokens(token_ids: Sequence[list[int]], references: Sequence[Greedy]) -> None:
    """Equal up to the first nearly equal choice of each sequence; at least 95 % of the positions are decided.

    Args:
        token_ids: what was generated for each prompt.
        references: what should have been, in the same order.

    Raises:
        AssertionError: they differ, and the text says at which prompt and token; or the prompts decide too little.
    """
    num_positions = sum(len(reference.token_ids) for reference in references)
    decided = sum(reference.num_decided for reference in references)
    if decided < MIN_DECIDED * num_positions:
        raise AssertionError(
            f"the reference decides {decided} of {num_positions} tokens, and a comparison takes {MIN_DECIDED:.0%}: "
            f"at the others its two best logits are within {NEARLY_EQUAL} of each other; take others, or fewer tokens"
        )
    if len(token_ids) != len(references):
        raise AssertionError(f"there are tokens for {len(token_ids)} prompts, and the reference has {len(references)}")
    for number, (ids, reference) in enumerate(zip(token_ids, references, strict=True)):
        if len(ids) != len(reference.token_ids):
            raise AssertionError(
                f"prompt {number} got {len(ids)} tokens, and {len(reference.token_ids)} of the reference"
            )
        for position, lead in enumerate(reference.leads[: reference.num_decided]):
            if ids[position] != reference.token_ids[position]:
                raise AssertionError(
                    f"prompt {number}: token {position} is {ids[position]}, and {reference.token_ids[position]} of the "
                    f"reference, where it leads by {lead:.4g}; the tokens before it are equal"
                )


def assert_same_tokens(
    platform: str,
    prompts: Prompts | None = None,
    *,
    reference: str = "cpu",
    max_tokens: int = 32,
    **engine_settings: Any,
) -> None:
    """Run a model on two platforms, and compare the tokens; arguments are those of :func:`greedy_tokens`.

    Args:
        reference: the platform that is taken to be right; it has to give log probabilities.

    Raises:
        AssertionError: see :func:`assert_equal_tokens`.
        ValueError: it is the same platform twice.
        VllmExtError: what prevents the start, or fails in a step.
    """
    if platform == reference:
        raise ValueError(f"platform {platform!r} would be compared with itself; name another as the reference")
    references = greedy_reference(prompts, platform=reference, max_tokens=max_tokens, **engine_settings)
    assert_equal_tokens(greedy_tokens(platform, prompts, max_tokens=max_tokens, **engine_settings), references)
