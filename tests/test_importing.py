"""Imports without a search for garbage, which goes on afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

import vllm_ext
from vllm_ext.importing import without_gc


def test_nothing_is_collected_inside_and_something_afterwards():
    with without_gc():
        assert not gc.isenabled()

    assert gc.isenabled()


def test_an_import_that_fails_leaves_it_as_it_was():
    with pytest.raises(ImportError), without_gc():
        raise ImportError

    assert gc.isenabled()


def test_a_program_that_collects_by_itself_goes_on_to():
    gc.disable()
    try:
        with without_gc():
            pass

        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "name, advice",
    [
        ("AsyncLLMEngine", "; AsyncLLM stands in its place"),
        ("SamplingParam", " (did you mean 'SamplingParams'?)"),
        ("EngineArgs", "; LLM takes the engine's settings as keywords"),
        ("AsyncEngineArgs", "; AsyncLLM takes the engine's settings as keywords"),
        ("zzz", ""),
        ("__LLM__", ""),
    ],
)
def test_a_name_that_is_not_public_is_told_with_one_that_is_like_it(name, advice):
    with pytest.raises(AttributeError) as error:
        getattr(vllm_ext, name)

    assert str(error.value) == f"module 'vllm_ext' has no attribute {name!r}{advice}"


def test_the_first_use_of_a_public_name_is_such_an_import():
    program = (
        "import gc, sys, vllm_ext\n"
        "searching = []\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_): searching.append(gc.isenabled())\n"
        "sys.meta_path.insert(0, Finder())\n"
        "vllm_ext.Platform\n"
        "print(set(searching), gc.isenabled())\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "{False} True\n"
