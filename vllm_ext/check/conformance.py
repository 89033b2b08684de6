"""The last check of a plugin: it takes part in a short run of the embedded engine, and what it computes is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vllm_ext.check.leads import NEARLY_EQUAL
from vllm_ext.check.rows import Result, Row
from vllm_ext.check.trial import Completion, Trial, Wanted, run_trial, with_settings
from vllm_ext.config import Config, Settings
from vllm_ext.contracts.groups import ENDPOINT, EXECUTOR, GENERAL, IO_PROCESSOR, LOGITS_PROCESSOR, PLATFORM, STAT_LOGGER
from vllm_ext.managers.host_contracts import source_of
from vllm_ext.plan import Decision, Plan
from vllm_ext.server import missing_packages

NAME = "conformance"
REFERENCE = "cpu"

PROMPTS = (
    "Yes",
    "My dear sister",
    "It was a truth that nobody at Longbourn had ever thought of",
    "The evening was spent in the usual way, with cards and conversation, and when the carriages were called for, "
    "nobody was in any hurry to go, since the rain had begun again and the road was known to be bad",
    "She had never in her life been so much surprised as by this letter",
    "He bowed",
)
"""Of 1 to about 60 tokens in the model that comes with vllm-ext."""
MAX_TOKENS = 16
CHUNK = 16
"""Tokens in a step, so that the longer prompts are computed in chunks."""

_REFERENCE_TIMEOUT_S = 300.0
_ENGINE = {
    "engine.dtype": "float32",
    "engine.max_num_batched_tokens": CHUNK,
    "engine.max_num_seqs": 4,
    "engine.core_process": False,
}
_ALONE: dict[str, Any] = {
    "platform.disabled": [],
    "plugins.general.enabled": [],
    "plugins.general.disabled": [],
    "plugins.logits_processor.enabled": [],
    "plugins.stat_logger.enabled": [],
    "plugins.io_processor.use": None,
    "plugins.io_processor.enabled": "all",
    "plugins.endpoint.enabled": [],
    "plugins.endpoint.disabled": [],
}
"""No plugin but the one in question has a say in what is computed."""


class Comparison(NamedTuple):
    """Greedy tokens beside those of a reference."""

    num_equal: int
    """Tokens that are decided, and equal."""
    num_tokens: int
    difference: str = ""
    """The first one; empty where there is none."""


def conformance_row(config: Config, plan: Plan, decision: Decision) -> Row:
    """What the plugin's kind allows: tokens compared, or a run in which it takes part. Starts one process or two.

    Raises:
        EngineError: no process can be started.
    """
    if config.settings.host != "embedded":
        return Row(NAME, "skipped", "the host is a vLLM, and only the embedded engine is started here")
    return Row(NAME, *_CHECKS[str(decision.kind)](config, plan, decision))


def compare(completions: Sequence[Completion], reference: Sequence[Completion]) -> Comparison:
    """Token by token; of a prompt no more is compared once its reference leaves a token undecided."""
    num_equal = 0
    for number, (found, wanted) in enumerate(zip(completions, reference, strict=True), start=1):
        for index, (token, lead) in enumerate(zip(wanted.token_ids, wanted.leads, strict=True)):
            if lead < NEARLY_EQUAL:
                break
            given = found.token_ids[index] if index < len(found.token_ids) else None
            if given != token:
                what = "ends" if given is None else f"has {given}"
                text = f"prompt {number} of {len(reference)} ({wanted.num_prompt_tokens} tokens) {what} at token "
                return Comparison(num_equal, _count(reference), f"{text}{index + 1}, where the reference has {token}")
            num_equal += 1
    return Comparison(num_equal, _count(reference))


def _count(completions: Sequence[Completion]) -> int:
    return sum(len(completion.token_ids) for completion in completions)


def _platform(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    if decision.in_tree and decision.name == REFERENCE:
        return "skipped", "it is the reference itself, and to be equal to oneself is no evidence"
    own = [d.reference for d in plan.selected(GENERAL.key) if d.distribution == decision.distribution]
    changes = {"platform.driver": decision.reference, "plugins.general.enabled": own}
    return _compared(config, changes, f"platform {REFERENCE}")


def _executor(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    if decision.in_tree and decision.name == "uniproc":
        return "skipped", "it is the reference itself, and to be equal to oneself is no evidence"
    changes = {"platform.driver": REFERENCE, "engine.executor": decision.reference}
    return _compared(config, changes, "executor uniproc")


def _compared(config: Config, changes: Mapping[str, Any], name: str) -> tuple[Result, str]:
    """Run with the plugin and, where that works, without any, and compare."""
    candidate = with_settings(config, {**_ENGINE, **_ALONE, **changes})
    trial = run_trial(candidate, Wanted(PROMPTS, MAX_TOKENS), config.settings.probe.timeout_s)
    if trial.failure:
        return _failure(trial)
    reference = run_trial(_reference_config(candidate), Wanted(PROMPTS, MAX_TOKENS, True), _REFERENCE_TIMEOUT_S)
    if reference.failure:
        return "skipped", f"the reference, {name}, did not run: {reference.failure}"
    found = compare(trial.completions, reference.completions)
    if found.difference:
        return "fail", f"{found.difference}, {name}; {found.num_equal} tokens before that are equal"
    if not found.num_equal:
        return "skipped", f"of no token the reference, {name}, was certain, so that nothing could be compared"
    return (
        "pass",
        f"{found.num_equal} of {found.num_tokens} tokens compared, all equal to those of {name}; {_prompts(trial)}",
    )


def _failure(trial: Trial) -> tuple[Result, str]:
    """An engine that found a plugin by itself would go on without one that declines."""
    return trial.failure_is, f"an engine with it did not run: {trial.failure}"


def _reference_config(candidate: Config) -> Config:
    """The same engine without any plugin, class path or option of somebody else."""
    engine = candidate.settings.engine
    config = Config(Settings(engine=engine), {}, None, safe_mode=True)
    return with_settings(
        config,
        {
            "platform.driver": REFERENCE,
            "engine.executor": "uniproc",
            "engine.tensor_parallel_size": 1,
            "engine.scheduler_cls": "auto",
            "engine.logits_processors": [],
        },
    )


def _prompts(trial: Trial) -> str:
    """Prompts and their lengths, and whether any of them was really computed in chunks."""
    lengths = [completion.num_prompt_tokens for completion in trial.completions]
    text = f"greedy, float32, {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens"
    if trial.max_num_batched_tokens < max(lengths):
        return f"{text}, in chunks of {trial.max_num_batched_tokens}"
    return f"{text}, none in chunks, since the platform computes {trial.max_num_batched_tokens} tokens in a step"


def _logits_processor(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    return _takes_part(config, decision, "plugins.logits_processor.enabled", "half of them greedy, half drawn")


def _stat_logger(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    return _takes_part(config, decision, "plugins.stat_logger.enabled", "of which it was told after every step")


def _takes_part(config: Config, decision: Decision, key: str, what: str) -> tuple[Result, str]:
    """An engine on the reference platform runs with it; nothing is compared, since nobody knows what it should do."""
    trial = _run_with(config, {key: [decision.reference]}, Wanted(PROMPTS[:3], MAX_TOKENS, with_draws=True))
    # A stat logger that raises does not end the engine.
    complaints = [text for text in trial.warnings if text.startswith(source_of(decision))]
    if trial.failure:
        return _failure(trial)
    if complaints:
        return "fail", complaints[0]
    requests = len(trial.completions)
    return "pass", f"an engine ran with it: {_count(trial.completions)} tokens of {requests} requests, {what}"


def _io_processor(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    changes = {"plugins.io_processor.use": decision.reference}
    trial = _run_with(config, changes, Wanted(PROMPTS[:1], 1))
    if trial.failure:
        return _failure(trial)
    return "pass", "an engine makes one; what it does with data is not tried, since only its author knows what it takes"


def _run_with(config: Config, changes: Mapping[str, Any], wanted: Wanted) -> Trial:
    changed = with_settings(config, {**_ENGINE, **_ALONE, "platform.driver": REFERENCE, **changes})
    return run_trial(changed, wanted, config.settings.probe.timeout_s)


def _general(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    return "skipped", "what it registers runs where an engine asks for it, and there is no reference for that"


def _endpoint(config: Config, plan: Plan, decision: Decision) -> tuple[Result, str]:
    if missing := missing_packages():
        return "skipped", f"a server {missing}"
    wanted = Wanted((), 0, with_server=True)
    trial = _run_with(config, {"plugins.endpoint.enabled": [decision.reference]}, wanted)
    if trial.failure:
        return _failure(trial)
    if left_out := [text for text in trial.warnings if text.startswith(source_of(decision))]:
        return "skipped", left_out[0]
    if not trial.routes:
        return "warning", "a server starts with it, and it adds no route"
    routes = ", ".join(trial.routes)
    return (
        "pass",
        f"a server starts with it and has {routes}; no request is sent, since only its author knows what they take",
    )


_CHECKS: Mapping[str, Callable[[Config, Plan, Decision], tuple[Result, str]]] = {
    PLATFORM.key: _platform,
    EXECUTOR.key: _executor,
    LOGITS_PROCESSOR.key: _logits_processor,
    STAT_LOGGER.key: _stat_logger,
    IO_PROCESSOR.key: _io_processor,
    GENERAL.key: _general,
    ENDPOINT.key: _endpoint,
}
