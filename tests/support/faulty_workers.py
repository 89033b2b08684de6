"""Workers with a fault in them, chosen by the setting ``worker.cls``; rank 1 has it, or all have."""

from __future__ import annotations

import os
import signal
from typing import Any

from vllm_ext.worker.worker import Worker


def is_rank_1() -> bool:
    return os.environ["LOCAL_RANK"] == "1"


class KilledInAStep(Worker):
    def execute_model(self, scheduler_output: Any) -> Any:
        if is_rank_1():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute_model(scheduler_output)


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
