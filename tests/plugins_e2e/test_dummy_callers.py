"""Where the engine calls the platform, by the second column of COMPATIBILITY.md: with a worker of the platform's own,
and with the in-tree one."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import pytest
from support.compatibility import ROOT, rows_of

from vllm_ext import LLM, SamplingParams

ROWS = [(function, caller) for function, caller, _ in rows_of("Documented functions") if "::" in caller]
IN_TREE_WORKER = {"worker.cls": "vllm_ext.worker.worker.Worker"}


def note_callers(cls: type, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """From now on, in which functions of the engine each method that ``cls`` overrides is called, by way of others or
    not: ``path/of/module.py::qualified.name`` by method.
    """
    seen: dict[str, set[str]] = defaultdict(set)

    def noting(name: str, value: Any) -> Any:
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)

        def noted(*args: Any, **kwargs: Any) -> Any:
            frame = sys._getframe(1)
            while frame is not None:
                if frame.f_code.co_filename.startswith(f"{ROOT}/vllm_ext/"):
                    path = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
                    seen[name].add(f"{path}::{frame.f_code.co_qualname}")
                frame = frame.f_back
            return function(*args, **kwargs)

        return (
            property(noted) if isinstance(value, property) else type(value)(noted) if value is not function else noted
        )

    for name, value in list(vars(cls).items()):
        if isinstance(value, property | classmethod) and not name.startswith("_"):
            monkeypatch.setattr(cls, name, noting(name, value))
    return seen


def test_the_engine_calls_every_override_of_the_platform_where_the_page_says(
    plugins, random_llama, tmp_path, monkeypatch
):
    plugins.project("vllm_ext_dummy_platform")
    monkeypatch.setenv("DUMMY_VISIBLE_DEVICES", "dummy0")
    from vllm_ext_dummy_platform.my_dummy_platform import MyDummyPlatform

    overridden = {name for name, value in vars(MyDummyPlatform).items() if isinstance(value, property | classmethod)}
    seen = note_callers(MyDummyPlatform, monkeypatch)
    for overrides in ({}, IN_TREE_WORKER):
        with LLM(random_llama, platform="dummy", quantization="int8", overrides=overrides) as llm:
            llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=2))

    expected = {function.removeprefix("Platform."): caller for function, caller in ROWS}
    elsewhere = {
        name: (caller, sorted(seen[name]))
        for name, caller in expected.items()
        if name in overridden and not any(found.startswith(caller) for found in seen[name])
    }
    assert elsewhere == {}
