"""Options of the commands that start an engine, which are keys of the settings' section ``engine``."""

from __future__ import annotations

import argparse

from vllm_ext.config import Override

_OPTIONS = ("model", "dtype", "executor", "tensor_parallel_size")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`engine_overrides` looks at."""
    add = parser.add_argument
    add("--model", metavar="DIR", help="Hugging Face model directory (a small model that comes with vllm-ext)")
    add("--dtype", metavar="DTYPE", help="auto, float32, bfloat16 or float16 (auto)")
    add("--executor", metavar="NAME", help="executor plugin that runs the workers: uniproc, multiproc (uniproc)")
    add("--tensor-parallel-size", type=int, metavar="N", help="workers that share each layer (1)")


def engine_overrides(parsed_args: argparse.Namespace) -> list[Override]:
    """The settings that they are, where they are given."""
    return option_overrides(parsed_args, "engine", _OPTIONS)


def option_overrides(parsed_args: argparse.Namespace, section: str, names: tuple[str, ...]) -> list[Override]:
    """The settings in ``section`` that options of the same ``names`` give values to."""
    given = {name: getattr(parsed_args, name) for name in names}
    return [
        Override(f"{section}.{name}", value, f"--{name.replace('_', '-')}")
        for name, value in given.items()
        if value is not None
    ]
