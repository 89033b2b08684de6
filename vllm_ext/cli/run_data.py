"""``vllm-ext run --data``: a file through the engine's IO processor."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from vllm_ext.cli.output import Output
from vllm_ext.cli.run_pooling import refuse_sampling
from vllm_ext.config import Config, Override
from vllm_ext.errors import ConfigError, InvalidRequest, PluginError, dotted_path, innermost_cause

if TYPE_CHECKING:
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.contracts.stat_logger import StatLoggerFactory
    from vllm_ext.engine.inputs.prompts import DataPrompt
    from vllm_ext.engine.llm import LLM


class Data(NamedTuple):
    """What ``--data`` names."""

    value: Any


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`read_data` and :func:`io_processor_override` look at."""
    parser.add_argument(
        "--io-processor", metavar="NAME", help="IO processor plugin for --data (what the settings name)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="data for the IO processor, whose answer is printed: text, a .json file as what it holds; - is stdin",
    )


def io_processor_override(parsed_args: argparse.Namespace) -> list[Override]:
    """The setting that ``--io-processor`` is."""
    name = parsed_args.io_processor
    return [] if name is None else [Override("plugins.io_processor.use", name, "--io-processor")]


def read_data(parsed_args: argparse.Namespace) -> Data | None:
    """What ``--data`` names: the object in a ``.json`` file, else text, or bytes where it is no UTF-8; ``None`` without
    the option.

    Raises:
        ConfigError: it cannot be read, or other options do not go with it.
    """
    source = parsed_args.data
    if source is None:
        if parsed_args.io_processor is not None:
            raise ConfigError(
                "command line (--io-processor): it works on data; name a file with --data, or - for stdin"
            )
        return None
    for given, what in (
        (parsed_args.prompts, "prompts"),
        (parsed_args.json, "--json"),
        (parsed_args.chat, "--chat"),
        (parsed_args.truncate_prompt_tokens is not None, "--truncate-prompt-tokens"),
    ):
        if given:
            raise ConfigError(
                f"command line (--data): the IO processor makes prompts and answer, so {what} do not go with it"
            )
    if source == "-" and sys.stdin is None:
        raise ConfigError("command line (--data -): standard input is closed")
    if not source:
        raise ConfigError("command line (--data): expected a file, or - for stdin, given an empty name")
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        if Path(source).suffix == ".json":
            return Data(json.loads(content))
    except RecursionError as error:
        raise ConfigError(f"command line (--data): {source!r} cannot be read: it is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"command line (--data): {source!r} cannot be read: {error}") from error
    try:
        return Data(content.decode())
    except UnicodeDecodeError:
        return Data(content)


def start_with_processor(config: Config, stat_loggers: Sequence[StatLoggerFactory]) -> LLM:
    """An engine with an IO processor; InvalidRequest before anything is loaded where there is none."""
    from vllm_ext.dispatch.bootstrap import bootstrap
    from vllm_ext.dispatch.engine_config import require_embedded
    from vllm_ext.engine.llm import LLM

    require_embedded(config.settings, config.where("host"))
    dispatcher = bootstrap(config).dispatcher(progress=sys.stderr.isatty())
    if refusal := dispatcher.io_processor.refusal:
        raise InvalidRequest(f"--data takes an IO processor: {refusal}")
    dispatcher.stat_logger_factories = stat_loggers
    return LLM.from_dispatcher(dispatcher)


def answer(llm: LLM, data: Data, params: SamplingParams, given: Iterable[str]) -> Any:
    """What the IO processor makes of ``data``; ``params`` are for a model that generates.

    Raises:
        ConfigError: options for ``params`` were ``given``, and the model pools.
    """
    is_pooling = llm.llm_engine.vllm_config.model_config.runner_type == "pooling"
    if is_pooling:
        refuse_sampling(given, "a model that pools")
    request: DataPrompt = {"data": data.value}
    (output,) = llm.encode(request, pooling_task="plugin") if is_pooling else llm.generate(request, params)
    return output.outputs


def write_answer(value: Any, out: Output) -> None:
    """A text or bytes as they are, anything else as a line of JSON.

    Raises:
        PluginError: JSON has nothing for it.
    """
    if isinstance(value, bytes):
        out.write_bytes(value)
        return
    if not isinstance(value, str):
        try:
            value = msgspec.json.encode(value, enc_hook=_plain).decode() + "\n"
        except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
            raise PluginError(
                f"the IO processor's answer cannot be written as JSON: {innermost_cause(error)}; on the command line "
                "an answer is a text, bytes, or made of what JSON has"
            ) from error
    out.write(value)
    out.flush()


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"no form for {dotted_path(type(value))}")
