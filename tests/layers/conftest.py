"""Layers are built as for an engine."""

from __future__ import annotations

import pytest
import torch
from support.device import make_dispatcher

from vllm_ext.distributed.parallel_state import GroupCoordinator, init_distributed_environment, use_tp_group


@pytest.fixture
def engine(random_llama):
    """The dispatcher of an engine in float32 that is being built."""
    dispatcher = make_dispatcher(random_llama)
    ranks = init_distributed_environment(1, 0, "")
    group = GroupCoordinator("tp:0", ranks, torch.device(dispatcher.platform.device_type), dispatcher)
    with dispatcher.activate(), use_tp_group(group):
        yield dispatcher
    group.destroy()
