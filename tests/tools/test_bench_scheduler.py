"""tools/bench_scheduler.py: what it measures and prints; the figures themselves are never tested."""

from __future__ import annotations

import json

from support.tools import load_tool

tool = load_tool("bench_scheduler")


def test_every_batch_is_timed(capsys):
    assert tool.main(["--batch", "1", "3", "--tokens", "20", "--repeats", "1"]) == 0

    rows = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in rows] == [1, 3]
    assert all(row["us_per_step"] > 0 for row in rows)


def test_all_requests_are_in_every_step():
    scheduler = tool.make_scheduler(3)
    for name in ("a", "b", "c"):
        scheduler.add_request(tool.Request(name, [1, 2], tool.SamplingParams(max_tokens=5)))

    for _ in range(3):
        output = scheduler.schedule()
        assert set(output.num_scheduled_tokens) == {"a", "b", "c"}
        assert len(scheduler.update_from_output(output, tool.answer(output))) == 3
