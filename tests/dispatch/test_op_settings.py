"""The setting custom_ops: what is accepted, what is refused, and what is only odd."""

import logging

import pytest

from vllm_ext.dispatch.op_settings import check_custom_ops, warn_of_unknown_ops
from vllm_ext.errors import ConfigError
from vllm_ext.layers import layernorm  # noqa: F401 - registers rms_norm


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
        (["+x", "-x"], "holds both \\+x and -x"),
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
