"""A scheduler: the engine's, for one request after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.engine.scheduling.scheduler import Scheduler
from vllm_ext_dummy_platform import calls

if TYPE_CHECKING:
    from vllm_ext.contracts.stats import SchedulerStats
    from vllm_ext.engine.scheduling.request import EngineCoreOutput, Request, RequestStatus


class MyDummyScheduler(Scheduler):
    """Named by ``engine.scheduler_cls``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keywords = kwargs
        self.max_num_seqs = 1
        self.num_steps = 0
        self.longest_queue = 0

    def schedule(self) -> SchedulerOutput:
        calls["schedule"] += 1
        return super().schedule()

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> list[EngineCoreOutput]:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self.num_steps += bool(outputs)
        return outputs

    # Requests --------------------------------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        self.longest_queue = max(self.longest_queue, self.get_num_unfinished_requests())

    def finish_requests(self, request_ids: Iterable[str], finished_status: RequestStatus) -> None:
        super().finish_requests(request_ids, finished_status)

    def abort_all(self) -> list[str]:
        return sorted(super().abort_all())

    def get_num_unfinished_requests(self) -> int:
        return super().get_num_unfinished_requests()

    def has_unfinished_requests(self) -> bool:
        return self.get_num_unfinished_requests() > 0

    def has_finished_requests(self) -> bool:
        return super().has_finished_requests()

    def has_requests(self) -> bool:
        return self.has_unfinished_requests() or self.has_finished_requests()

    # Between steps ---------------------------------------------------------------------------------------------------

    def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        return super().reset_prefix_cache(reset_running_requests=reset_running_requests)

    def make_stats(self) -> SchedulerStats:
        return super().make_stats()

    def check_integrity(self) -> None:
        super().check_integrity()

    def shutdown(self) -> None:
        calls["scheduler_shutdown"] += 1
        super().shutdown()
