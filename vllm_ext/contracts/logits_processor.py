"""The logits processor contract (vLLM's ``vllm.v1.sample.logits_processor``): changes of a batch's logits."""

from __future__ import annotations

import enum
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.contracts.vllm_config import VllmConfig

T = TypeVar("T")


class MoveDirectionality(enum.Enum):
    """Whether two rows change places, or one goes to where nobody is."""

    UNIDIRECTIONAL = 1
    SWAP = 2


RemovedRequest: TypeAlias = int
"""The row that is free now."""
AddedRequest: TypeAlias = "tuple[int, SamplingParams, list[int], list[int]]"
"""Row, parameters, prompt token ids, and output token ids: a list that grows with the request."""
MovedRequest: TypeAlias = tuple[int, int, MoveDirectionality]
"""From row, to row."""


@dataclass(frozen=True, slots=True)
class BatchUpdate:
    """How the rows of the logits differ from those of the last update; to be followed in the order of the fields."""

    batch_size: int
    removed: Sequence[RemovedRequest]
    added: Sequence[AddedRequest]
    moved: Sequence[MovedRequest]


class LogitsProcessor(ABC):
    """Base of logits processors; the entry point in ``vllm.logits_processors`` is a subclass. vLLM:
    ``LogitsProcessor``.

    A row of the logits is a request that gets a token in this step. One that sits out a step, such as a preempted one,
    leaves and joins again: what a processor keeps of a request has to follow from its parameters, its prompt and its
    output so far.

    Args:
        vllm_config: the engine's configuration; not to be changed. ``additional_config[NAME]`` has the options of the
            plugin ``NAME``.
        device: where logits are.
        is_pin_memory: whether host memory for transfers is to be pinned.
    """

    @abstractmethod
    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None: ...

    @classmethod  # noqa: B027 - optional
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """ValueError for parameters that this processor cannot serve; the default accepts all.

        Called where requests are added, maybe in another process than the other methods and in several threads.
        """

    @abstractmethod
    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits to sample from.

        Args:
            logits: float32 ``[rows, vocabulary]``; may be changed in place.

        Returns: float32 ``[rows, vocabulary]``: ``logits``, or others.
        """

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token never changes, so that greedy requests can leave this processor out.

        Asked once. Such a processor is applied after the temperature, the others before penalties.
        """

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that joined, left or moved since the last call; ``None`` where nothing changed.

        Called before :meth:`apply`, and left out in steps without it: then one update leads over several steps.
        """


def process_dict_updates(
    req_entries: dict[int, T],
    batch_update: BatchUpdate | None,
    new_state: Callable[[SamplingParams, list[int], list[int]], T | None],
) -> bool:
    """Let a dictionary by row follow the requests. vLLM: ``process_dict_updates``.

    Args:
        req_entries: what is kept of requests, by row; changed in place.
        new_state: what to keep of a request with these parameters, prompt token ids and output token ids; ``None`` for
            nothing.

    Returns: whether ``req_entries`` has changed.
    """
    if batch_update is None:
        return False
    changed = False
    for row in batch_update.removed:
        changed |= req_entries.pop(row, None) is not None
    for row, params, prompt_token_ids, output_token_ids in batch_update.added:
        value = new_state(params, prompt_token_ids, output_token_ids)
        changed |= req_entries.pop(row, None) is not None or value is not None
        if value is not None:
            req_entries[row] = value
    for source, target, direction in batch_update.moved:
        moving, replaced = req_entries.pop(source, None), req_entries.pop(target, None)
        changed |= moving is not None or replaced is not None
        if moving is not None:
            req_entries[target] = moving
        if replaced is not None and direction is MoveDirectionality.SWAP:
            req_entries[source] = replaced
    return changed


RequestLogitsProcessor: TypeAlias = (
    "Callable[[list[int], torch.Tensor], torch.Tensor] | Callable[[list[int], list[int], torch.Tensor], torch.Tensor]"
)
"""Changes one request's logits, ``[vocabulary]``: called with output token ids and logits, or with prompt token
ids, output token ids and logits."""


class AdapterLogitsProcessor(LogitsProcessor):
    """Base of processors that work on one request at a time; a call per request and step is what that costs.

    A subclass says :meth:`is_argmax_invariant` and :meth:`new_req_logits_processor`. vLLM: ``AdapterLogitsProcessor``.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.req_info: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {}
        """By row, for the requests that have a processor."""

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """The processor of a request with these parameters; ``None`` where its logits stay as they are.

        Called whenever a request joins, and so again where it comes back after a preemption.
        """

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.req_info, batch_update, self._new_state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """See :meth:`LogitsProcessor.apply`; the rows of requests with a processor are changed in place.

        Raises:
            ValueError: a request's processor returned logits of another shape.
        """
        for row, processor in self.req_info.items():
            before = logits[row]
            after = processor(before)
            if after.shape != before.shape:
                raise ValueError(
                    f"the processor of a request returned logits of shape {list(after.shape)} for {list(before.shape)}"
                )
            if after is not before:
                logits[row] = after
        return logits

    def _new_state(
        self, params: SamplingParams, prompt_token_ids: list[int], output_token_ids: list[int]
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        processor: Any = self.new_req_logits_processor(params)
        if processor is None:
            return None
        token_ids = (prompt_token_ids, output_token_ids) if _takes_prompt(processor) else (output_token_ids,)
        return functools.partial(processor, *token_ids)


def _takes_prompt(processor: Callable[..., Any]) -> bool:
    """Whether it has three parameters that have to be given by position."""
    parameters = inspect.signature(processor).parameters.values()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in by_position and p.default is p.empty for p in parameters) == 3
