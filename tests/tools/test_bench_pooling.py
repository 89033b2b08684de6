"""The benchmark of embeddings runs, and compares the same embeddings."""

from __future__ import annotations

from support.tools import load_tool


def test_a_row_for_each_batch_with_equal_embeddings(capsys):
    assert load_tool("bench_pooling").main(["--batch", "1", "3", "--repeats", "1"]) == 0

    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "batch"
    assert [row.split()[0] for row in rows] == ["1", "3"]
    assert all(float(row.split()[-1]) > 0.99999 for row in rows)


def test_texts_are_the_same_each_time():
    tool = load_tool("bench_pooling")

    assert tool.make_texts(5) == tool.make_texts(5)
    assert len(set(tool.make_texts(5))) == 5
