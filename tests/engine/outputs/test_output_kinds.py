"""``output_kind``: all so far, what is new, or all at the end; the pieces make up the whole."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from support.async_engine import run

from vllm_ext import RequestOutput, RequestOutputKind, SamplingParams
from vllm_ext.errors import InvalidRequest

DELTA, FINAL_ONLY = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


class Whole:
    """What the pieces of one request make up."""

    def __init__(self, outputs: list[RequestOutput]) -> None:
        self.text, self.token_ids, self.logprobs = defaultdict(str), defaultdict(list), defaultdict(list)
        self.ends: dict[int, tuple] = {}
        self.prompt_logprobs: list = []
        for output in outputs:
            self.prompt_logprobs += output.prompt_logprobs or []
            for piece in output.outputs:
                assert piece.index not in self.ends, "nothing comes after the end"
                self.text[piece.index] += piece.text
                self.token_ids[piece.index] += piece.token_ids
                self.logprobs[piece.index] += piece.logprobs or []
                if piece.finished:
                    self.ends[piece.index] = (piece.finish_reason, piece.stop_reason, piece.cumulative_logprob)


def check(outputs: list[RequestOutput], expected: RequestOutput) -> None:
    whole = Whole(outputs)
    for completion in expected.outputs:
        i = completion.index
        assert whole.text[i] == completion.text
        assert whole.token_ids[i] == completion.token_ids
        assert whole.logprobs[i] == (completion.logprobs or [])
        assert whole.ends[i] == (completion.finish_reason, completion.stop_reason, completion.cumulative_logprob)
    assert whole.prompt_logprobs == (expected.prompt_logprobs or [])
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(expected.prompt_token_ids)}


CASES = [
    {"temperature": 0},
    {"temperature": 0, "logprobs": 1, "prompt_logprobs": 0},
    {"n": 3, "temperature": 1.0, "seed": 3, "logprobs": 0},
    {"temperature": 0, "stop": ["very", " glad"], "include_stop_str_in_output": True},
    {"temperature": 0, "detokenize": False},
]
PROMPT = "It was a truth"


@pytest.fixture(scope="module")
def whole(demo_llm):
    """The output of :func:`LLM.generate`, which says the same whatever the kind is."""

    def generate(case: dict) -> RequestOutput:
        of_each_kind = [
            demo_llm.generate(PROMPT, SamplingParams(max_tokens=24, **case, output_kind=kind))[0]
            for kind in RequestOutputKind
        ]
        for output in of_each_kind[1:]:
            assert (output.outputs, output.prompt_logprobs) == (
                of_each_kind[0].outputs,
                of_each_kind[0].prompt_logprobs,
            )
        return of_each_kind[0]

    return generate


@pytest.fixture(scope="module")
def demo_llm():
    from vllm_ext import LLM

    with LLM(platform="cpu", dtype="float32", enable_prefix_caching=False) as llm:
        yield llm


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_new_makes_up_the_whole_in_a_stream(demo_llm, whole, case):
    pieces = list(demo_llm.stream(PROMPT, SamplingParams(max_tokens=24, **case, output_kind=DELTA)))

    check(pieces, whole(case))
    assert len(pieces) > 2
    assert all(len(piece.token_ids) <= 1 for output in pieces for piece in output.outputs)


def test_a_stream_of_final_outputs_has_one_for_each_prompt(demo_llm):
    params = [SamplingParams(temperature=0, max_tokens=n, output_kind=FINAL_ONLY) for n in (3, 6)]
    outputs = list(demo_llm.stream([PROMPT, PROMPT], params))

    assert [(output.finished, len(output.outputs[0].token_ids)) for output in outputs] == [(True, 3), (True, 6)]


def test_requests_of_several_kinds_share_a_stream(demo_llm):
    params = [SamplingParams(temperature=0, max_tokens=6, output_kind=kind) for kind in RequestOutputKind]
    outputs = list(demo_llm.stream([PROMPT] * 3, params))

    ids = sorted({output.request_id for output in outputs}, key=int)
    counts = [[len(o.outputs[0].token_ids) for o in outputs if o.request_id == request_id] for request_id in ids]
    assert counts == [[1, 2, 3, 4, 5, 6], [1] * 6, [6]]


def test_a_request_that_is_aborted_and_its_successor_of_the_same_name_have_their_own_pieces(demo_llm):
    engine = demo_llm.llm_engine
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=9, output_kind=DELTA))
    tokens = [engine.step()[0].outputs[0].token_ids for _ in range(3)]
    engine.abort_request("a")
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=2, output_kind=DELTA))

    aborted, first = engine.step()
    (last,) = engine.step()

    assert [*map(len, tokens)] == [1, 1, 1]
    assert (aborted.outputs[0].token_ids, aborted.outputs[0].finish_reason) == ([], "abort")
    assert (first.outputs[0].token_ids, last.outputs[0].token_ids) == (tokens[0], tokens[1])
    assert not [*filter(len, (engine.step() for _ in range(engine.has_unfinished_requests())))]


class TestAsync:
    @pytest.mark.parametrize("core_process", [False, True])
    def test_what_is_new_makes_up_the_whole(self, whole, core_process):
        from vllm_ext import AsyncLLM

        async def read(engine: AsyncLLM, case: dict) -> list[RequestOutput]:
            params = SamplingParams(max_tokens=24, **case, output_kind=DELTA)
            return [output async for output in engine.generate(PROMPT, params)]

        async def main() -> None:
            settings = {"enable_prefix_caching": False, "core_process": core_process}
            async with AsyncLLM(platform="cpu", dtype="float32", **settings) as engine:
                for case, pieces in zip(CASES, await asyncio.gather(*(read(engine, c) for c in CASES)), strict=True):
                    check(pieces, whole(case))
                params = SamplingParams(temperature=0, max_tokens=5, output_kind=FINAL_ONLY)
                (only,) = [output async for output in engine.generate(PROMPT, params)]
                assert (only.finished, len(only.outputs[0].token_ids)) == (True, 5)

        run(main)

    def test_a_reader_that_is_slow_gets_larger_pieces(self, make_async_llm):
        params = SamplingParams(temperature=0, max_tokens=9, output_kind=DELTA)

        async def main() -> None:
            engine = make_async_llm()
            outputs = engine.generate([1, 2], params)
            pieces = [await anext(outputs)]
            while (await engine.get_stats()).num_running_reqs:
                pass
            pieces += [output async for output in outputs]

            assert sum(len(piece.outputs[0].token_ids) for piece in pieces) == 9
            assert len(pieces) <= 2

        run(main)

    def test_the_last_piece_of_an_aborted_request_has_nothing_twice(self, make_async_llm):
        params = SamplingParams(temperature=0, max_tokens=60, output_kind=DELTA)

        async def main() -> None:
            engine = make_async_llm()
            pieces = []
            async for output in engine.generate([1, 2], params, "mine"):
                pieces.append(output)
                await engine.abort("mine")
            whole = Whole(pieces)
            assert whole.ends[0][0] == "abort"
            assert len(whole.token_ids[0]) == sum(len(o.outputs[0].token_ids) for o in pieces) < 60

        run(main)


def test_other_kinds_are_refused():
    kinds = "RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY"

    with pytest.raises(InvalidRequest, match=f"^output_kind is 'delta'; it takes one of: {kinds}$"):
        SamplingParams(output_kind="delta")
