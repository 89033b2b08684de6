"""Ranks of a tensor-parallel group in a process that has only one, for layers that are looked at one by one."""

from __future__ import annotations

from typing import Any

import torch


class LoneRank:
    """A rank that computes when its turn comes, rank after rank.

    Args:
        given: what the ranks before it gave to ``all_gather``; the last rank's result is what all would have.
    """

    def __init__(self, rank: int, world_size: int, given: list[torch.Tensor] | None = None) -> None:
        self.rank_in_group = rank
        self.world_size = world_size
        self.given = [] if given is None else given

    @property
    def communicator(self) -> Any:
        return self

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """The part itself: the test sums them."""
        return input_

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        self.given.append(input_)
        return torch.cat(self.given, dim=dim)
