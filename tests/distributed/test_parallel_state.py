"""Process groups of one engine, of two in one process, and of an engine on two processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from support.device import driven_worker, make_dispatcher
from support.ranks import assert_two_ranks_give_the_logits_of_one

from vllm_ext.distributed.gloo_communicator import GlooCommunicator
from vllm_ext.distributed.parallel_state import (
    GroupCoordinator,
    get_tp_group,
    init_distributed_environment,
    use_tp_group,
)
from vllm_ext.errors import EngineError

DEVICE = torch.device("cpu")


@pytest.fixture
def coordinator(random_llama):
    ranks = init_distributed_environment(1, 0, "")
    coordinator = GroupCoordinator("tp:0", ranks, DEVICE, make_dispatcher(random_llama))
    yield coordinator
    coordinator.destroy()


def test_a_group_has_the_platforms_communicator(coordinator):
    assert isinstance(coordinator.communicator, GlooCommunicator)
    assert coordinator.communicator.unique_name == "tp:0"
    assert coordinator.communicator.device == DEVICE
    assert (coordinator.rank_in_group, coordinator.world_size) == (0, 1)


def test_a_collective_of_one_gives_back_its_input(coordinator):
    tensor = torch.ones(3)

    for collective in ("all_reduce", "all_gather", "reduce_scatter", "gather", "broadcast"):
        assert getattr(coordinator.communicator, collective)(tensor) is tensor


def test_groups_of_engines_in_one_process_are_independent(random_llama, coordinator):
    other = GroupCoordinator("tp:0", init_distributed_environment(1, 0, ""), DEVICE, make_dispatcher(random_llama))
    other.destroy()

    dist.all_reduce(torch.ones(1), group=coordinator.device_group)
    with pytest.raises(ValueError, match="is not registered"):
        dist.get_rank(other.cpu_group)


def test_an_engine_of_two_processes_cannot_join_a_process_that_has_a_smaller_group(coordinator):
    with pytest.raises(EngineError, match="an engine of 2 processes cannot start here"):
        init_distributed_environment(2, 0, "file:///nowhere")


def test_the_group_is_known_while_the_model_is_built_only(coordinator):
    with use_tp_group(coordinator):
        assert get_tp_group() is coordinator
    with pytest.raises(RuntimeError, match="use_tp_group"):
        get_tp_group()


def test_two_workers_in_one_process_take_turns(random_llama):
    with driven_worker(random_llama) as one, driven_worker(random_llama) as two:
        one.add("a", [5, 6, 7])
        two.add("a", [5, 6, 7])
        first = one.step({"a": 3})
        two.step({"a": 3})
        one.worker.shutdown()
        second = two.step({"a": 1})

    assert len(first["a"]) == len(second["a"]) == 1


def test_a_model_on_two_processes_gives_the_logits_of_one(tmp_path, random_llama):
    assert_two_ranks_give_the_logits_of_one(random_llama, tmp_path)


def test_groups_can_be_made_whichever_of_the_older_ones_have_ended(random_llama, coordinator):
    """torch counts groups to name them."""
    made = [GroupCoordinator("tp:0", [0], DEVICE, make_dispatcher(random_llama)) for _ in range(2)]
    made.pop(0).destroy()
    made += [GroupCoordinator("tp:0", [0], DEVICE, make_dispatcher(random_llama)) for _ in range(2)]

    for group in made:
        assert group.all_reduce(torch.ones(1)).tolist() == [1.0]
        group.destroy()


def test_groups_can_be_made_in_several_threads_at_once(random_llama, coordinator):
    dispatchers = [make_dispatcher(random_llama) for _ in range(8)]

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda dispatcher: GroupCoordinator("tp:0", [0], DEVICE, dispatcher), dispatchers))

    for group in made:
        assert group.all_reduce(torch.ones(1)).tolist() == [1.0]
        group.destroy()
