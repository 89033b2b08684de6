"""A layer's collective is the communicator's method itself, once that has given something."""

from __future__ import annotations

import pytest
import torch
from support.device import driven_worker
from torch import nn

from vllm_ext.distributed.binding import bind_collective
from vllm_ext.errors import ContractError


def test_a_collective_that_returns_nothing_is_named_before_the_first_request(random_llama):
    starting = driven_worker(random_llama, communicator__cls="support.communicators.Silent")

    with (
        pytest.raises(
            ContractError, match=r"all_reduce\(\) of communicator support.communicators.Silent returned None; it has to"
        ),
        starting,
    ):
        pytest.fail("it started")


def test_after_its_first_result_the_method_is_called_itself(random_llama):
    with driven_worker(random_llama, communicator__cls="support.communicators.Own") as driver:
        communicator = driver.worker.tp_group.communicator
        layer = nn.Module()
        bind_collective(layer, "_all_reduce", communicator, "all_reduce")
        first = layer._all_reduce
        result = layer._all_reduce(torch.ones(1))

        assert first != communicator.all_reduce
        assert result.item() == 1
        assert layer._all_reduce == communicator.all_reduce
