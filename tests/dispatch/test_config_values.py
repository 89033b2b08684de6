"""Values of a configuration as texts: equal in two processes where the values are."""

from __future__ import annotations

import enum
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from vllm_ext.dispatch.config_values import as_texts, text_of


class Mode(enum.Enum):
    FULL = 2


@dataclass
class Limits:
    steps: int
    ops: list[str]


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (0.5, "0.5"),
        ("a", "'a'"),
        (torch.bfloat16, "torch.bfloat16"),
        (Mode.FULL, "Mode.FULL"),
        (Limits, f"{__name__}.Limits"),
        (Limits(3, ["all"]), "Limits(steps=3, ops=['all'])"),
        ({"b": 1, "a": {"x"}}, "{'a': {'x'}, 'b': 1}"),
        ((1, 2), "[1, 2]"),
        (Unprintable(), f"{__name__}.Unprintable"),
    ],
)
def test_the_text_of_a_value(value, text):
    assert text_of(value) == text


def test_the_text_of_an_object_or_a_function_has_no_address():
    assert "0x" not in text_of([object(), lambda: None])


def test_the_order_of_a_set_is_that_of_no_process():
    program = "from vllm_ext.dispatch.config_values import text_of; print(text_of(set('abcdefgh')))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(texts) == 1


def test_what_plugins_keep_in_a_configuration_is_not_in_the_texts():
    texts = as_texts({"additional_config": {"npu": {"token": "secret"}}, "cache_config.block_size": 16})

    assert list(texts) == ["additional_config['npu']", "cache_config.block_size"]
    assert "secret" not in str(texts)
