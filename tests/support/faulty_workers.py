"""Workers with a fault in them, chosen by the setting ``worker.cls``; rank 1 has it, or all have."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np

from vllm_ext.worker.worker import Worker


class NeedsMore(namedtuple("_First", "first")):
    """What it is made of is more than what it has."""

    def __new__(cls, first: int, more: int) -> NeedsMore:
        return super().__new__(cls, first)


@dataclasses.dataclass
class Report:
    """Counts what happens to it: what follows from the fields is computed once."""

    rank: int
    losses: list[float] = dataclasses.field(init=False, default_factory=list)
    scale: dataclasses.InitVar[float] = 2.0

    def __post_init__(self, scale: float) -> None:
        self.rank *= int(scale)
        self.note = f"rank {self.rank}"


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenReport:
    rank: int
    mean: float = dataclasses.field(init=False)


def is_rank_1() -> bool:
    return os.environ["LOCAL_RANK"] == "1"


class KilledInAStep(Worker):
    def execute_model(self, scheduler_output: Any) -> Any:
        if is_rank_1():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute_model(scheduler_output)


class KnowsNothing(Worker):
    def get_supported_sampling_params(self) -> frozenset[str]:
        raise RuntimeError("no idea what I support")


class OneFailsToLoad(Worker):
    def load_model(self, **options: Any) -> None:
        if is_rank_1():
            raise RuntimeError("no weights here")
        super().load_model(**options)


class AllFailToLoad(Worker):
    def load_model(self, **options: Any) -> None:
        raise RuntimeError("no weights here")


class OneFailsInAStep(Worker):
    def execute_model(self, scheduler_output: Any) -> Any:
        if is_rank_1():
            raise RuntimeError("no step here")
        return super().execute_model(scheduler_output)


class AllFailInTheirFirstStep(Worker):
    has_failed = False

    def execute_model(self, scheduler_output: Any) -> Any:
        if not self.has_failed:
            self.has_failed = True
            raise RuntimeError("no first step")
        return super().execute_model(scheduler_output)


class PanicsInItsFirstStep(Worker):
    has_failed = False

    def execute_model(self, scheduler_output: Any) -> Any:
        if not self.has_failed:
            self.has_failed = True
            # As the errors of compiled parts that are written in Rust.
            raise BaseException("no first step")
        return super().execute_model(scheduler_output)


class FindsNoWeights(Worker):
    def load_model(self, **options: Any) -> None:
        next(iter([]))


class HangsInItsThirdStep(Worker):
    """Whoever is to find it in a step has all the time."""

    num_steps = 0

    def execute_model(self, scheduler_output: Any) -> Any:
        self.num_steps += 1
        if self.num_steps == 3:
            time.sleep(3600)
        return super().execute_model(scheduler_output)


class NumpyTokens(Worker):
    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        output.sampled_token_ids = [list(np.array(row, dtype=np.int64)) for row in output.sampled_token_ids]
        return output


class FloatsInItsFirstStep(Worker):
    has_failed = False

    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        if not self.has_failed:
            self.has_failed = True
            output.sampled_token_ids = [[float(token) for token in row] for row in output.sampled_token_ids]
        return output


class OneNeverJoins(Worker):
    def init_device(self) -> None:
        if is_rank_1():
            time.sleep(3600)
        super().init_device()


class OneHasNoMemory(Worker):
    """The cache is allocated where the process may not grow any more."""

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        if is_rank_1():
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        super().initialize_from_config(kv_cache_config)
