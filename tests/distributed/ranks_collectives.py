"""One rank: runs all cases on a communicator, ``module:class``, and writes what went wrong as JSON."""

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path

import pytest
import torch.distributed as dist
from support.collectives import CASES, Rank

from vllm_ext.distributed.parallel_state import init_distributed_environment

rank, world_size, init_method, target, output = sys.argv[1:]
init_distributed_environment(int(world_size), int(rank), init_method)
module, _, name = target.partition(":")
communicator_cls = getattr(import_module(module), name)
communicator = communicator_cls(cpu_group=dist.group.WORLD, unique_name="tp:0")
faults = {}
for case, run in CASES.items():
    try:
        run(Rank(int(rank), int(world_size), communicator))
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - it is the result
        faults[case] = traceback.format_exc()
    # Before the next case: a rank that went on alone would confuse the others.
    dist.barrier()
Path(f"{output}{rank}.json").write_text(json.dumps(faults))
# A rank that leaves while another still works would abort that one.
dist.barrier()
dist.destroy_process_group()
