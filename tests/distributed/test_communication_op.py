"""Model code asks for collectives by name, while an engine is built and while it steps."""

from __future__ import annotations

import pytest
import torch
from support.device import make_dispatcher

from vllm_ext import DeviceCommunicatorBase, distributed
from vllm_ext.distributed.parallel_state import GroupCoordinator, get_tp_group, init_distributed_environment


class Recorder(DeviceCommunicatorBase):
    """Answers with what it was asked."""

    def __getattribute__(self, name):
        if name in ("all_reduce", "all_gather", "reduce_scatter", "gather"):
            return lambda *args: (name, *args)
        return super().__getattribute__(name)


@pytest.fixture
def dispatcher(random_llama):
    dispatcher = make_dispatcher(random_llama, communicator__cls=f"{__name__}.Recorder")
    group = GroupCoordinator("tp:0", init_distributed_environment(1, 0, ""), torch.device("cpu"), dispatcher)
    yield dispatcher
    group.destroy()


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda x: distributed.tensor_model_parallel_all_reduce(x), ("all_reduce",)),
        (lambda x: distributed.tensor_model_parallel_all_gather(x), ("all_gather", -1)),
        (lambda x: distributed.tensor_model_parallel_all_gather(x, 0), ("all_gather", 0)),
        (lambda x: distributed.tensor_model_parallel_reduce_scatter(x), ("reduce_scatter", -1)),
        (lambda x: distributed.tensor_model_parallel_gather(x, 0, 1), ("gather", 0, 1)),
    ],
)
def test_it_is_the_communicator_of_the_running_engine_that_is_asked(dispatcher, call, asked):
    tensor = torch.ones(2, 2)

    with dispatcher.activate():
        name, given, *rest = call(tensor)

    assert (name, *rest) == asked
    assert given is tensor


def test_outside_of_an_engine_there_is_no_group(dispatcher):
    with pytest.raises(RuntimeError, match="no engine is active here"):
        get_tp_group()


def test_a_group_that_is_gone_is_not_found(random_llama):
    dispatcher = make_dispatcher(random_llama)
    group = GroupCoordinator("tp:0", init_distributed_environment(1, 0, ""), torch.device("cpu"), dispatcher)
    group.destroy()

    with dispatcher.activate(), pytest.raises(RuntimeError, match="no engine is active here"):
        get_tp_group()
