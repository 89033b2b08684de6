"""Whose contract a plugin has to keep: vllm_ext's, or that of the vLLM which is the host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.distributions import GENERAL, PLATFORM, config

from vllm_ext.contracts.groups import (
    ENDPOINT_PLUGINS_GROUP,
    IO_PROCESSOR_PLUGINS_GROUP,
    KIND_OF_GROUP,
    LOGITSPROCS_GROUP,
    STAT_LOGGER_PLUGINS_GROUP,
)
from vllm_ext.discovery import find_providers, scan
from vllm_ext.managers.planned import NamedPlugins
from vllm_ext.managers.platforms import PlatformCandidate
from vllm_ext.plan import Outcome, resolve

VLLM = {
    "vllm/platforms/interface.py": "class Platform: ...\n",
    "vllm/plugins/io_processors/interface.py": "class IOProcessor: ...\n",
    "vllm/v1/metrics/loggers.py": (
        "from abc import ABC, abstractmethod\nclass StatLoggerBase(ABC):\n"
        "    @abstractmethod\n    def record(self, scheduler_stats, iteration_stats): ...\n"
    ),
    "vllm/v1/sample/logits_processor/interface.py": "class LogitsProcessor: ...\n",
    "vllm/v1/worker/gpu/sample/logits_processor/interface.py": "class LogitsProcessor: ...\n",
}
"""The classes by which vLLM 0.32 knows plugins, where they are."""
PACKAGES = {f"{parent}/__init__.py": "" for path in VLLM for parent in Path(path).parents if parent.name}

ACME = """
from vllm.platforms.interface import Platform
from vllm.plugins.io_processors.interface import IOProcessor
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import interface

class Npu(Platform): ...
class Tables(IOProcessor): ...
class Count(StatLoggerBase):
    def record(self, scheduler_stats, iteration_stats): ...
class Lacks(StatLoggerBase): ...
class First(LogitsProcessor): ...
class Second(interface.LogitsProcessor): ...
class Routes:
    name, required_tasks = "routes", None
    def attach_router(self, app): ...
    async def init_state(self, engine_client, state, args): ...

def npu(): return "acme.Npu"
def colon(): return "acme:Npu"
def tables(): return "acme.Tables"
def run(config=None): assert config is None
"""

PLAIN = """
def npu(): return "plain.Npu"
"""


@pytest.fixture
def load(plugins):
    """What becomes of the value, in the group, of a plugin ``a`` that is written for vLLM."""

    def load(group: str, value: str, host: str = "vllm", vllm: dict[str, str] = VLLM) -> Outcome:
        plugins.distribution("vllm", {}, {**PACKAGES, **vllm})
        plugins.distribution("acme", {group: [f"a = {value}"]}, {"acme.py": ACME, "plain.py": PLAIN})
        plan = resolve(scan(), config(host=host, options={"a": {"key": 1}}), find_providers(["vllm"]))
        (decision,) = plan.find(KIND_OF_GROUP[group].key, "a")
        if group == PLATFORM:
            return PlatformCandidate(plan, decision).outcome
        return NamedPlugins(plan, [decision], namespace=group, invoke_on_load=True).outcomes[0]

    return load


@pytest.mark.parametrize(
    ("group", "value"),
    [
        (GENERAL, "acme:run"),
        (PLATFORM, "acme:npu"),
        (IO_PROCESSOR_PLUGINS_GROUP, "acme:tables"),
        (STAT_LOGGER_PLUGINS_GROUP, "acme:Count"),
        (LOGITSPROCS_GROUP, "acme:First"),
        (LOGITSPROCS_GROUP, "acme:Second"),
        (ENDPOINT_PLUGINS_GROUP, "acme:Routes"),
    ],
)
def test_where_vllm_is_the_host_its_own_classes_are_right(load, group, value):
    outcome = load(group, value)

    assert (outcome.state, outcome.detail) == ("active", "")


@pytest.mark.parametrize(
    ("group", "value", "detail"),
    [
        (GENERAL, "acme", r"'acme' is not callable, and vLLM calls it, but <module 'acme'"),
        (PLATFORM, "acme:Npu", r"'acme:Npu' is the class itself; .* that returns the class path, 'acme.Npu'"),
        (PLATFORM, "acme:colon", r"returned 'acme:Npu', and vLLM takes a class path with dots only: 'acme.Npu'"),
        (PLATFORM, "acme:tables", r"'acme.Tables' is not a subclass of vllm.platforms.interface.Platform"),
        (
            STAT_LOGGER_PLUGINS_GROUP,
            "acme:Lacks",
            r"acme.Lacks does not implement record; vllm.v1.metrics.loggers",
        ),
        (
            LOGITSPROCS_GROUP,
            "acme:Count",
            r"'acme:Count' is not a subclass of vllm.v1.sample.logits_processor.interface.LogitsProcessor or "
            r"vllm.v1.worker.gpu.sample.logits_processor.interface.LogitsProcessor, but <class 'acme.Count'>",
        ),
    ],
)
def test_what_vllm_would_not_take_fails(load, group, value, detail):
    outcome = load(group, value)

    assert outcome.state == "failed"
    assert re.search(detail, outcome.detail)


def test_a_vllm_without_the_class_is_named(load):
    older = VLLM | {"vllm/platforms/interface.py": ""}

    assert load(PLATFORM, "plain:npu", vllm=older).detail == (
        "ContractError: platform plugin 'a' of acme 0.1 cannot be checked: the vLLM that is the host has no "
        "vllm.platforms.interface.Platform: AttributeError: module 'vllm.platforms.interface' has no attribute "
        "'Platform'"
    )


@pytest.mark.parametrize(
    ("group", "value", "theirs", "ours"),
    [
        (PLATFORM, "acme:npu", "vllm.platforms.interface.Platform", "Platform"),
        (IO_PROCESSOR_PLUGINS_GROUP, "acme:tables", "vllm.plugins.io_processors.interface.IOProcessor", "IOProcessor"),
        (STAT_LOGGER_PLUGINS_GROUP, "acme:Count", "vllm.v1.metrics.loggers.StatLoggerBase", "StatLoggerBase"),
    ],
)
def test_the_embedded_host_says_that_a_class_is_vllms(load, group, value, theirs, ours):
    outcome = load(group, value, host="embedded")

    assert outcome.state == "failed"
    assert outcome.detail.endswith(
        f"; it is one of vLLM's, by {theirs}, and the host 'embedded' has classes of its own: derive it from {ours} of "
        "vllm_ext, or, if it is for a vLLM, set host: vllm"
    )
