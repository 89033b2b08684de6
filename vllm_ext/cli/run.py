"""``vllm-ext run``: a model through the chosen platform, once: text, embeddings, classes or scores."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from vllm_ext.cli.base import SettingsCommand, ends_on_signals, json_array, output_to_stderr
from vllm_ext.cli.engine_options import add_engine_options, engine_overrides
from vllm_ext.cli.output import Output
from vllm_ext.cli.run_data import (
    add_data_options,
    answer,
    io_processor_override,
    read_data,
    start_with_processor,
    write_answer,
)
from vllm_ext.cli.run_pooling import add_task_options, lines, pool, sampling_options, task_of, task_overrides
from vllm_ext.cli.run_stats import RunStats
from vllm_ext.importing import without_gc

if TYPE_CHECKING:
    from vllm_ext.contracts.outputs import RequestOutput
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.engine.llm import LLM

_DEFAULT_PROMPT = "It was a truth"
_SAMPLING_DEFAULTS = {"max_tokens": 100, "temperature": 0.8, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""What holds where nothing is given; other than vLLM's, for a text that is worth reading."""


class Run(SettingsCommand):
    """Run a model through the chosen platform: generate text, or embed, classify or compare texts."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        add = parser.add_argument
        add(
            "prompts",
            nargs="*",
            metavar="PROMPT",
            help=f"text to go on from, or for --task, by default {_DEFAULT_PROMPT!r}",
        )
        add_engine_options(parser)
        add("--max-tokens", type=int, metavar="N", help="tokens to generate at most (100)")
        add("--temperature", type=float, metavar="T", help="0 takes the likeliest token each time (0.8)")
        add("--top-p", type=float, metavar="P", help="only the likeliest tokens that reach P together (1)")
        add("--top-k", type=int, metavar="K", help="only the K likeliest tokens; 0 is all (0)")
        add("--min-p", type=float, metavar="P", help="only tokens P times as likely as the likeliest (0)")
        add("--stop", action="append", metavar="TEXT", help="end before this text; may be given several times")
        add("--seed", type=int, metavar="N", help="the same seed gives the same text")
        add("--chat", action="store_true", help="take each PROMPT as a user's message, and print the model's answer")
        add_task_options(parser)
        add_data_options(parser)
        add("--json", action="store_true", help="print a JSON array when all is done, instead of streaming text")
        add("--stats", action="store_true", help="say on stderr what the run took: tokens, latencies, cache hits")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        from vllm_ext.contracts.sampling_params import SamplingParams

        overrides = engine_overrides(parsed_args)
        data = read_data(parsed_args)
        overrides += [*task_overrides(parsed_args), *io_processor_override(parsed_args)]
        config = self.load_config(parsed_args, *overrides)
        params = SamplingParams(**_SAMPLING_DEFAULTS | sampling_options(parsed_args))
        prompts = parsed_args.prompts or [_DEFAULT_PROMPT]

        # torch comes in here, when everything that can be checked without it has been.
        with without_gc():
            from vllm_ext.engine.llm import LLM

        start = LLM.from_config if data is None else start_with_processor
        started = time.perf_counter()
        stats = RunStats()
        loggers = [lambda *_: stats] if parsed_args.stats else []
        # What plugins print is no result: stdout is for the text alone.
        with (
            ends_on_signals(),
            output_to_stderr(self.app.stdout) as out,
            start(config, stat_loggers=loggers) as llm,
        ):
            ready = time.perf_counter()
            if data is None:
                num_tokens = self._answer(llm, parsed_args, prompts, params, out)
                self._report(llm, num_tokens, ready - started, time.perf_counter() - ready)
            else:
                write_answer(answer(llm, data, params, sampling_options(parsed_args)), out)
            answer_s = time.perf_counter() - ready
        if parsed_args.stats:
            # Once the engine has ended, its loggers have been told everything.
            self.app.stderr.write("".join(f"{line}\n" for line in stats.lines(answer_s)))
        return 0

    def _answer(
        self, llm: LLM, parsed_args: argparse.Namespace, prompts: list[str], params: SamplingParams, out: Output
    ) -> int:
        """Do what is asked, and print what comes of it; returns the tokens that were computed for it."""
        task = task_of(parsed_args, llm.llm_engine.vllm_config.model_config)
        if task != "generate":
            records = pool(llm, task, prompts, parsed_args.truncate_prompt_tokens)
            for line in lines(task, records, as_json=parsed_args.json):
                out.write(f"{line}\n")
            return sum(len(record.get("prompt_token_ids", ())) for record in records)
        if parsed_args.chat:
            outputs = llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)
        elif parsed_args.json:
            outputs = llm.generate(prompts, params)
        if parsed_args.json:
            out.write(f"{json_array(map(_as_json, outputs))}\n")
        elif parsed_args.chat:
            out.write("\n\n".join(output.outputs[0].text for output in outputs) + "\n")
        else:
            printer = _OrderedPrinter(out, len(prompts))
            for output in llm.stream(prompts, params):
                printer.show(output)
            outputs = printer.outputs
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    def _report(self, llm: LLM, tokens: int, load_s: float, generate_s: float) -> None:
        """One line for people, after the text."""
        if self.app.stderr.isatty():
            rate = tokens / generate_s
            workers = len(llm.receipts) - 1
            where = f"{llm.platform_name}, {workers} worker processes" if workers else llm.platform_name
            self.app.stderr.write(f"[{where}: {tokens} tokens, {rate:.0f} tokens/s, ready after {load_s:.1f} s]\n")


class _OrderedPrinter:
    """Prints the texts of several requests one after the other, each while it grows."""

    def __init__(self, out: Output, num_requests: int) -> None:
        self._out = out
        self._num_requests = num_requests
        self._latest: dict[int, RequestOutput] = {}
        self._turn = 0
        self._printed = ""

    @property
    def outputs(self) -> list[RequestOutput]:
        """What was shown last of each request, in order."""
        return [self._latest[index] for index in sorted(self._latest)]

    def show(self, output: RequestOutput) -> None:
        """Take a request's new state, and print what is due; request ids count the prompts from 0."""
        self._latest[int(output.request_id)] = output
        while (current := self._latest.get(self._turn)) is not None:
            if not self._printed:
                self._print(current.prompt or "")
            self._print(((current.prompt or "") + current.outputs[0].text)[len(self._printed) :])
            if not current.finished:
                break
            self._turn, self._printed = self._turn + 1, ""
            self._out.write("\n" if self._turn == self._num_requests else "\n\n")
        self._out.flush()

    def _print(self, text: str) -> None:
        self._printed += text
        self._out.write(text)


def _as_json(output: RequestOutput) -> dict[str, Any]:
    completion = output.outputs[0]
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
