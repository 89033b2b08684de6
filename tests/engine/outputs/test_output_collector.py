"""What one reader gets: merged states, in order, and nothing lost."""

from __future__ import annotations

import asyncio

from support.async_engine import run

from vllm_ext.contracts.outputs import CompletionOutput, RequestOutput
from vllm_ext.engine.outputs.output_collector import RequestOutputCollector, merge_outputs


def make_output(*counts: int | None, finished: bool = False) -> RequestOutput:
    """A state in which completion ``i`` has that many tokens; nothing about those with ``None``."""
    completions = [CompletionOutput(i, "x" * n, [i] * n) for i, n in enumerate(counts) if n is not None]
    return RequestOutput("internal", None, [1], outputs=completions, finished=finished)


class TestCollector:
    def test_states_are_merged_until_they_are_read(self):
        async def main() -> None:
            collector = RequestOutputCollector("mine")
            for count in (1, 2, 3):
                collector.put(make_output(count))
            output = await collector.get()
            collector.put(make_output(4, finished=True))

            assert (output.request_id, output.outputs) == ("mine", make_output(3).outputs)
            assert (await collector.get()).finished

        run(main)

    def test_completions_of_which_the_later_state_says_nothing_are_kept(self):
        merged = merge_outputs(make_output(1, 5), make_output(2, None, 7, finished=True))

        assert merged == make_output(2, 5, 7, finished=True)

    def test_a_reader_that_waits_is_woken(self):
        async def main() -> None:
            collector = RequestOutputCollector("mine")
            reader = asyncio.create_task(collector.get())
            await asyncio.sleep(0)
            collector.put(make_output(1))

            assert (await reader).outputs == make_output(1).outputs

        run(main)
