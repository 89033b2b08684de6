"""Workers that answer as those do which are written for vLLM's model runner, chosen by the setting ``worker.cls``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm_ext.contracts.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput
from vllm_ext.worker.worker import Worker


class VendorsOutput(Worker):
    """Log probabilities of the batch in one, those of prompts as tensors, and every field of vLLM's class."""

    def sample_tokens(self, grammar_output: Any | None) -> ModelRunnerOutput:
        output = super().sample_tokens(grammar_output)
        by_request = output.logprobs
        return ModelRunnerOutput(
            req_ids=output.req_ids,
            req_id_to_index=output.req_id_to_index,
            sampled_token_ids=output.sampled_token_ids,
            logprobs=_of_batch(output.req_ids, by_request) if by_request else None,
            prompt_logprobs_dict=dict.fromkeys(output.req_ids)
            | {name: _as_tensors(lists) for name, lists in output.prompt_logprobs_dict.items()},
            prompt_token_id_logprobs_dict={},
            pooler_output=None,
            kv_connector_output=None,
            ec_connector_output=None,
            num_nans_in_logits={},
            cudagraph_stats=None,
            aux_output_connector_output=None,
            sampling_masks=None,
        )


def _of_batch(req_ids: list[str], by_request: dict[str, LogprobsLists]) -> LogprobsLists:
    """A row for each request; beyond what one asked for there are tokens that nobody should see."""
    width = max(lists.logprobs.shape[1] for lists in by_request.values())
    token_ids = np.zeros((len(req_ids), width), dtype=np.int64)
    logprobs = np.full((len(req_ids), width), -99.0, dtype=np.float32)
    ranks = np.zeros(len(req_ids), dtype=np.int64)
    for row, req_id in enumerate(req_ids):
        if (lists := by_request.get(req_id)) is not None:
            count = lists.logprobs.shape[1]
            token_ids[row, :count], logprobs[row, :count] = lists.logprob_token_ids[0], lists.logprobs[0]
            ranks[row] = lists.sampled_token_ranks[0]
    return LogprobsLists(token_ids, logprobs, ranks)


def _as_tensors(lists: LogprobsLists) -> LogprobsTensors:
    return LogprobsTensors(*map(torch.from_numpy, lists[:3]))
