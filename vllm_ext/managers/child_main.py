"""What runs in the child process: load one plugin, report, and leave at once.

The parent gives the request on standard input, and a pipe for reports, which are lines of JSON.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple

import msgspec

from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.groups import PLATFORM
from vllm_ext.contracts.platform import Platform
from vllm_ext.errors import dotted_path
from vllm_ext.managers.child_report import PIPE_CLOSED, ChildReport
from vllm_ext.managers.current import set_default_bound_plan
from vllm_ext.managers.host_contracts import kind_of
from vllm_ext.managers.new_python import end_with_parent
from vllm_ext.managers.planned import NamedPlugins
from vllm_ext.managers.platforms import PlatformCandidate, bind_platform
from vllm_ext.managers.registrations import Registrations
from vllm_ext.managers.side_effects import SideEffects
from vllm_ext.plan import Decision, DecisionKey, Outcome, Plan, plan_from_dict


def main(report_fd: int) -> None:
    """Load the plugin that standard input names, and report its outcome. Does not return."""
    end_with_parent()
    request = json.loads(sys.stdin.buffer.read())
    # What a plugin reads from standard input is not the request.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A duplicate, which a plugin that closes standard error does not reach.
    errors = os.fdopen(os.dup(2), "w")
    faulthandler.enable(errors)

    def report(stage: Literal["started", "imported", "used", "again"], **values: Any) -> None:
        try:
            os.write(report_fd, msgspec.json.encode(ChildReport(stage, **values)) + b"\n")
        except OSError:
            os._exit(PIPE_CLOSED)

    plan = plan_from_dict(request["plan"], Plan)
    decision = next(d for d in plan.decisions if d.key == DecisionKey(*request["key"]))
    _answer_for_process(plan)
    report("started")
    faulthandler.dump_traceback_later(request["timeout_s"], exit=True, file=errors)
    before, registrations = SideEffects(), Registrations()
    loaded = _load(plan, decision, lambda: report("imported"))
    report(
        "used",
        outcome=_as_values(loaded.outcome),
        effects=before.found(),
        imports_torch="torch" in sys.modules,
        registered=registrations.found(decision.distribution),
        class_paths=registrations.class_paths(decision.distribution),
    )
    if request["again"]:
        faulthandler.dump_traceback_later(request["timeout_s"], exit=True, file=errors)
        again = _load_again(plan, decision, loaded)
        report("again", outcome=None if again is None else _as_values(again))
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads and exit handlers of the plugin have no say in when this ends.
    os._exit(0)


def _answer_for_process(plan: Plan) -> None:
    """What a plugin is told that asks for the platform, or for all plugins: of the others none runs here."""
    set_default_bound_plan(msgspec.structs.replace(plan, decisions=()).bind(None))
    current_platform.set_resolver(lambda: _bind(plan))


def _bind(plan: Plan) -> Platform:
    plan.require_valid()
    return bind_platform(plan).platform


class _Loaded(NamedTuple):
    """What became of the plugin; where it works, what its entry point names, and what it gave."""

    outcome: Outcome
    plugin: Any = None
    given: Any = None


def _load(plan: Plan, decision: Decision, on_imported: Callable[[], None]) -> _Loaded:
    """Load and use the plugin as an engine would; what it raises is in the outcome, an interrupt of its own as well."""
    try:
        manager: NamedPlugins
        if decision.kind == PLATFORM.key:
            manager = _ObservedPlatform(on_imported, plan, decision)
        else:
            manager = _ObservedPlugin(on_imported, plan, [decision], decision.group, invoke_on_load=True)
    except KeyboardInterrupt as error:
        return _Loaded(Outcome.of_error(decision, error))
    for extension in manager:
        return _Loaded(manager.outcomes[0], extension.plugin, extension.obj)
    return _Loaded(manager.outcomes[0])


def _load_again(plan: Plan, decision: Decision, first: _Loaded) -> Outcome | None:
    """Do the same once more, as other parts of an engine may: what it gives has to be of the same kind.

    Returns: ``None`` where nothing is called in a load, or where the first one has failed.
    """
    kind = kind_of(decision)
    if first.outcome.state != "active" or not kind.is_called or isinstance(first.plugin, ModuleType):
        return None
    second = _load(plan, decision, lambda: None)
    before, now = _class_of(first.given), _class_of(second.given)
    # What a hook returns is nobody's business.
    if kind.form == "hook" or second.outcome.state != "active" or before == now:
        return second.outcome
    detail = f"the first call gave {before}, the second one {now}"
    return dataclasses.replace(second.outcome, state="failed", detail=detail)


def _class_of(given: Any) -> str:
    return dotted_path(given if isinstance(given, type) else type(given))


def _as_values(outcome: Outcome) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(dataclasses.replace(outcome, error=None))
    return values


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
