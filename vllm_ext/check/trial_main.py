"""What runs in the process of a trial: an engine, a few tokens, an answer, and leave at once."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from vllm_ext.check.leads import leads_of
from vllm_ext.check.trial import Completion, Trial, Wanted
from vllm_ext.config import Config
from vllm_ext.errors import innermost_cause, one_line
from vllm_ext.managers.new_python import end_with_parent

if TYPE_CHECKING:
    from vllm_ext.contracts.outputs import RequestOutput
    from vllm_ext.engine.llm import LLM


class _Request(msgspec.Struct):
    config: Config
    wanted: Wanted
    timeout_s: float


class _KeptWarnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(one_line(record.getMessage()))


def main() -> None:
    """Do what standard input says, and write a :class:`Trial` to the descriptor that is the argument. No return."""
    end_with_parent()
    result_fd = int(sys.argv[1])
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=_Request)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # A duplicate, which a plugin that closes standard error does not reach.
    errors = os.fdopen(os.dup(2), "w")
    faulthandler.enable(errors)
    kept = _KeptWarnings()
    logging.getLogger("vllm_ext").addHandler(kept)
    # torch comes in here, which is not the plugin's time.
    from vllm_ext.engine.llm import LLM

    faulthandler.dump_traceback_later(request.timeout_s, exit=True, file=errors)
    try:
        if request.wanted.with_server:
            trial = _rehearse(request.config)
        else:
            with LLM.from_config(request.config, progress=False) as llm:
                trial = _generate(llm, request.wanted)
    except BaseException as error:  # noqa: BLE001 - whatever ends it is the result
        trial = Trial(failure=_cause(error), failure_is="warning" if _has_declined(error) else "fail")
    os.write(result_fd, msgspec.json.encode(msgspec.structs.replace(trial, warnings=tuple(kept.texts))))
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads and exit handlers of the plugin have no say in when this ends.
    os._exit(0)


def _rehearse(config: Config) -> Trial:
    from vllm_ext.server.run import rehearse

    return Trial(routes=tuple(asyncio.run(rehearse(config))))


def _generate(llm: LLM, wanted: Wanted) -> Trial:
    from vllm_ext.contracts.sampling_params import SamplingParams

    if llm.llm_engine.vllm_config.model_config.runner_type == "pooling":
        return Trial(failure="engine.model pools, and tokens are what is compared", failure_is="skipped")
    common: dict[str, Any] = {"max_tokens": wanted.max_tokens, "ignore_eos": True}
    greedy = SamplingParams(temperature=0, logprobs=2 if wanted.with_leads else None, **common)
    params = [greedy] * len(wanted.prompts)
    if wanted.with_draws:
        params += [SamplingParams(temperature=0.9, seed=number, **common) for number in range(len(wanted.prompts))]
    outputs = llm.generate([*wanted.prompts, *wanted.prompts][: len(params)], params)
    config = llm.llm_engine.vllm_config.scheduler_config
    return Trial(tuple(map(_completion, outputs)), config.max_num_batched_tokens)


def _completion(output: RequestOutput) -> Completion:
    completion = output.outputs[0]
    prompt = output.prompt_token_ids or ()
    return Completion(len(prompt), tuple(completion.token_ids), tuple(leads_of(completion)))


def _has_declined(error: BaseException) -> bool:
    outcomes = getattr(error, "outcomes", ())
    return bool(outcomes) and all(outcome.state == "unavailable" for outcome in outcomes)


def _cause(error: BaseException) -> str:
    """The error's own words, which name the plugin; of one that has none, the innermost cause."""
    text = one_line(str(error)) if isinstance(error, Exception) else ""
    return text or innermost_cause(error)
