"""``vllm-ext run --task``: embeddings, classes and scores of texts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from vllm_ext.cli.base import json_array
from vllm_ext.config import Override
from vllm_ext.errors import ConfigError

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import ModelConfig
    from vllm_ext.engine.llm import LLM

_SAMPLING_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed")
Task = Literal["generate", "embed", "classify", "score"]
TASKS: tuple[Task, ...] = ("generate", "embed", "classify", "score")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`task_overrides` and :func:`pool` look at."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="what to do with the prompts; score compares the first with each of the others (what the model is for)",
    )
    parser.add_argument(
        "--truncate-prompt-tokens",
        type=int,
        metavar="N",
        help="for tasks but generate: cut prompts to N tokens, -1 is what the model can take (refuse what is too long)",
    )


def sampling_options(parsed_args: argparse.Namespace) -> dict[str, Any]:
    """What is given of the options that choose tokens, by the names of :class:`SamplingParams`."""
    given = {name: getattr(parsed_args, name) for name in _SAMPLING_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def refuse_sampling(given: Iterable[str], what: str) -> None:
    """ConfigError where an option that chooses tokens is given, of ``what``, which generates none."""
    if option := next(iter(given), None):
        raise ConfigError(f"command line (--{option.replace('_', '-')}): {what} generates no tokens to choose")


def task_overrides(parsed_args: argparse.Namespace) -> list[Override]:
    """The settings that ``--task`` asks for.

    Raises:
        ConfigError: other options do not go with it.
    """
    task: Task | None = parsed_args.task
    if task == "score" and parsed_args.data is None and len(parsed_args.prompts) < 2:
        raise ConfigError(
            "command line (--task score): it compares the first prompt with the others; give two at least"
        )
    if task not in (None, "generate") and parsed_args.chat:
        raise ConfigError(f"command line (--chat): --task {task} makes no answer to a message")
    if task is None:
        return []
    if task == "generate":
        _refuse_truncation(parsed_args)
        return [Override("engine.runner", "generate", "--task")]
    if parsed_args.data is None:
        refuse_sampling(sampling_options(parsed_args), f"--task {task}")
    runner = Override("engine.runner", "pooling", "--task")
    return [runner] if task == "score" else [runner, Override("engine.convert", task, "--task")]


def task_of(parsed_args: argparse.Namespace, model_config: ModelConfig) -> Task:
    """What is to be done: what the command line says, else what the model is for.

    Raises:
        ConfigError: other options do not go with what the model is for.
    """
    if parsed_args.task is not None:
        task: Task = parsed_args.task
        return task
    if model_config.runner_type == "generate":
        _refuse_truncation(parsed_args)
        return "generate"
    refuse_sampling(sampling_options(parsed_args), "a model that pools")
    if parsed_args.chat:
        raise ConfigError("command line (--chat): a model that pools makes no answer to a message")
    return "classify" if model_config.convert_type == "classify" else "embed"


def _refuse_truncation(parsed_args: argparse.Namespace) -> None:
    if parsed_args.truncate_prompt_tokens is not None:
        raise ConfigError("command line (--truncate-prompt-tokens): prompts of --task generate are never cut")


def pool(llm: LLM, task: Task, prompts: list[str], truncate_prompt_tokens: int | None) -> list[dict[str, Any]]:
    """A record for each prompt, or each pair."""
    if task == "embed":
        return [
            {"prompt": prompt, "prompt_token_ids": output.prompt_token_ids, "embedding": output.outputs.embedding}
            for prompt, output in zip(
                prompts, llm.embed(prompts, truncate_prompt_tokens=truncate_prompt_tokens), strict=True
            )
        ]
    if task == "classify":
        labels = llm.llm_engine.vllm_config.model_config.hf_config.get("id2label") or {}
        classified = llm.classify(prompts, truncate_prompt_tokens=truncate_prompt_tokens)
        return [
            {
                "prompt": prompt,
                "prompt_token_ids": output.prompt_token_ids,
                "label": _label(labels, output.outputs.probs),
                "probs": output.outputs.probs,
            }
            for prompt, output in zip(prompts, classified, strict=True)
        ]
    first, others = prompts[0], prompts[1:]
    scored = llm.score(first, others, truncate_prompt_tokens=truncate_prompt_tokens)
    return [
        {"text_1": first, "text_2": other, "score": output.outputs.score}
        for other, output in zip(others, scored, strict=True)
    ]


def lines(task: Task, records: list[dict[str, Any]], *, as_json: bool) -> Iterator[str]:
    """The records as a JSON array, or a line for each: an embedding's numbers, or a label or a score, and the text."""
    if as_json:
        yield json_array(records)
        return
    for record in records:
        if task == "embed":
            yield " ".join(f"{number:.6f}" for number in record["embedding"])
        elif task == "classify":
            yield f"{record['label']} {max(record['probs']):.4f}\t{_one_line(record['prompt'])}"
        else:
            yield f"{record['score']:.4f}\t{_one_line(record['text_2'])}"


def _label(labels: dict[str, str], probs: list[float]) -> str:
    best = max(range(len(probs)), key=probs.__getitem__)
    return str(labels.get(str(best), f"LABEL_{best}"))


def _one_line(text: str) -> str:
    return " ".join(text.split())
