"""Three logits processors; each acts on requests that have its key in ``SamplingParams.extra_args``."""

from collections import Counter

import torch

from vllm_ext import AdapterLogitsProcessor, BatchUpdate, LogitsProcessor, MoveDirectionality, SamplingParams


def argument(params: SamplingParams, name: str, low: int) -> int | None:
    value = (params.extra_args or {}).get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
        raise ValueError(f"extra_args[{name!r}] is {value!r}; it takes an integer from {low} on")
    return value


class RowValues(LogitsProcessor):
    """A number for some of the rows, which follows the requests; as vLLM's documentation writes it out."""

    name: str
    low: int

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        self.values: dict[int, int] = {}
        self.batch_size = 0

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        argument(params, cls.name, cls.low)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        self.batch_size = batch_update.batch_size
        for row in batch_update.removed:
            self.values.pop(row, None)
        for row, params, _, _ in batch_update.added:
            self.values.pop(row, None)
            if (value := argument(params, self.name, self.low)) is not None:
                self.values[row] = value
        for source, target, direction in batch_update.moved:
            moving, replaced = self.values.pop(source, None), self.values.pop(target, None)
            if moving is not None:
                self.values[target] = moving
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self.values[source] = replaced


class ForbidToken(RowValues):
    """``forbid``: a token that is not generated."""

    name, low = "forbid", 0

    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.values:
            logits[list(self.values), list(self.values.values())] = float("-inf")
        return logits


class KeepLikeliest(RowValues):
    """``keep``: so many of the likeliest tokens are drawn from. It counts how often it was needed."""

    name, low = "keep", 1
    num_applied = 0

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[0] != self.batch_size:
            raise RuntimeError(f"{logits.shape[0]} rows, and the last update said {self.batch_size}")
        KeepLikeliest.num_applied += 1
        for row, count in self.values.items():
            smallest = logits[row].topk(count).values[-1]
            logits[row] = logits[row].masked_fill(logits[row] < smallest, float("-inf"))
        return logits


class RepeatLimit(AdapterLogitsProcessor):
    """``repeat_limit``: the output has no token more often than that."""

    @classmethod
    def validate_params(cls, params: SamplingParams) -> None:
        argument(params, "repeat_limit", 1)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams):
        limit = argument(params, "repeat_limit", 1)
        return None if limit is None else _Counted(limit)


class _Counted:
    """Its state grows by the tokens that are new since it was called last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[int] = Counter()

    def __call__(self, output_token_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        self._counts.update(output_token_ids[self._counts.total() :])
        used_up = [token for token, count in self._counts.items() if count >= self._limit]
        logits[used_up] = float("-inf")
        return logits
