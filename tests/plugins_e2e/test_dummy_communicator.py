"""The dummy platform's communicator between two processes, against what the collectives mean."""

from __future__ import annotations

import os
import subprocess
import sys

RANK_SCRIPT = """
import sys, torch, torch.distributed as dist
from vllm_ext_dummy_platform import calls
from vllm_ext_dummy_platform.my_dummy_device_communicator import MyDummyDeviceCommunicator

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
communicator = MyDummyDeviceCommunicator(cpu_group=dist.group.WORLD)
both = [torch.arange(12.0).view(3, 4), 100 * torch.arange(12.0).view(3, 4)]
mine = both[rank]

def check(expected, found):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

check(torch.cat(both, dim=1), communicator.all_gather(mine))
check(torch.cat(both, dim=0), communicator.all_gather(mine, dim=0))
check((both[0] + both[1])[:, 2 * rank : 2 * rank + 2], communicator.reduce_scatter(mine))
gathered = communicator.gather(mine, dst=1, dim=0)
assert (gathered is None) == (rank == 0)
if rank == 1:
    check(torch.cat(both, dim=0), gathered)
check(both[1], communicator.broadcast(mine.clone(), src=1))
changed = mine.clone()
assert communicator.all_reduce(changed) is changed
check(both[0] + both[1], changed)
print(dict(calls))
# A rank that leaves while another still works would abort that one.
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_exchange_what_each_collective_promises(plugins, tmp_path):
    plugins.project("vllm_ext_dummy_platform")
    path = os.pathsep.join([str(plugins.site), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", RANK_SCRIPT, str(rank), str(tmp_path / "store")] for rank in range(2)]
    ranks = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]

    results = [rank.communicate(timeout=60) for rank in ranks]

    counts = {"all_gather": 2, "reduce_scatter": 1, "gather": 1, "broadcast": 1, "all_reduce": 1}
    for rank, (output, errors) in zip(ranks, results, strict=True):
        assert rank.returncode == 0, errors
        assert output.strip() == str(counts)
