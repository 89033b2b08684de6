"""The setting custom_ops: what is accepted, what is refused, and what is only odd."""

import logging
import subprocess
import sys

import pytest

from vllm_ext.dispatch.op_settings import check_custom_ops, warn_of_unknown_ops
from vllm_ext.errors import ConfigError


@pytest.mark.parametrize("ops", [[], ["all"], ["none", "+rms_norm"], ["all", "-rms_norm", "-silu_and_mul"]])
def test_vllms_forms_are_accepted(ops):
    check_custom_ops(ops)


@pytest.mark.parametrize(
    "ops, message",
    [
        (["junk"], "custom_ops holds 'junk'; an element is all, none, \\+name or -name"),
        (["+"], "custom_ops holds '\\+'"),
        ([""], "custom_ops holds ''"),
        (["all", "none"], "holds both all and none"),
        (["+x", "-x"], "custom_ops holds both \\+x and -x"),
    ],
)
def test_other_forms_and_contradictions_are_refused(ops, message):
    with pytest.raises(ConfigError, match=message):
        check_custom_ops(ops)


def test_a_name_that_no_op_has_is_a_warning_with_the_closest(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_ops(["all", "-rms_nrm", "+rms_norm"])

    assert len(caplog.messages) == 1
    assert "custom_ops names 'rms_nrm', and no such op is registered (did you mean 'rms_norm'?)" in caplog.text


def test_an_op_whose_module_nobody_has_imported_is_no_unknown_one():
    program = (
        "import logging; logging.basicConfig()\n"
        "from vllm_ext.dispatch.op_settings import warn_of_unknown_ops\n"
        "warn_of_unknown_ops(['-gelu_and_mul'])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr == ""


def test_a_whole_layer_is_not_turned_off_and_that_is_said(caplog):
    warn_of_unknown_ops(["-vocab_parallel_embedding"])

    assert caplog.messages == [
        "custom_ops names 'vocab_parallel_embedding', which is a whole layer: it is not turned on or off"
    ]


def test_a_contradiction_that_a_platform_made_names_it():
    message = "custom_ops, after the hooks of platform 'npu', holds both none and all"
    with pytest.raises(ConfigError, match=message):
        check_custom_ops(["none", "all"], "the hooks of platform 'npu'")
