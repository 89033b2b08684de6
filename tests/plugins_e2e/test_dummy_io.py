"""IO processors on both platforms, and the parts of the examples that need no model."""

from __future__ import annotations

import pytest
from support.async_engine import check_books, run
from support.io_processors import install

from vllm_ext import LLM, AsyncLLM, SamplingParams


@pytest.fixture
def examples(plugins):
    plugins.project("vllm_ext_dummy_csv")
    plugins.project("vllm_ext_dummy_chunks")
    return plugins


class TestGeneration:
    """A processor whose prompts a model goes on from, on both platforms."""

    @pytest.fixture(params=["cpu", "dummy"])
    def options(self, plugins, request):
        plugins.project("vllm_ext_dummy_platform")
        install(plugins)
        return {"dtype": "float32", "platform": request.param, "io_processor_plugin": "split"}

    def test_texts_become_their_continuations(self, options):
        params = SamplingParams(temperature=0, max_tokens=4)
        with LLM(**options) as llm:
            alone = [llm.generate(text, params)[0].outputs[0].text for text in ("She had", "He was")]
            (output,) = llm.generate({"data": "She had|He was"})

        assert output.outputs == ("She had|He was", alone)

    def test_texts_become_their_continuations_in_a_loop_as_well(self, options):
        async def main() -> None:
            engine = AsyncLLM(**options)
            try:
                (output,) = [output async for output in engine.generate({"data": "She had|He was"})]
                assert output.outputs[0] == "She had|He was"
                assert all(output.outputs[1])
                await check_books(engine)
            finally:
                engine.shutdown()

        run(main)


class TestSplitter:
    @pytest.mark.parametrize(
        "text, limit, parts",
        [
            ("one two three", 7, ["one two", "three"]),
            ("one two three", 99, ["one two three"]),
            ("  one \n\n two  ", 3, ["one", "two"]),
            ("abcdefgh ij", 3, ["abc", "def", "gh", "ij"]),
            ("abcdefg hi", 3, ["abc", "def", "g", "hi"]),
            ("a b c d e f g h", 5, ["a b c", "d e f", "g h"]),
            (" \n", 5, []),
        ],
    )
    def test_parts_are_as_long_as_fits(self, examples, text, limit, parts):
        from vllm_ext_dummy_chunks.splitter import split

        assert [text[slice(*span)] for span in split(text, lambda part: len(part) <= limit)] == parts

    def test_a_limit_that_nothing_fits_is_an_error(self, examples):
        from vllm_ext_dummy_chunks.splitter import split

        with pytest.raises(ValueError, match="not even character 1, 'a', fits into a chunk"):
            list(split(" abc", lambda part: False))
