"""One rank: the communicator's collectives give what torch.distributed's own give."""

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.distributed.gloo_communicator import GlooCommunicator
from vllm_ext.distributed.parallel_state import init_distributed_environment

RANK, WORLD_SIZE, INIT_METHOD = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def share() -> torch.Tensor:
    return torch.arange(24.0).view(2, 4, 3) * (RANK + 1) + RANK


def all_shares() -> list[torch.Tensor]:
    parts = [torch.empty(2, 4, 3) for _ in range(WORLD_SIZE)]
    dist.all_gather(parts, share())
    return parts


def total() -> torch.Tensor:
    summed = share()
    dist.all_reduce(summed)
    return summed


def check(name: str, result: object, expected: torch.Tensor | None) -> None:
    same = result is None if expected is None else torch.equal(result, expected)
    if not same:
        raise SystemExit(f"rank {RANK}: {name} gave {result}, expected {expected}")


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except ValueError:
        return True
    return False


def main() -> None:
    ranks = init_distributed_environment(WORLD_SIZE, RANK, INIT_METHOD)
    check("ranks", torch.tensor(ranks), torch.arange(WORLD_SIZE))
    communicator: DeviceCommunicatorBase = GlooCommunicator(cpu_group=dist.group.WORLD, unique_name="tp:0")
    parts, summed = all_shares(), total()
    mine = share()
    reduced = communicator.all_reduce(mine)
    check("all_reduce", reduced, summed)
    check("all_reduce in place", torch.tensor(reduced.data_ptr() == mine.data_ptr()), torch.tensor(True))
    for dim in (-1, 0, 1):
        check(f"all_gather {dim}", communicator.all_gather(share(), dim), torch.cat(parts, dim))
    check(
        "all_gather of a view",
        communicator.all_gather(share().transpose(0, 2), 1),
        torch.cat([p.transpose(0, 2) for p in parts], 1),
    )
    check("reduce_scatter", communicator.reduce_scatter(share(), 1), summed.chunk(WORLD_SIZE, 1)[RANK])
    check(
        "uneven reduce_scatter",
        torch.tensor(fails(lambda: communicator.reduce_scatter(share(), 2))),
        torch.tensor(True),
    )
    check("gather", communicator.gather(share(), dst=1, dim=0), torch.cat(parts, 0) if RANK == 1 else None)
    check("broadcast", communicator.broadcast(share(), src=1), parts[1])
    if RANK == 0:
        communicator.send(share())
    else:
        check("recv", communicator.recv((2, 4, 3), torch.float32), parts[0])
    # A rank that leaves while the other still works would abort that one.
    dist.barrier()
    dist.destroy_process_group()


main()
