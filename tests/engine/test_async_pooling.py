"""``AsyncLLM.encode``: requests that are cancelled or aborted while others go on, on long prompts in small steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from support.async_engine import HANG_S

from vllm_ext import AsyncLLM, PoolingParams
from vllm_ext.errors import InvalidRequest

LONG = [3 + i % 90 for i in range(250)]
SHORT = [[7, i, 9] for i in range(3, 9)]


@pytest.fixture(scope="module")
def expected(random_llama: Path) -> torch.Tensor:
    """Means of transformers' states of the short prompts, of length 1."""
    model = transformers.AutoModel.from_pretrained(random_llama, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [model(torch.tensor([prompt])).last_hidden_state[0].mean(dim=0) for prompt in SHORT]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.fixture
def engine(random_llama: Path, request: pytest.FixtureRequest) -> Iterator[AsyncLLM]:
    """One whose steps have two tokens: a long prompt takes 125 of them, one such prompt after another."""
    settings = {"runner": "pooling", "pooling_type": "MEAN", "dtype": "float32"}
    settings["core_process"] = getattr(request, "param", False)
    made = AsyncLLM(random_llama, platform="cpu", max_num_batched_tokens=2, max_num_seqs=2, **settings)
    yield made
    made.shutdown()


either_core = pytest.mark.parametrize("engine", [False, True], ids=["a thread", "a core process"], indirect=True)


async def pooled(engine: AsyncLLM, prompt: list[int], request_id: str | None = None) -> torch.Tensor:
    (output,) = [output async for output in engine.encode(prompt, PoolingParams(task="embed"), request_id)]
    assert output.finished
    assert request_id in (None, output.request_id)
    return output.outputs.data


async def until(engine: AsyncLLM, is_so: Callable[..., bool]) -> None:
    """Wait until ``is_so`` of the engine's statistics."""
    async with asyncio.timeout(HANG_S):
        while not is_so(await engine.get_stats()):
            await asyncio.sleep(0)


async def until_idle(engine: AsyncLLM) -> None:
    await until(engine, lambda stats: not stats.num_running_reqs + stats.num_waiting_reqs)


def run(engine: AsyncLLM, main: Callable[[], object]) -> None:
    async def within() -> None:
        async with engine:
            await main()

    asyncio.run(within())


@either_core
def test_requests_that_are_aborted_halfway_have_no_numbers_and_others_go_on(engine, expected):
    async def main() -> None:
        doomed = [asyncio.create_task(pooled(engine, LONG, f"doomed {i}")) for i in range(8)]
        await until(engine, lambda stats: stats.num_running_reqs > 0)
        others = [asyncio.create_task(pooled(engine, prompt)) for prompt in SHORT]
        await engine.abort([f"doomed {i}" for i in range(8)])

        shapes = [result.shape for result in await asyncio.gather(*doomed)]
        # On a machine that is busy, the first ones may have been served.
        assert set(shapes) <= {(0,), (64,)}
        assert shapes[-1] == (0,)
        torch.testing.assert_close(torch.stack(await asyncio.gather(*others)), expected, atol=2e-5, rtol=0)
        await until_idle(engine)

    run(engine, main)


@either_core
def test_tasks_that_are_cancelled_halfway_end_their_requests_and_others_go_on(engine, expected):
    async def main() -> None:
        doomed = [asyncio.create_task(pooled(engine, LONG)) for _ in range(8)]
        await until(engine, lambda stats: stats.num_running_reqs > 0)
        others = [asyncio.create_task(pooled(engine, prompt)) for prompt in SHORT]
        for task in doomed:
            task.cancel()

        results = await asyncio.gather(*doomed, return_exceptions=True)
        assert isinstance(results[-1], asyncio.CancelledError)
        torch.testing.assert_close(torch.stack(await asyncio.gather(*others)), expected, atol=2e-5, rtol=0)
        await until_idle(engine)

    run(engine, main)


def test_tasks_that_are_cancelled_before_they_begin_leave_nothing(engine, expected):
    async def main() -> None:
        tasks = [asyncio.create_task(pooled(engine, LONG)) for _ in range(12)]
        for number, task in enumerate(tasks):
            for _ in range(number % 4):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)

        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await until_idle(engine)
        torch.testing.assert_close(await pooled(engine, SHORT[0]), expected[0], atol=2e-5, rtol=0)

    run(engine, main)


def test_a_request_for_generation_among_those_that_pool_is_refused_alone(engine, expected):
    async def main() -> None:
        tasks = [asyncio.create_task(pooled(engine, prompt)) for prompt in SHORT]
        with pytest.raises(InvalidRequest, match="pools, and the request is for generation"):
            await anext(engine.generate([3, 4]))

        torch.testing.assert_close(torch.stack(await asyncio.gather(*tasks)), expected, atol=2e-5, rtol=0)

    run(engine, main)


def test_a_model_that_generates_refuses_encode_and_generates_on(random_llama):
    engine = AsyncLLM(random_llama, platform="cpu")

    async def main() -> None:
        with pytest.raises(InvalidRequest, match="set engine.runner to 'pooling'"):
            await anext(engine.encode([3, 4]))
        assert [output async for output in engine.generate([3, 4])][-1].finished

    try:
        run(engine, main)
    finally:
        engine.shutdown()
