"""What each collective of a communicator has to give, as cases that run on every rank of a process group.

Each rank knows the tensors of all, so that what is expected comes from torch's own operations on them; where
torch.distributed has the same collective, its result is the expected one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.distributed as dist

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.errors import CollectiveError

DTYPES = (torch.float32, torch.bfloat16, torch.int64)
DIMS = (0, 1, 2, -1, -2, -3)
CASES: dict[str, Callable[[Rank], None]] = {}


@dataclass
class Rank:
    """One rank of a group, and its communicator."""

    rank: int
    world_size: int
    communicator: DeviceCommunicatorBase

    def shares(self, dtype: torch.dtype = torch.float32, sizes: list[int] | None = None, dim: int = 0) -> list:
        """The tensors ``[6, 12, 3]`` of all ranks, with ``sizes`` for ``dim``; small whole numbers, all different."""
        shapes = [[6, 12, 3] for _ in range(self.world_size)]
        for shape, size in zip(shapes, sizes or [], strict=False):
            shape[dim] = size
        counts = [torch.Size(shape).numel() for shape in shapes]
        return [
            ((torch.arange(count) * (rank + 2) + rank) % 61).to(dtype).view(shape)
            for rank, (count, shape) in enumerate(zip(counts, shapes, strict=True))
        ]

    def uneven(self) -> list[list[int]]:
        """Lengths by rank: growing, shrinking, one without anything, nobody with anything."""
        up = [2 * rank + 1 for rank in range(self.world_size)]
        return [up, up[::-1], [0, *up[1:]], [*up[:-1], 0], [0] * self.world_size]


def case(function: Callable[[Rank], None]) -> Callable[[Rank], None]:
    CASES[function.__name__] = function
    return function


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The same shape, dtype and numbers."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def refused(call: Callable[[], object], *parts: str) -> None:
    """``call`` raises CollectiveError, and the text has all ``parts``."""
    with pytest.raises(CollectiveError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), f"{caught.value} lacks one of {parts}"


@case
def all_reduce_sums_in_place(r: Rank) -> None:
    for dtype in DTYPES:
        mine, expected = r.shares(dtype)[r.rank], r.shares(dtype)[r.rank]
        dist.all_reduce(expected)
        assert r.communicator.all_reduce(mine) is mine
        same(mine, expected)
        same(mine, torch.stack(r.shares(dtype)).sum(0, dtype=dtype))


@case
def all_reduce_changes_the_memory_behind_a_view(r: Rank) -> None:
    whole = r.shares()[r.rank]
    r.communicator.all_reduce(whole.transpose(0, 2)[1:])
    total = torch.stack(r.shares()).sum(0)
    same(whole[:, :, 1:], total[:, :, 1:])
    same(whole[:, :, :1], r.shares()[r.rank][:, :, :1])


@case
def all_gather_concatenates_in_rank_order(r: Rank) -> None:
    for dtype, dim in product(DTYPES, DIMS):
        parts = [torch.empty(6, 12, 3, dtype=dtype) for _ in range(r.world_size)]
        dist.all_gather(parts, r.shares(dtype)[r.rank])
        same(r.communicator.all_gather(r.shares(dtype)[r.rank], dim), torch.cat(parts, dim))
    same(r.communicator.all_gather(r.shares()[r.rank]), torch.cat(r.shares(), -1))


@case
def all_gather_takes_views_and_empty_tensors(r: Rank) -> None:
    views = [share.transpose(0, 2)[:, ::2] for share in r.shares()]
    for dim in DIMS:
        same(r.communicator.all_gather(views[r.rank], dim), torch.cat(views, dim))
        same(
            r.communicator.all_gather(torch.empty(2, 0, 3), dim), torch.cat([torch.empty(2, 0, 3)] * r.world_size, dim)
        )


@case
def all_gatherv_concatenates_uneven_shares(r: Rank) -> None:
    for dtype, dim, sizes in product(DTYPES, DIMS, r.uneven()):
        shares = r.shares(dtype, sizes, dim)
        same(r.communicator.all_gatherv(shares[r.rank], dim, sizes), torch.cat(shares, dim))
    shares = r.shares(sizes=r.uneven()[0], dim=0)
    same(r.communicator.all_gatherv(shares[r.rank].transpose(1, 2), sizes=r.uneven()[0]), torch.cat(shares).mT)


@case
def all_gatherv_gathers_a_list_and_even_shares(r: Rank) -> None:
    sizes = r.uneven()[0]
    first, second = r.shares(sizes=sizes), r.shares(torch.int64, sizes)
    gathered = r.communicator.all_gatherv([first[r.rank], second[r.rank]], 0, sizes)
    assert isinstance(gathered, list)
    same(gathered[0], torch.cat(first))
    same(gathered[1], torch.cat(second))
    same(r.communicator.all_gatherv(r.shares()[r.rank]), torch.cat(r.shares()))


@case
def all_gatherv_refuses_lengths_that_do_not_fit(r: Rank) -> None:
    where, shape = f"rank {r.rank} of {r.world_size} in group 'tp:0'", "shape [6, 12, 3]"
    mine = r.shares()[r.rank]
    refused(lambda: r.communicator.all_gatherv(mine, 0, [6]), "all_gatherv", where, shape, "one length", "[6]")
    refused(lambda: r.communicator.all_gatherv(mine, 0, [5] * r.world_size), where, shape, "say 5 for dimension 0")


@case
def reduce_scatter_keeps_an_even_share_of_the_sum(r: Rank) -> None:
    for dtype, dim in product(DTYPES, (0, 1, -2, -3)):
        total = torch.stack(r.shares(dtype)).sum(0, dtype=dtype)
        mine = r.shares(dtype)[r.rank]
        found = r.communicator.reduce_scatter(mine, dim)
        same(found, total.chunk(r.world_size, dim)[r.rank])
        assert found.is_contiguous()
        same(mine, r.shares(dtype)[r.rank])
    views = [share.transpose(0, 1) for share in r.shares()]
    total = torch.stack(views).sum(0)
    same(r.communicator.reduce_scatter(views[r.rank], 1), total.chunk(r.world_size, 1)[r.rank])


@case
def reduce_scatter_refuses_what_cannot_be_shared_evenly(r: Rank) -> None:
    refused(
        lambda: r.communicator.reduce_scatter(torch.ones(4, 5 * r.world_size + 1)),
        f"reduce_scatter on rank {r.rank} of {r.world_size} in group 'tp:0'",
        f"shape [4, {5 * r.world_size + 1}]: dimension 1 cannot be shared evenly",
    )


@case
def reduce_scatterv_keeps_an_uneven_share_of_the_sum(r: Rank) -> None:
    for dtype, dim, sizes in product(DTYPES, DIMS, r.uneven()):
        lengths = [sum(sizes)] * r.world_size
        total = torch.stack(r.shares(dtype, lengths, dim)).sum(0, dtype=dtype)
        mine = r.shares(dtype, lengths, dim)[r.rank]
        expected = total.split(sizes, dim)[r.rank]
        same(r.communicator.reduce_scatterv(mine, dim, sizes), expected)
        output = torch.empty(expected.shape, dtype=dtype)
        assert r.communicator.reduce_scatterv_into_output(mine, output, dim, sizes) is None
        same(output, expected)
    total = torch.stack(r.shares()).sum(0)
    same(r.communicator.reduce_scatterv(r.shares()[r.rank], 1), total.chunk(r.world_size, 1)[r.rank])


@case
def reduce_scatterv_refuses_lengths_that_do_not_fit(r: Rank) -> None:
    where, mine = f"rank {r.rank} of {r.world_size} in group 'tp:0'", r.shares()[r.rank]
    short = [1] * r.world_size
    refused(lambda: r.communicator.reduce_scatterv(mine, 0, short), where, f"{short} add up to {r.world_size}")
    refused(lambda: r.communicator.reduce_scatterv(mine, 0, [-6, 12, *[0] * r.world_size]), where, "one length")
    refused(lambda: r.communicator.reduce_scatterv(mine, 0, [7, -1, *[0] * (r.world_size - 2)]), where, "from 0 on")
    refused(
        lambda: r.communicator.reduce_scatterv_into_output(mine, torch.empty(1), 1),
        "reduce_scatterv_into_output", where, f"the result has shape [6, {12 // r.world_size}, 3]",
    )  # fmt: skip


@case
def gather_concatenates_on_one_rank(r: Rank) -> None:
    for dtype, dim, dst in product(DTYPES, DIMS, range(r.world_size)):
        mine = r.shares(dtype)[r.rank]
        expected = [torch.empty_like(mine) for _ in range(r.world_size)] if r.rank == dst else None
        dist.gather(mine, expected, dst=dst)
        found = r.communicator.gather(mine, dst, dim)
        assert (found is None) == (r.rank != dst)
        if found is not None:
            same(found, torch.cat(expected, dim))
    views = [share.transpose(0, 2) for share in r.shares()]
    if (found := r.communicator.gather(views[r.rank])) is not None:
        same(found, torch.cat(views, -1))


@case
def broadcast_fills_in_place(r: Rank) -> None:
    for dtype, src in product(DTYPES, range(r.world_size)):
        mine = r.shares(dtype)[r.rank]
        assert r.communicator.broadcast(mine, src) is mine
        same(mine, r.shares(dtype)[src])
    whole = r.shares()[r.rank]
    r.communicator.broadcast(whole.transpose(0, 2)[1:], 1)
    same(whole[:, :, 1:], r.shares()[1][:, :, 1:])
    same(whole[:, :, 0], r.shares()[r.rank][:, :, 0])


@case
def a_ring_of_sends_and_receives(r: Rank) -> None:
    before = (r.rank - 1) % r.world_size
    for dtype in DTYPES:
        mine = r.shares(dtype)[r.rank].transpose(0, 1)
        shape = tuple(mine.shape)
        if r.rank == 0:
            r.communicator.send(mine)
        found = r.communicator.recv(shape, dtype)
        if r.rank:
            r.communicator.send(mine)
        same(found, r.shares(dtype)[before].transpose(0, 1))


@case
def a_message_to_a_named_rank(r: Rank) -> None:
    last = r.world_size - 1
    if r.rank == last:
        r.communicator.send(torch.tensor([3, 4]), dst=0)
        r.communicator.send(torch.empty(0), dst=0)
    elif r.rank == 0:
        same(r.communicator.recv([2], torch.int64, src=last), torch.tensor([3, 4]))
        assert r.communicator.recv((0,), torch.float32, src=last).shape == (0,)


@case
def sends_and_receives_of_a_batch_do_not_block_each_other(r: Rank) -> None:
    group, others = r.communicator.device_group, [rank for rank in range(r.world_size) if rank != r.rank]
    found = {other: torch.empty(6, 12, 3) for other in others}
    ops = [dist.P2POp(dist.irecv, found[other], other, group) for other in others]
    ops += [dist.P2POp(dist.isend, r.shares()[r.rank], other, group) for other in others]
    assert r.communicator.batch_isend_irecv(ops) is None
    for other in others:
        same(found[other], r.shares()[other])
    assert r.communicator.batch_isend_irecv([]) is None


@case
def ranks_and_dimensions_that_do_not_exist_are_refused(r: Rank) -> None:
    c, mine, n = r.communicator, r.shares()[r.rank], r.world_size
    where = f"rank {r.rank} of {n} in group 'tp:0'"
    for method in ("all_gather", "all_gatherv", "reduce_scatter", "reduce_scatterv", "gather"):
        refused(lambda method=method: getattr(c, method)(mine, dim=3), where, "[6, 12, 3]", "no dimension 3")
        refused(lambda method=method: getattr(c, method)(mine, dim=-4), where, "no dimension -4")
    refused(lambda: c.gather(mine, dst=n), f"gather on {where}: dst is {n}, and there is no such rank")
    refused(lambda: c.broadcast(mine, src=-1), f"broadcast on {where}: src is -1")
    refused(lambda: c.send(mine, dst=n), f"send on {where}: dst is {n}")
    refused(lambda: c.send(mine, dst=r.rank), f"send on {where}: dst is this rank itself")
    refused(lambda: c.recv((1,), torch.float32, src=r.rank), f"recv on {where}: src is this rank itself")


@case
def without_experts_elsewhere_tokens_stay_where_they_are(r: Rank) -> None:
    c, tokens, weights, ids = r.communicator, torch.rand(3, 4), torch.rand(3, 2), torch.ones(3, 2, dtype=torch.int64)
    assert c.all2all_manager is None
    hidden, logits = c.dispatch_router_logits(tokens, weights)
    assert hidden is tokens
    assert logits is weights
    assert c.dispatch_router_logits(tokens, weights, extra_tensors=[ids])[2] == [ids]
    assert all(
        one is other for one, other in zip(c.dispatch(tokens, weights, ids), (tokens, weights, ids), strict=True)
    )
    assert c.dispatch(tokens, weights, ids, extra_tensors=[])[3] == []
    assert c.combine(tokens) is tokens
    output = torch.empty(3, 4)
    c.combine_into_output(tokens, output)
    same(output, tokens)
    refused(lambda: c.combine_into_output(tokens, torch.empty(2, 4)), "combine_into_output", "[2, 4]", "[3, 4]")
    assert c.allocate_combine_input((3, 4), torch.float32, c.device) is None
    assert c.get_symmetric_memory_buffer("any", (3, 4), torch.float32, c.device) is None
    for method in (c.suspend, c.resume, c.checkpoint_prepare, c.checkpoint_restore):
        assert method() is None


@case
def tokens_go_to_the_experts_and_their_results_come_back(r: Rank) -> None:
    ep = type(r.communicator)(cpu_group=dist.group.WORLD, unique_name="ep:0", use_all2all=True)
    for sizes in r.uneven():
        tokens = [share.flatten(1) for share in r.shares(sizes=sizes)]
        ids = [(torch.arange(size) + rank)[:, None] % r.world_size for rank, size in enumerate(sizes)]
        weights = [each.float() + 1 for each in ids]
        hidden, all_weights, all_ids = ep.dispatch(tokens[r.rank], weights[r.rank], ids[r.rank])
        same(hidden, torch.cat(tokens))
        same(all_ids, torch.cat(ids))
        # One expert on each rank: it multiplies by its number plus ten.
        result = torch.where(all_ids == r.rank, hidden * all_weights * (r.rank + 10), 0)
        same(ep.combine(result), tokens[r.rank] * weights[r.rank] * (ids[r.rank] + 10))
        output = torch.empty_like(tokens[r.rank])
        ep.combine_into_output(result, output)
        same(output, ep.combine(result))
        hidden, logits, (extra,) = ep.dispatch_router_logits(
            tokens[r.rank], weights[r.rank], extra_tensors=[ids[r.rank]]
        )
        same(logits, torch.cat(weights))
        same(extra, torch.cat(ids))
    ep.destroy()
    assert ep.all2all_manager is None


@case
def results_without_tokens_before_them_are_refused(r: Rank) -> None:
    ep = type(r.communicator)(cpu_group=dist.group.WORLD, unique_name="ep:0", use_all2all=True)
    refused(
        lambda: ep.combine(torch.ones(2, 2)), f"combine on rank {r.rank} of {r.world_size} in group 'ep:0': no disp"
    )


@case
def a_part_of_the_ranks_is_a_group_of_its_own(r: Rank) -> None:
    members = [r.world_size - 1, 0]
    group = dist.new_group(members)
    if r.rank in members:
        part = type(r.communicator)(cpu_group=group, unique_name="tp:1")
        place = part.rank_in_group
        assert (part.ranks, part.world_size, part.global_world_size) == (sorted(members), 2, r.world_size)
        assert part.global_rank == r.rank
        share = r.shares()[r.rank]
        both = torch.cat([r.shares()[rank] for rank in sorted(members)])
        same(part.all_gather(share, 0), both)
        same(part.broadcast(share.clone(), src=1), r.shares()[r.world_size - 1])
        assert (part.gather(share, dst=1, dim=0) is None) == (place == 0)
        if place == 0:
            part.send(share)
        else:
            same(part.recv((6, 12, 3), torch.float32), r.shares()[0])
    dist.barrier()
