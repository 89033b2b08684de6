"""What metadata builders give for a step, and what becomes of one that gives nothing."""

from __future__ import annotations

import pytest
from support.device import driven_worker

from vllm_ext.errors import ContractError


def test_a_builder_that_returns_nothing_is_named_when_the_first_step_is_made(random_llama):
    """Without metadata a layer would compute nothing, as in a run that only measures memory."""
    starting = driven_worker(random_llama, attention__backend="support.attention_backends.BuildsNothing")

    with pytest.raises(ContractError, match=r"attention_backends.ForgetfulBuilder returned None"), starting:
        pytest.fail("it started")
