"""Of all the code that an error went through, the innermost that the distribution of a plugin brought."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from vllm_ext.errors import causes_of
from vllm_ext.registry.owners import distribution_of

if TYPE_CHECKING:
    from types import CodeType

    from vllm_ext.plan import BoundPlan

_NO_PLUGINS = {*sys.stdlib_module_names, "vllm_ext", "torch", "numpy", "__main__", ""}
"""Top-level modules that are not looked up."""


def whose_code(error: BaseException, bound_plan: BoundPlan) -> str:
    """`` (in Model.forward() of acme_model, of acme 1.0)``: where in a plugin's code the error was raised, or what that
    called raised it. Empty where no plugin's code took part.

    Args:
        bound_plan: the engine's, which knows the plugins.
    """
    plugins = {canonicalize_name(d.distribution): d for d in bound_plan.plan.decisions if d.record and not d.in_tree}
    if not plugins:
        return ""
    for each in causes_of(error):
        for module, code in reversed(_frames(each)):
            decision = plugins.get(canonicalize_name(distribution_of(module) or ""))
            if decision is not None:
                return f" (in {code.co_qualname}() of {module}, of {decision.distribution} {decision.version})"
    return ""


def _frames(error: BaseException) -> list[tuple[str, CodeType]]:
    """Modules and functions that the error came through, outermost first, without those of no plugin."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    named = [(str(frame.f_globals.get("__name__", "")), frame.f_code) for frame in frames]
    return [(module, code) for module, code in named if module.partition(".")[0] not in _NO_PLUGINS]
