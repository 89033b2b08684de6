"""Token ids of workers that keep them in tensors or arrays, and of workers that return what is no token id."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_engine import VOCAB_SIZE, FakeWorker, continuation

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.errors import EngineError

PROMPT = [1, 2, 3]
OF_ANY_TOKEN = {
    "numpy integer": np.int64,
    "tensor without dimensions": torch.tensor,
    "enumeration": lambda token: IntEnum("Token", {"A": token}).A,
}
OF_A_ROW = {"tuple": tuple, "array": np.array, "tensor": lambda row: torch.tensor(row, dtype=torch.int32)}


class Converting(FakeWorker):
    """Returns its tokens as ``convert`` makes them of the plain ones."""

    convert: Any

    def execute_model(self, scheduler_output: Any) -> Any:
        output = super().execute_model(scheduler_output)
        if output.sampled_token_ids:
            output.sampled_token_ids = self.convert(output.sampled_token_ids)
        return output


def converting(convert: Any) -> type[Converting]:
    return type("Converting", (Converting,), {"convert": staticmethod(convert)})


def of_each_token(convert: Any) -> type[Converting]:
    return converting(lambda rows: [[convert(token) for token in row] for row in rows])


@pytest.mark.parametrize(
    "worker_cls",
    [
        *map(of_each_token, OF_ANY_TOKEN.values()),
        *(converting(lambda rows, of=of: [of(row) for row in rows]) for of in OF_A_ROW.values()),
        converting(torch.tensor),
    ],
    ids=[*OF_ANY_TOKEN, *OF_A_ROW, "tensor of all rows"],
)
def test_integers_of_any_kind_are_tokens_and_end_a_request_like_plain_ones(make_llm, worker_cls):
    expected = continuation(PROMPT, 3)
    llm = make_llm(worker_cls=worker_cls)

    (output,) = llm.generate(PROMPT, SamplingParams(max_tokens=8, stop_token_ids=expected[-1:]))[0].outputs

    assert (output.token_ids, output.stop_reason) == (expected, expected[-1])
    assert {type(token) for token in [*output.token_ids, output.stop_reason]} == {int}


@pytest.mark.parametrize(
    ("convert", "shown"),
    [
        (float, r"the token \d+\.0"),
        (lambda token: np.float64(token), r"the token np.float64\(\d+\.0\)"),
        (lambda token: torch.tensor(float(token)), r"the token tensor\(\d+\.\)"),
        (lambda _: True, "the token True"),
        (lambda _: None, "the token None"),
        (lambda _: -1, "the token -1"),
        (lambda _: VOCAB_SIZE, f"the token {VOCAB_SIZE}"),
        (lambda _: np.int64(VOCAB_SIZE), rf"the token np.int64\({VOCAB_SIZE}\)"),
    ],
)
def test_what_is_no_token_id_of_the_model_is_an_error_with_the_worker_and_the_request(make_llm, convert, shown):
    def prepare(worker):
        worker.parallel_config.worker_cls = "acme.Worker"

    llm = make_llm(worker_cls=of_each_token(convert), prepare=prepare)

    with pytest.raises(
        EngineError,
        match=f"worker acme.Worker returned {shown} for request '0'; sampled_token_ids has to hold a list of token ids "
        f"for each request, integers from 0 to {VOCAB_SIZE - 1}, the model's vocabulary",
    ):
        llm.generate(PROMPT)


def test_the_new_tokens_of_a_request_are_a_list(make_llm):
    llm = make_llm(worker_cls=converting(lambda rows: [row[0] for row in rows]))

    with pytest.raises(EngineError, match=r"returned \d+ as the new tokens for request '0'"):
        llm.generate(PROMPT)


def test_no_list_of_rows_is_an_error_with_the_worker(make_llm):
    llm = make_llm(worker_cls=converting(lambda rows: None))

    with pytest.raises(EngineError, match="returned None as sampled_token_ids; it has to be a list with a list of"):
        llm.generate(PROMPT)
