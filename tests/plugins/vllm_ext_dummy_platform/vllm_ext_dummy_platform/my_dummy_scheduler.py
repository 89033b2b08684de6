"""A scheduler: the engine's, for one request after the other."""

from __future__ import annotations

from typing import Any

from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.engine.scheduler import Scheduler
from vllm_ext_dummy_platform import calls


class MyDummyScheduler(Scheduler):
    """Named by ``engine.scheduler_cls``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keywords = kwargs
        self.max_num_seqs = 1

    def schedule(self) -> SchedulerOutput:
        calls["schedule"] += 1
        return super().schedule()

    def shutdown(self) -> None:
        calls["scheduler_shutdown"] += 1
