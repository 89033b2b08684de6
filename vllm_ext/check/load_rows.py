"""What loading a plugin in a process of its own shows: does it load, may it be called twice, what does it register."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm_ext.check.rows import Row
from vllm_ext.check.source_tree import SourceTree
from vllm_ext.managers.child import LoadReport
from vllm_ext.managers.host_contracts import kind_of
from vllm_ext.plan import Decision

LOAD, TWICE, REGISTERED = "load", "twice", "registered"


def load_row(report: LoadReport) -> Row:
    """Outcome, seconds and effects. That a platform which nobody named declines is no fault of it."""
    outcome = report.outcome
    if outcome.state == "active":
        parts = [_seconds(report), *report.effects]
        return Row(LOAD, "pass", "; ".join(parts))
    if outcome.state == "failed" and (fault := _entry_point_fault(report.decision)):
        return Row(LOAD, "fail", f"it failed: {'; '.join([outcome.detail, *report.effects])}{fault}")
    is_refusal = outcome.state == "unavailable" and not report.decision.named
    verb = "declined" if outcome.state == "unavailable" else "failed"
    return Row(LOAD, "warning" if is_refusal else "fail", f"it {verb}: {'; '.join([outcome.detail, *report.effects])}")


def rows_after_load(report: LoadReport) -> Iterator[Row]:
    """Of a plugin that works: its second call, and what it registered."""
    yield _twice_row(report)
    yield from _registered_rows(report)


def _seconds(report: LoadReport) -> str:
    outcome = report.outcome
    text = f"{outcome.seconds - outcome.call_seconds:.3f} s to import"
    if kind_of(report.decision).is_called:
        text += f", {outcome.call_seconds:.3f} s to call"
    return text + (", torch among it" if report.imports_torch else "")


def _twice_row(report: LoadReport) -> Row:
    again = report.again
    if again is None:
        is_module = kind_of(report.decision).is_called
        what = "a module, whose import is all that runs" if is_module else "a class, which is not called"
        return Row(TWICE, "skipped", f"the entry point names {what}")
    if again.state == "active":
        return Row(TWICE, "pass", "a second call in the same process came to the same")
    verb = "declined" if again.state == "unavailable" else "failed"
    return Row(TWICE, "fail", f"the second call in the same process {verb}: {again.detail}")


def _registered_rows(report: LoadReport) -> Iterator[Row]:
    for sentence in report.registered:
        yield Row(REGISTERED, "pass", sentence)
    tree = SourceTree()
    for what, path in report.class_paths:
        if row := _path_row(tree, what, path):
            yield row
    if not report.registered:
        yield Row(REGISTERED, "pass", "nothing in the registries of vllm_ext")


def _path_row(tree: SourceTree, what: str, path: str) -> Row | None:
    """Whether a class that is imported where it is needed will be there, without importing it."""
    module, _, name = path.replace(":", ".").rpartition(".")
    if tree.find(module.partition(".")[0]) is None:
        # The plugin may have changed its path.
        return Row(REGISTERED, "warning", f"{what} is named {path!r}, and {module} is not found on the path")
    absence = tree.absence(module, name)
    if absence is None or not absence.is_certain:
        return None
    return Row(REGISTERED, "fail", f"{what} is named {path!r}, and there is no {absence.text}")


def _entry_point_fault(decision: Decision) -> str:
    """Of a plugin that does not load, what of its entry point is not there; as the end of a sentence."""
    value = decision.value.partition("[")[0].strip()
    module, _, name = (part.strip() for part in value.partition(":"))
    tree, start = SourceTree(), f"; its entry point is {value!r}, and there is no "
    if not name and tree.find(module) is None:
        above, _, last = module.rpartition(".")
        if above and tree.find(above) is not None and tree.absence(above, last) is None:
            return f"{start}such module (did you mean '{above}:{last}'?)"
    absence = tree.absence(module, name.partition(".")[0])
    return f"{start}{absence.text}" if absence is not None and absence.is_certain else ""


def skipped_rows(checks: Iterable[str], reason: str) -> Iterator[Row]:
    """A row for each check that is not made."""
    for check in checks:
        yield Row(check, "skipped", reason)
