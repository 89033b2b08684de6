"""One plugin of a plan, by the name that a person gives."""

from __future__ import annotations

from vllm_ext.errors import AmbiguousPlugin, PluginNotFound, did_you_mean, listing
from vllm_ext.plan.decisions import Decision
from vllm_ext.plan.plan import Plan


def get_decision(plan: Plan, reference: str, group: str | None = None) -> Decision:
    """The one decision on what ``name`` or ``distribution:name`` stands for, of any group where that is ``None``.

    Raises:
        PluginNotFound: nothing has the name. AmbiguousPlugin: several have it.
    """
    found = [decision for decision in plan.find(None, reference) if group in (None, decision.group)]
    if not found:
        names = {d.name for d in plan.decisions if d.record and group in (None, d.group)}
        where = f" in group {group!r}" if group else ""
        elsewhere = "".join(f". It is in group {other.group!r}" for other in plan.find(None, reference))
        raise PluginNotFound(
            f"no plugin {reference!r} is installed{where}{did_you_mean(reference, names)}; installed: {listing(names)}"
            f"{elsewhere}",
            plugin=reference,
        )
    # A hidden copy, or a name that two settings ask for in vain, is no rival.
    found = [decision for decision in found if decision.status not in ("shadowed", "missing")] or found[:1]
    if len(found) > 1:
        lines = "".join(f"\n  {d.group}: {d.reference} ({d.value}, {d.status})" for d in found)
        raise AmbiguousPlugin(
            f"{len(found)} plugins have the name {reference!r}; tell them apart by --group, or as "
            f"distribution:name:{lines}",
            plugin=reference,
        )
    return found[0]
