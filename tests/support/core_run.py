"""An engine core on the fake worker, step by step, with the books checked after each."""

from __future__ import annotations

import pytest
from support.fake_engine import FakeDispatcher, FakeWorker, make_vllm_config

from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.scheduling.request import EngineCoreOutput, Request


class Run:
    """An engine core, its worker, and all that came out of it."""

    def __init__(self, **options: object) -> None:
        dispatcher = FakeDispatcher(make_vllm_config(**options))
        self.core = EngineCore(dispatcher)
        assert isinstance(dispatcher.worker, FakeWorker)
        self.worker = dispatcher.worker
        self.scheduler = self.core.scheduler
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}

    def add(self, request_id: str, prompt: list[int], max_tokens: int = 5, priority: int = 0, **params: object) -> None:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, **params)
        self.core.add_request(Request(request_id, prompt, sampling, frozenset({0}), priority=priority))
        self.tokens[request_id] = []

    def step(self) -> list[EngineCoreOutput]:
        outputs = self.core.step()
        for output in outputs:
            self.tokens[output.request_id] += output.new_token_ids
            if output.finish_reason is not None:
                self.reasons[output.request_id] = output.finish_reason
        self.scheduler.check_integrity()
        return outputs

    def finish(self) -> None:
        while self.core.has_requests():
            self.step()


def engine(**options: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("run", [options], indirect=True, ids=[""])
