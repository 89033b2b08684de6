"""Whether an installed plugin loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.managers.child import load_in_child
from vllm_ext.plan import get_decision


def assert_loads(name: str, *, group: str | None = None, overrides: Mapping[str, Any] | None = None) -> None:
    """An installed plugin loads and is what its group asks for, in a process of its own, as ``vllm-ext show --load``
    does it.

    Args:
        name: the plugin's, or ``distribution:name``.
        group: its entry-point group, where several have the name.
        overrides: settings by their dotted key, such as ``options.NAME``.

    Raises:
        AssertionError: it declined, failed, or must not be loaded; the text has the reason and its traceback.
        PluginNotFound: it is not installed. AmbiguousPlugin: several have the name.
    """
    given = [Override(key, value, "assert_loads", "keyword") for key, value in (overrides or {}).items()]
    plan = plan_installed(load_config((), given))
    decision = get_decision(plan, name, group)
    if decision.why_not_loaded:
        raise AssertionError(f"{decision} {decision.why_not_loaded}")
    report = load_in_child(plan, decision)
    if report.outcome.state != "active":
        told = "\n".join(filter(None, (report.outcome.traceback, report.output)))
        raise AssertionError(f"{decision} is {report.outcome.state}: {report.outcome.detail}\n{told}".rstrip())
