"""A bound plan as environment variables of vLLM. Pure: nothing is read, imported or set here.

vLLM has one list of names for all groups, ``VLLM_PLUGINS``, and asks every platform in it. A plan says more than that;
where it cannot be said, that is an error rather than another plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vllm_ext import envs
from vllm_ext.config.environment import split_names
from vllm_ext.contracts.groups import (
    IO_PROCESSOR,
    KINDS,
    LOGITSPROCS_GROUP,
    PLATFORM,
    VLLM_BUILTIN_PLATFORMS_GROUP,
    is_read_by_vllm,
)
from vllm_ext.errors import ConfigError, PlatformUnavailable
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import BoundPlan, Decision
from vllm_ext.plan.names import matches_any

_CPU = "cpu"
"""The one of its own platforms that vLLM can be told to use, whatever else is there."""
CPU_VARIABLES = {envs.VLLM_TARGET_DEVICE: _CPU}
"""How it is told."""


def host_variables(bound_plan: BoundPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for a bound plan whose host is vLLM, given what is in its environment already.

    Raises:
        PlatformUnavailable: no platform activated.
        ConfigError: vLLM would load something else than the plan says, whatever the variables; with all that is so.
    """
    if bound_plan.platform is None:
        raise PlatformUnavailable(
            "no platform activated: no plugin, and none of vLLM's own, so that no vLLM can run here; "
            "vllm-ext list --load --group vllm.platform_plugins --set host=vllm has the reasons"
        )
    translation = _Translation(bound_plan, environ)
    if problems := [*translation.unsayable(), *translation.dragged_in(), *translation.target_device()]:
        raise ConfigError(f"vLLM cannot be given this plan: {'. '.join(problems)}", problems)
    variables = {envs.VLLM_PLUGINS: ",".join(translation.names)}
    return variables | (CPU_VARIABLES if is_vllms_cpu(bound_plan.platform) else {})


class _Translation:
    """What of a plan goes into ``VLLM_PLUGINS``, and what that list cannot say."""

    def __init__(self, bound_plan: BoundPlan, environ: Mapping[str, str]) -> None:
        self._bound_plan = bound_plan
        self._environ = environ
        selected = [d for kind in KINDS for d in bound_plan.selected(kind.key)]
        self._used = [d for d in (*selected, *self._permitted()) if is_read_by_vllm(d.group)]
        self._used_keys = {d.key for d in self._used}
        listed = [d for d in self._used if d.group not in (VLLM_BUILTIN_PLATFORMS_GROUP, LOGITSPROCS_GROUP)]
        self.names = list(dict.fromkeys(d.name for d in listed))

    def _permitted(self) -> Iterator[Decision]:
        """IO processors that the user allowed by name, of which vLLM takes the one that a model names."""
        enabled = self._bound_plan.plan.settings.plugins.io_processor.enabled
        text = self._environ.get(envs.VLLM_PLUGINS)
        names = [*([] if enabled == "all" else enabled), *(split_names(text) if text else ())]
        for decision in self._bound_plan.plan.decisions:
            if _is_harmless(decision) and decision.record and matches_any(names, decision.record):
                yield decision

    def unsayable(self) -> Iterator[str]:
        for name in self.names:
            if "," in name:
                yield f"{name!r} has a comma in it, which separates names in {envs.VLLM_PLUGINS}; disable that plugin"

    def dragged_in(self) -> Iterator[str]:
        """What vLLM would load besides: it is told names alone, and of logits processors not even those."""
        for decision in self._bound_plan.plan.decisions:
            if decision.key in self._used_keys or not self._is_found_by_vllm(decision):
                continue
            what = f"{source_of(decision)} is not to be used ({self._why_not(decision)})"
            if decision.group == LOGITSPROCS_GROUP:
                yield (
                    f"{what}, and vLLM loads every logits processor that is installed; uninstall "
                    f"{decision.distribution}, or let it be used"
                )
            elif decision.name in self.names and not _is_harmless(decision):
                namesakes = ", ".join(source_of(d) for d in self._used if d.name == decision.name)
                yield (
                    f"{what}, and {namesakes} is; {envs.VLLM_PLUGINS} allows both or neither: uninstall one, or "
                    "disable the other as well"
                )

    def _is_found_by_vllm(self, decision: Decision) -> bool:
        """Whether vLLM finds it in the metadata, too, and looks for its group."""
        platform = self._bound_plan.platform
        if decision.kind == PLATFORM.key and platform is not None and is_vllms_cpu(platform):
            # Told to use its own cpu, it asks no platform plugin.
            return False
        is_hidden = decision.record is None or decision.record.shadowed_by is not None
        return not is_hidden and is_read_by_vllm(decision.group) and decision.group != VLLM_BUILTIN_PLATFORMS_GROUP

    def _why_not(self, decision: Decision) -> str:
        details = (o.detail for o in self._bound_plan.outcomes if o.key == decision.key and o.detail)
        return next(details, decision.reason) if decision.is_used else f"{decision.status}: {decision.reason}"

    def target_device(self) -> Iterator[str]:
        """With ``VLLM_TARGET_DEVICE=cpu`` vLLM asks no platform plugin at all."""
        platform = self._bound_plan.platform
        is_cpu = self._environ.get(envs.VLLM_TARGET_DEVICE, "").lower() == _CPU
        if is_cpu and platform is not None and not is_vllms_cpu(platform):
            yield (
                f"environment ({envs.VLLM_TARGET_DEVICE}) is 'cpu', with which vLLM takes its own cpu platform, and "
                f"the plan has {source_of(platform)}; unset it, or set platform.driver: cpu"
            )


def is_vllms_cpu(platform: Decision) -> bool:
    """Whether it is the platform that a vLLM takes when it is told so, also one that was built for another device."""
    return (platform.group, platform.name) == (VLLM_BUILTIN_PLATFORMS_GROUP, _CPU)


def _is_harmless(decision: Decision) -> bool:
    """Whether it may be in the list although nobody asks for it: vLLM uses an IO processor only when told to."""
    return decision.kind == IO_PROCESSOR.key and decision.status == "available"
