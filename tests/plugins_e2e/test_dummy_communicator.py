"""The dummy platform's communicator: between two processes, and every override of it reached through its group."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.collectives import CASES
from support.compatibility import rows_of
from support.overrides import remove
from support.ranks import TESTS, run_ranks

from vllm_ext.config import Override, load_config
from vllm_ext.dispatch.bootstrap import bootstrap
from vllm_ext.distributed.parallel_state import GroupCoordinator, init_distributed_environment
from vllm_ext.errors import CollectiveError

MODULE, CLASS = "my_dummy_device_communicator", "MyDummyDeviceCommunicator"
ONE, IDS = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.int64)

CALLS: dict[str, Callable[[GroupCoordinator], Any]] = {
    "all_reduce": lambda group: group.all_reduce(ONE.clone()),
    "all_gather": lambda group: group.all_gather(ONE),
    "all_gatherv": lambda group: group.all_gatherv(ONE, 0, [2]),
    "reduce_scatter": lambda group: group.reduce_scatter(ONE),
    "reduce_scatterv": lambda group: group.reduce_scatterv(ONE, 0, [2]),
    "reduce_scatterv_into_output": lambda group: group.communicator.reduce_scatterv_into_output(ONE, ONE.clone()),
    "gather": lambda group: group.gather(ONE),
    "broadcast": lambda group: group.broadcast(ONE.clone()),
    "send": lambda group: group.send(ONE),
    "recv": lambda group: group.recv((2, 2), torch.float32),
    "batch_isend_irecv": lambda group: group.communicator.batch_isend_irecv([]),
    "dispatch_router_logits": lambda group: group.dispatch_router_logits(ONE, ONE),
    "dispatch": lambda group: group.dispatch(ONE, ONE, IDS),
    "combine": lambda group: group.combine(ONE),
    "combine_into_output": lambda group: group.communicator.combine_into_output(ONE, ONE.clone()),
    "allocate_combine_input": lambda group: group.communicator.allocate_combine_input((2, 2), ONE.dtype, ONE.device),
    "destroy": lambda group: group.destroy(),
}


def calls_of(method: str, model: Path) -> Counter[str]:
    """What the plugin counts while its group, of one rank, is asked for ``method``."""
    settings = {"engine.model": str(model), "platform.driver": "dummy"}
    overrides = [Override(key, value, "test") for key, value in settings.items()]
    dispatcher = bootstrap(load_config(overrides=overrides, environ={})).dispatcher()
    group = GroupCoordinator("tp:0", init_distributed_environment(1, 0, ""), torch.device("cpu"), dispatcher)
    from vllm_ext_dummy_platform import calls

    calls.clear()
    # There is nobody else to talk to.
    with pytest.raises(CollectiveError) if method in ("send", "recv") else nullcontext():
        CALLS[method](group)
    seen = Counter(calls)
    if method != "destroy":
        group.destroy()
    return seen


def test_two_ranks_exchange_what_each_collective_promises(plugins, tmp_path):
    plugins.project("vllm_ext_dummy_platform")
    target = f"vllm_ext_dummy_platform.{MODULE}:{CLASS}"
    script = TESTS / "distributed" / "ranks_collectives.py"

    run_ranks(script, 2, tmp_path / "rendezvous", target, f"{tmp_path}/", site=plugins.site)

    # It says in words of its own what it refuses, and knows no experts elsewhere.
    others = {case for case in CASES if "refuse" in case or "experts_and_their" in case}
    for rank in range(2):
        faults = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {case: text for case, text in faults.items() if case not in others} == {}


def test_all_that_is_called_is_overridden():
    rows = [cells[0].split(".") for cells in rows_of("Documented functions")]

    assert set(CALLS) == {row[1] for row in rows if row[0] == "DeviceCommunicatorBase"}


@pytest.mark.parametrize("method", CALLS)
def test_every_override_is_reached(plugins, random_llama, method):
    plugins.project("vllm_ext_dummy_platform")

    assert calls_of(method, random_llama)[method] == 1


@pytest.mark.parametrize("method", CALLS)
def test_an_override_that_is_left_out_is_not_counted(plugins, random_llama, method):
    remove(plugins.project("vllm_ext_dummy_platform"), MODULE, f"{CLASS}.{method}")

    assert calls_of(method, random_llama)[method] == 0
