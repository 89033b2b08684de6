"""A sampling batch without a worker: tests say what each row's request has so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vllm_ext.contracts.logits_processor import LogitsProcessor
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.worker.sampling.batch import SamplingBatch
from vllm_ext.worker.sampling.logits_processors import IN_TREE
from vllm_ext.worker.sampling.plugin_logits_processors import LogitsProcessors
from vllm_ext.worker.sampling.sampler import Sampler, SamplerOutput

CPU = torch.device("cpu")


class Rows:
    """Requests by slot, in arrays as the input batch has them."""

    def __init__(self, max_num_reqs: int = 8, max_tokens: int = 64, plugins: Sequence[LogitsProcessor] = ()) -> None:
        self.token_ids = np.zeros((max_num_reqs, max_tokens), dtype=np.int32)
        self.num_tokens = np.zeros(max_num_reqs, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_num_reqs, dtype=np.int64)
        processors = LogitsProcessors([processor_cls(None, CPU) for processor_cls in IN_TREE], plugins)
        self.batch = SamplingBatch(self.token_ids, self.num_tokens, self.num_prompt_tokens, processors, CPU)

    def add(self, slot: int, params: SamplingParams, prompt: Sequence[int] = (0,), output: Sequence[int] = ()) -> None:
        token_ids = [*prompt, *output]
        self.token_ids[slot, : len(token_ids)] = token_ids
        self.num_tokens[slot], self.num_prompt_tokens[slot] = len(token_ids), len(prompt)
        self.batch.add(slot, params, list(output))

    def append(self, slot: int, token_id: int) -> None:
        self.token_ids[slot, self.num_tokens[slot]] = token_id
        self.num_tokens[slot] += 1
        self.batch.append_tokens(np.array([slot]), np.array([token_id]))

    def sample(self, sampler: Sampler, logits: torch.Tensor, slots: Sequence[int]) -> SamplerOutput:
        return sampler(logits.clone(), self.batch.metadata(np.array(slots)))

    def processed(self, logits: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """The logits that the likeliest token is taken of."""
        metadata = self.batch.metadata(np.array(slots))
        return logits.clone() if metadata is None else Sampler(0).process_logits(logits.clone(), metadata)


def rows_of(params: Sequence[SamplingParams], count: int = 0) -> Rows:
    """A row for each of ``params``, all with ``count`` tokens of output."""
    rows = Rows(len(params), count + 1)
    for slot, each in enumerate(params):
        rows.add(slot, each, output=[0] * count)
    return rows
