"""The example IO processors: tables and long documents through a pooling model, on both platforms."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from support.async_engine import check_books, run, until
from support.io_processors import install

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.cli.main import main
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.dispatch.hf_config import DEMO_MODEL
from vllm_ext.errors import InvalidRequest

ROOT = Path(__file__).parent.parent.parent
TABLE = 'id,text,note\n1,"She had, as ever,\na small fortune",x\n2,,empty\n3,He was “gone”,\n'
TEXTS = ["She had, as ever,\na small fortune", "He was “gone”"]
DOCUMENT = (DEMO_MODEL / "README.md").read_text()


@pytest.fixture
def examples(plugins):
    plugins.project("vllm_ext_dummy_csv")
    plugins.project("vllm_ext_dummy_chunks")
    return plugins


@pytest.fixture(params=["cpu", "dummy"])
def start(examples, request):
    """Start an engine with one of the examples, on both platforms."""
    examples.project("vllm_ext_dummy_platform")
    made = []

    def start(cls: type, name: str, **options):
        options = {"runner": "pooling", "dtype": "float32", "platform": request.param, **options}
        made.append(cls(io_processor_plugin=name, **options))
        return made[-1]

    yield start
    for engine in made:
        engine.close() if isinstance(engine, LLM) else engine.shutdown()


def answer(llm: LLM, data: object, params: PoolingParams | None = None):
    (output,) = llm.encode({"data": data}, params, pooling_task="plugin")
    assert isinstance(output, PoolingRequestOutput)
    return output.outputs


async def async_answer(engine: AsyncLLM, data: object, number: int):
    """``number`` is any that no other request of the test has."""
    (output,) = [output async for output in engine.encode({"data": data}, PoolingParams(), f"request {number}")]
    assert output.request_id == f"request {number}"
    return output.outputs


def embeddings_of(llm: LLM, texts: list[str]) -> list[list[float]]:
    """Of each text by itself, without any processor."""
    return [llm.embed(text)[0].outputs.embedding for text in texts]


def rows_of(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def state_of(engine) -> dict:
    requests = engine._data_requests
    processor = requests.processor if isinstance(engine, LLM) else requests._requests.processor
    return processor.tables if hasattr(processor, "tables") else processor.chunks


class TestCSV:
    def test_rows_get_the_embedding_of_their_text_and_keep_all_else(self, start):
        llm = start(LLM, "csv_embeddings")

        rows = rows_of(answer(llm, TABLE))

        given = rows_of(TABLE)
        assert [{key: row[key] for key in given[0]} for row in rows] == given
        assert rows[1]["embedding"] == ""
        found = [json.loads(row["embedding"]) for row in (rows[0], rows[2])]
        assert found == [pytest.approx(expected, abs=1e-5) for expected in embeddings_of(llm, TEXTS)]
        assert [math.hypot(*vector) for vector in found] == pytest.approx([1, 1])
        assert state_of(llm) == {}

    def test_concurrent_tables_keep_apart(self, start):
        tables = [f"id,text\n{number},The {number}th man\n{number + 1},and more\n" for number in range(20)]

        async def main() -> None:
            engine = start(AsyncLLM, "csv_embeddings", max_num_seqs=8)
            answers = await asyncio.gather(*(async_answer(engine, table, n) for n, table in enumerate(tables)))
            for table, found in zip(tables, answers, strict=True):
                assert [(row["id"], row["text"]) for row in rows_of(found)] == [
                    (row["id"], row["text"]) for row in rows_of(table)
                ]
            first = [json.loads(rows_of(found)[0]["embedding"]) for found in answers]
            assert len({tuple(vector) for vector in first}) == len(tables)
            again = await async_answer(engine, tables[7], 100)
            assert json.loads(rows_of(again)[0]["embedding"]) == pytest.approx(first[7], abs=1e-5)
            assert state_of(engine) == {}
            await check_books(engine)

        run(main)

    def test_the_users_pooling_parameters_are_followed(self, examples):
        with LLM(runner="pooling", io_processor_plugin="csv_embeddings") as llm:
            given = PoolingParams(use_activation=False)
            rows = rows_of(answer(llm, TABLE, given))

        assert math.hypot(*json.loads(rows[0]["embedding"])) != pytest.approx(1, abs=1e-3)
        assert given.task is None, "the user's own are not changed"

    def test_another_column_can_be_chosen(self, examples):
        options = {"options": {"csv_embeddings": {"column": "note"}}}
        with LLM(runner="pooling", io_processor_plugin="csv_embeddings", overrides=options) as llm:
            rows = rows_of(answer(llm, TABLE))

        assert [bool(row["embedding"]) for row in rows] == [True, True, False]

    def test_data_that_is_no_such_table_is_refused(self, examples):
        with LLM(runner="pooling", io_processor_plugin="csv_embeddings") as llm:
            for data, message in (
                (3, "the data is int; it takes the text of a CSV file"),
                ("", "there is no column 'text'; the first line has: nothing"),
                ("id,name\n1,a\n", "there is no column 'text'; the first line has: id, name"),
                ("text,embedding\na,b\n", "there is a column 'embedding' already"),
                ("id,text\n1\n", "row 1 has not as many cells as the first line"),
                ("id,text\n1,a\n1,a,b\n", "row 2 has not as many cells as the first line"),
                ('text\n"a\n', "line 2: unexpected end of data"),
                ("text\n \n", "no row has a text in column 'text'"),
            ):
                with pytest.raises(InvalidRequest, match=f"'csv_embeddings' of .* refuses the request: {message}"):
                    answer(llm, data)
            assert state_of(llm) == {}


class TestChunks:
    @staticmethod
    def check(documents: list[str], chunks: list[dict]) -> None:
        """Every character but space is in one chunk of its document, and they come in order."""
        for number, text in enumerate(documents):
            own = [chunk for chunk in chunks if chunk["document"] == number]
            assert all(before["end"] <= after["start"] for before, after in pairwise(own))
            covered = "".join(text[chunk["start"] : chunk["end"]] for chunk in own)
            assert re.sub(r"\s", "", covered) == re.sub(r"\s", "", text)

    def test_a_document_longer_than_the_model_takes_comes_back_in_parts_with_offsets(self, start):
        llm = start(LLM, "document_chunks", max_model_len=64)
        tokenizer = llm.llm_engine.tokenizer
        assert len(tokenizer.encode(DOCUMENT)) > 3 * 64

        chunks = answer(llm, DOCUMENT)

        self.check([DOCUMENT], chunks)
        texts = [DOCUMENT[chunk["start"] : chunk["end"]] for chunk in chunks]
        assert 32 < max(len(tokenizer.encode(text)) for text in texts) <= 64
        found = [chunk["embedding"] for chunk in chunks]
        assert found == [pytest.approx(expected, abs=1e-5) for expected in embeddings_of(llm, texts)]
        assert state_of(llm) == {}

    def test_several_documents_are_told_apart(self, start):
        documents = ["She had been there", "", DOCUMENT[:300], "x" * 200]

        async def main() -> None:
            engine = start(
                AsyncLLM, "document_chunks", overrides={"options": {"document_chunks": {"chunk_tokens": 20}}}
            )
            chunks = await async_answer(engine, documents, 1)
            self.check(documents, chunks)
            assert {chunk["document"] for chunk in chunks} == {0, 2, 3}
            assert state_of(engine) == {}
            await check_books(engine)

        run(main)

    def test_a_task_that_is_cancelled_leaves_nothing(self, start):
        async def main() -> None:
            engine = start(AsyncLLM, "document_chunks", max_model_len=32, max_num_seqs=2, max_num_batched_tokens=64)
            task = asyncio.ensure_future(async_answer(engine, DOCUMENT * 5, 1))
            await until(lambda: len(engine._requests._collectors) >= 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not state_of(engine))
            await check_books(engine)
            self.check(["She had"], await async_answer(engine, "She had", 2))

        run(main)

    def test_data_that_is_no_text_is_refused(self, examples):
        with LLM(runner="pooling", io_processor_plugin="document_chunks") as llm:
            for data, message in (
                ({"text": "a"}, "the data is dict; it takes a text or a list of texts"),
                (["a", 3], "the data is list; it takes a text or a list of texts"),
                (["", " \n"], "there is no text in it"),
                ([], "there is no text in it"),
            ):
                with pytest.raises(InvalidRequest, match=message):
                    answer(llm, data)


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


def test_the_command_of_the_readme_runs(examples, tmp_path, monkeypatch, capsys):
    (command,) = re.findall(r"`(vllm-ext run --io-processor [^`]*)`", (ROOT / "README.md").read_text())
    (tmp_path / "table.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    arguments = [str(DEMO_MODEL) if word == "DIR" else word for word in shlex.split(command)[1:]]

    code = main([*arguments, "--set", "engine.runner=pooling"])

    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert [bool(row["embedding"]) for row in rows_of(captured.out)] == [True, False, True]


def test_documents_in_a_json_file_become_chunks_in_json(examples, tmp_path, capsys):
    (tmp_path / "documents.json").write_text(json.dumps(["She had", "He was"]))
    data = ["--io-processor", "document_chunks", "--data", str(tmp_path / "documents.json")]

    code = main(["run", *data, "--set", "engine.runner=pooling"])

    captured = capsys.readouterr()
    chunks = json.loads(captured.out)
    assert (code, [(chunk["document"], chunk["start"], chunk["end"]) for chunk in chunks]) == (
        0,
        [(0, 0, 7), (1, 0, 6)],
    )
