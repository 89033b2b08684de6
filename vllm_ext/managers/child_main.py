"""What runs in the child process: load one plugin, report, and leave at once.

The parent gives the request on standard input, and a pipe for reports, which are lines of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.groups import PLATFORM
from vllm_ext.contracts.platform import Platform
from vllm_ext.managers.child_report import PIPE_CLOSED, ChildReport
from vllm_ext.managers.current import set_default_bound_plan
from vllm_ext.managers.planned import NamedPlugins
from vllm_ext.managers.platforms import PlatformCandidate, bind_platform
from vllm_ext.managers.side_effects import SideEffects
from vllm_ext.plan import Decision, DecisionKey, Outcome, Plan, plan_from_dict

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl()."""


def main(report_fd: int) -> None:
    """Load the plugin that standard input names, and report its outcome. Does not return."""
    _end_with_parent()
    request = json.loads(sys.stdin.buffer.read())
    # What a plugin reads from standard input is not the request.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A duplicate, which a plugin that closes standard error does not reach.
    errors = os.fdopen(os.dup(2), "w")
    faulthandler.enable(errors)

    def report(stage: Literal["started", "imported", "used"], **values: Any) -> None:
        try:
            os.write(report_fd, msgspec.json.encode(ChildReport(stage, **values)) + b"\n")
        except OSError:
            os._exit(PIPE_CLOSED)

    plan = plan_from_dict(request["plan"], Plan)
    decision = next(d for d in plan.decisions if d.key == DecisionKey(*request["key"]))
    _answer_for_process(plan)
    report("started")
    faulthandler.dump_traceback_later(request["timeout_s"], exit=True, file=errors)
    before = SideEffects()
    outcome = _load(plan, decision, lambda: report("imported"))
    report(
        "used",
        outcome=msgspec.to_builtins(dataclasses.replace(outcome, error=None)),
        effects=before.found(),
        imports_torch="torch" in sys.modules,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads and exit handlers of the plugin have no say in when this ends.
    os._exit(0)


def _end_with_parent() -> None:
    """Where the system can, let it kill this process when its parent ends, however that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer_for_process(plan: Plan) -> None:
    """What a plugin is told that asks for the platform, or for all plugins: of the others none runs here."""
    set_default_bound_plan(msgspec.structs.replace(plan, decisions=()).bind(None))
    current_platform.set_resolver(lambda: _bind(plan))


def _bind(plan: Plan) -> Platform:
    plan.require_valid()
    return bind_platform(plan).platform


def _load(plan: Plan, decision: Decision, on_imported: Callable[[], None]) -> Outcome:
    """Load and use the plugin as an engine would; what it raises is in the outcome, an interrupt of its own as well."""
    try:
        if decision.kind == PLATFORM.key:
            return _ObservedPlatform(on_imported, plan, decision).outcome
        return _ObservedPlugin(on_imported, plan, [decision], decision.group, invoke_on_load=True).outcomes[0]
    except KeyboardInterrupt as error:
        return Outcome.of_error(decision, error)


class _ObservedPlugin(NamedPlugins):
    """Tells when the import is done, before the plugin is used."""

    def __init__(self, on_imported: Callable[[], None], *args: Any, **kwargs: Any) -> None:
        self._on_imported = on_imported
        super().__init__(*args, **kwargs)

    def use(self, decision: Decision, plugin: Any) -> Any:
        self._on_imported()
        return super().use(decision, plugin)


class _ObservedPlatform(_ObservedPlugin, PlatformCandidate):
    """The same for a platform, whose class is built as well."""
