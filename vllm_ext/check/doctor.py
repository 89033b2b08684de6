"""Everything that looks wrong with an installation: its metadata, its settings, and what the two come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_ext import envs
from vllm_ext.discovery import Finding
from vllm_ext.errors import AmbiguousPlugin, ConfigError, IncompatiblePlugin, PluginNotFound, VllmExtError
from vllm_ext.managers.child import LoadReport
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import Decision, Plan

_CORRECT = "Correct the setting; 'vllm-ext config sample' shows all of them."
_REMEDIES: tuple[tuple[type[VllmExtError], str], ...] = (
    (PluginNotFound, "Install what provides it, or correct the name where it is written."),
    (AmbiguousPlugin, "Write distribution:name."),
    (IncompatiblePlugin, "Install versions that fit each other."),
    (ConfigError, _CORRECT),
)


NOT_TIMED = Finding(
    "note",
    "not-timed",
    "settings",
    "no plugin was loaded to be timed: with mistakes in the settings it is not known which ones may be",
    "Correct the settings first.",
)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first; each once."""
    return sorted(set(findings), key=Finding.sort_key)


def examine_settings_error(error: ConfigError) -> list[Finding]:
    """One finding for each mistake in the settings."""
    return [Finding("error", "settings", "settings", text, _CORRECT) for text in error.problems]


def examine_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that are read differently than their author may think."""
    text = environ.get(envs.VLLM_PLUGINS)
    if text is None:
        return
    if not text.strip():
        yield Finding(
            "note",
            "allow-list-empty",
            envs.VLLM_PLUGINS,
            f"{envs.VLLM_PLUGINS} is set and empty, so no out-of-tree plugin of any group is used",
            f"Unset {envs.VLLM_PLUGINS} if all are meant.",
        )
    parts = text.split(",")
    if blank := [part for part in parts if part != part.strip()]:
        cleaned = ",".join(part.strip() for part in parts if part.strip())
        yield Finding(
            "warning",
            "allow-list-blanks",
            envs.VLLM_PLUGINS,
            f"{envs.VLLM_PLUGINS} has blanks around {', '.join(repr(part) for part in blank)}; vllm-ext takes them "
            "off, vLLM does not, and finds no plugin of that name",
            f"Write {envs.VLLM_PLUGINS}={cleaned}.",
        )


def examine_plan(plan: Plan) -> Iterator[Finding]:
    """What the settings ask for in vain, and what they leave unused for a reason that is no choice."""
    for error in plan.errors:
        remedy = next((text for kind, text in _REMEDIES if isinstance(error, kind)), "Follow the reason given.")
        yield Finding("error", "plan", getattr(error, "plugin", None) or "settings", str(error), remedy)
    for note in plan.notes:
        yield Finding("warning", "plan", "settings", note, "Correct the setting, or leave it if that is meant.")
    for decision in plan.decisions:
        yield from _examine_decision(decision)
    yield from _examine_options(plan)


def _examine_options(plan: Plan) -> Iterator[Finding]:
    """Options for what is installed and not used, be it on purpose. For what is not installed they are an error."""
    for name in plan.settings.options:
        found = [decision for decision in plan.find(None, name) if decision.kind]
        if not found or any(decision.is_used for decision in found):
            continue
        why = "; ".join(f"{decision}: {decision.reason}" for decision in found)
        yield Finding(
            "note",
            "unused-options",
            name,
            f"options are given for {name!r}, and the settings use no plugin of that name: {why}",
            "Enable or choose the plugin if its options are meant to hold; else nothing.",
        )


def _examine_decision(decision: Decision) -> Iterator[Finding]:
    subject = decision.reference
    if decision.status == "incompatible":
        yield Finding(
            "warning",
            "incompatible",
            subject,
            f"plugin {decision} is not used, since {decision.distribution} {decision.reason}",
            f"Install a version of {decision.distribution} that fits what is here, or disable the plugin.",
        )
    for note in decision.notes:
        text = f"plugin {decision}: {decision.distribution} {note}"
        yield Finding("note", "requirement", subject, text, "Nothing, unless it needs that vLLM after all.")


def without_repetitions(findings: Iterable[Finding], plan: Plan) -> list[Finding]:
    """Findings on the metadata, without those on names that the plan's own say more about."""
    twins = {decision.name for decision in plan.decisions if decision.status == "duplicate"}
    codes = ("ambiguous-name", "name-with-two-targets")
    return [finding for finding in findings if finding.code not in codes or finding.subject not in twins]


def examine_loads(reports: Sequence[LoadReport]) -> Iterator[Finding]:
    """Plugins that fail when they are loaded, and what others do to the process."""
    for report in reports:
        decision, outcome = report.decision, report.outcome
        subject = decision.reference
        if outcome.state == "failed":
            yield Finding(
                "error" if decision.named else "warning",
                "load-failed",
                subject,
                f"{source_of(decision)} fails: {outcome.detail}",
                f"See its traceback with 'vllm-ext show {subject} --load'; to go on without it, disable it.",
            )
        elif outcome.state == "unavailable" and decision.named:
            text = f"{source_of(decision)}, which is named, declines: {outcome.detail}"
            yield Finding("error", "load-declined", subject, text, "Remove the cause, or name another.")
        for effect in report.effects:
            text = f"{source_of(decision)} {effect}"
            yield Finding(
                "warning", "side-effect", subject, text, "Tell its author: it shares its process with the engine."
            )
