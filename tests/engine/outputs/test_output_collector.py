"""What one reader gets: states in order, and nothing lost."""

from __future__ import annotations

import asyncio

from support.async_engine import run

from vllm_ext.contracts.outputs import CompletionOutput, RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.outputs.output_collector import RequestOutputCollector
from vllm_ext.engine.outputs.output_processor import OutputProcessor
from vllm_ext.engine.outputs.parallel_sampling import split_completions
from vllm_ext.engine.scheduling.request import EngineCoreOutput


def make_output(count: int, finished: bool = False) -> RequestOutput:
    """A state with that many tokens."""
    return RequestOutput(
        "internal", None, [1], outputs=[CompletionOutput(0, "x" * count, [0] * count)], finished=finished
    )


class TestCollector:
    def test_the_newest_state_stands_for_those_that_were_not_read(self):
        async def main() -> None:
            collector = RequestOutputCollector("mine")
            for count in (1, 2, 3):
                collector.put(make_output(count))
            output = await collector.get()
            collector.put(make_output(4, finished=True))

            assert (output.request_id, output.outputs) == ("mine", make_output(3).outputs)
            assert (await collector.get()).finished

        run(main)

    def test_no_completion_is_missing_that_only_an_earlier_step_went_on_with(self):
        params = SamplingParams(n=3, detokenize=False)
        parent, requests = split_completions(None, EngineCoreRequest("internal", [1], params, frozenset()))
        processor = OutputProcessor(tokenizer=None)
        processor.add_completions(None, requests, parent)
        first, second, third = (request.request_id for request in requests)
        steps = [{first: [4], second: [5]}, {first: [6], third: [7]}, {second: [8]}]

        async def main() -> None:
            collector = RequestOutputCollector("mine")
            for step in steps:
                outputs = [EngineCoreOutput(core_id, token_ids) for core_id, token_ids in step.items()]
                for output in processor.process_outputs(outputs).request_outputs:
                    collector.put(output)

            assert [completion.token_ids for completion in (await collector.get()).outputs] == [[4, 6], [5, 8], [7]]

        run(main)

    def test_a_reader_that_waits_is_woken(self):
        async def main() -> None:
            collector = RequestOutputCollector("mine")
            reader = asyncio.create_task(collector.get())
            await asyncio.sleep(0)
            collector.put(make_output(1))

            assert (await reader).outputs == make_output(1).outputs

        run(main)
