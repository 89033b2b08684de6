"""Collectives between real processes, against torch.distributed's own results and against what they mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.collectives import CASES
from support.ranks import run_ranks

from vllm_ext import DeviceCommunicatorBase
from vllm_ext.distributed.gloo_communicator import GlooCommunicator

HERE = Path(__file__).parent
NEEDS_A_MANAGER = (
    "tokens_go_to_the_experts_and_their_results_come_back",
    "results_without_tokens_before_them_are_refused",
)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """By communicator and number of processes: what went wrong on each rank, by case."""
    found: dict[tuple[type, int], list[dict[str, str]]] = {}

    def run(communicator_cls: type, world_size: int) -> list[dict[str, str]]:
        if (communicator_cls, world_size) not in found:
            folder = tmp_path_factory.mktemp("ranks")
            target = f"{communicator_cls.__module__}:{communicator_cls.__name__}"
            run_ranks(HERE / "ranks_collectives.py", world_size, folder / "rendezvous", target, f"{folder}/")
            texts = [(folder / f"{rank}.json").read_text() for rank in range(world_size)]
            found[communicator_cls, world_size] = [json.loads(text) for text in texts]
        return found[communicator_cls, world_size]

    return run


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_between_processes(faults, world_size, case):
    on_ranks = faults(GlooCommunicator, world_size)

    assert [each.get(case, "") for each in on_ranks] == [""] * world_size


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in NEEDS_A_MANAGER])
def test_the_base_class_needs_no_help_for_any_of_them(faults, case):
    on_ranks = faults(DeviceCommunicatorBase, 2)

    assert [each.get(case, "") for each in on_ranks] == ["", ""]
