"""How much the KV cache may take, and how the largest step is measured."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.device import driven_worker, make_dispatcher
from support.families import ADAPTED, NATIVE, write_model

from vllm_ext import SamplingParams
from vllm_ext.contracts.platform import Platform
from vllm_ext.errors import EngineError
from vllm_ext.worker.memory import LivingTensors, available_kv_cache_memory, measure_peak, measure_step
from vllm_ext.worker.sampling import ops

DEVICE = torch.device("cpu")
WEIGHT = torch.ones(10, 10)
UNKNOWN = torch.device("privateuseone", 0)
"""A device of which torch cannot say how much is in use."""


class Counting(Platform):
    """Reports what the test says is in use."""

    used = 100

    @classmethod
    def get_current_memory_usage(cls, device=None):
        return cls.used


def test_half_of_what_the_largest_step_leaves_free():
    assert available_kv_cache_memory(total=1000, used=400, wanted=None) == 300


def test_an_amount_that_was_asked_for_is_given_whole():
    assert available_kv_cache_memory(total=1000, used=400, wanted=600) == 600


def test_more_than_is_free_is_refused_with_the_amounts():
    with pytest.raises(EngineError, match=r"asks for 601 bytes; the device has 600 free of 1000"):
        available_kv_cache_memory(total=1000, used=400, wanted=601)


def test_a_full_device_leaves_nothing():
    assert available_kv_cache_memory(total=1000, used=1200, wanted=None) == 0


def test_the_peak_is_that_of_the_run_and_not_what_is_left_after_it(monkeypatch):
    monkeypatch.setattr(Counting, "used", 100)
    samples = []

    class Watched(Counting):
        @classmethod
        def get_current_memory_usage(cls, device=None):
            samples.append(cls.used)
            return cls.used

    def run() -> None:
        Counting.used = 700
        taken = len(samples)
        while len(samples) < taken + 2:
            pass
        Counting.used = 200

    assert measure_peak(Watched(), UNKNOWN, run) == 700


def living_bytes(run: Callable[[], object]) -> tuple[int, int]:
    """Of what ``run`` makes: the most at once, and what is left while its result is."""
    with torch.inference_mode(), LivingTensors() as living:
        result = run()
        peak, left = living.reset_peak(), living.reset_peak()
        del result
    return peak, left


@pytest.mark.parametrize(
    ("run", "peak", "left"),
    [
        (lambda: torch.empty(1000), 4000, 4000),
        (lambda: torch.empty(1000)[:10], 4000, 4000),
        (lambda: (torch.empty(1000) + 1).sum(), 8000, 4),
        (lambda: torch.empty(1000).add_(1), 4000, 4000),
        (lambda: [torch.empty(1000).sum() for _ in range(3)], 4012, 12),
        (lambda: WEIGHT.view(-1)[:10].t(), 0, 0),
        (lambda: WEIGHT.half().softmax(-1, dtype=torch.float32), 200 + 400 + 400, 400),
    ],
    ids=["new", "a view of it", "gone", "in place", "one after the other", "a view of an older one", "within an op"],
)
def test_tensors_count_while_they_live(run, peak, left):
    assert living_bytes(run) == (peak, left)


def process_peak(run: Callable[[], object]) -> int:
    """Bytes that this process has in memory during ``run``, at most, beyond those before."""

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    # What earlier tests have let go is given back first, where the C library can do that: it would be used again.
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", NATIVE | ADAPTED)
def test_what_two_small_steps_say_holds_for_the_largest(tmp_path, family, dtype):
    model = write_model(tmp_path / "model", (NATIVE | ADAPTED)[family])
    settings = {"engine__max_num_batched_tokens": 700, "engine__max_num_seqs": 300, "engine__dtype": dtype}

    with driven_worker(model, **settings) as driver, driver.dispatcher.activate():
        step = driver.worker.model_runner.largest_step()
        said = measure_step(Counting(), DEVICE, step) - Counting.used
        peak, _ = living_bytes(step.compute)

    assert step[:2] == (700, 300)
    assert peak <= said < 1.6 * peak, said / peak


def test_what_they_say_is_what_the_process_takes(random_llama):
    settings = {"engine__max_num_batched_tokens": 1 << 16, "engine__max_num_seqs": 1 << 10}
    with driven_worker(random_llama, **settings) as driver, driver.dispatcher.activate():
        step = driver.worker.model_runner.largest_step()
        said = measure_step(Counting(), DEVICE, step) - Counting.used

        assert process_peak(step.compute) == pytest.approx(said, rel=0.4)


def test_where_torch_counts_what_a_device_allocates_its_peak_is_taken():
    class WithAllocator(Counting):
        allocated = peak = 0

        @classmethod
        def reset_peak_memory_stats(cls, device):
            cls.peak = cls.allocated

        @classmethod
        def memory_allocated(cls, device):
            return cls.allocated

        @classmethod
        def max_memory_allocated(cls, device):
            return cls.peak

    def run() -> None:
        WithAllocator.peak = 1050
        WithAllocator.allocated = 60

    WithAllocator.peak, WithAllocator.allocated = 5000, 50

    assert measure_peak(WithAllocator(), UNKNOWN, run) == 100 + 1000


def test_a_failing_run_stops_the_measurement():
    def run() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measure_peak(Counting(), DEVICE, run)


def test_a_worker_offers_at_most_half_of_the_machine(random_llama):
    with driven_worker(random_llama) as driver, driver.dispatcher.activate():
        available = driver.worker.determine_available_memory()

    assert 0 < available <= driver.dispatcher.platform.get_device_total_memory() / 2


def test_the_largest_step_has_all_tokens_and_all_requests(random_llama):
    with driven_worker(random_llama, engine__max_num_batched_tokens=300, engine__max_num_seqs=5) as driver:
        tokens = []
        driver.worker.get_model().register_forward_pre_hook(lambda _, inputs: tokens.append(len(inputs[0])))
        with driver.dispatcher.activate():
            driver.worker.model_runner.largest_step().compute()

        assert tokens == [300]
        assert driver.logits.shape[0] == 5


def test_a_processor_computes_a_few_tokens_of_it(random_llama):
    with driven_worker(random_llama, engine__max_num_batched_tokens=300) as driver:
        tokens = []
        driver.worker.get_model().register_forward_pre_hook(lambda _, inputs: tokens.append(len(inputs[0])))
        with driver.dispatcher.activate():
            driver.worker.determine_available_memory()

        assert sum(tokens) < 16


def test_a_device_computes_it_whole(random_llama):
    class OnDevice(Counting):
        def memory_allocated(self, device):
            return 0

        reset_peak_memory_stats = max_memory_allocated = memory_allocated

    with driven_worker(random_llama, engine__max_num_batched_tokens=300) as driver, driver.dispatcher.activate():
        tokens = []
        driver.worker.get_model().register_forward_pre_hook(lambda _, inputs: tokens.append(len(inputs[0])))
        measure_step(OnDevice(), DEVICE, driver.worker.model_runner.largest_step())

    assert tokens == [300]


def test_tokens_are_drawn_in_the_measured_run_and_requests_draw_the_same_as_without_it(random_llama, monkeypatch):
    drawing = []
    draw_tokens = ops.draw_tokens
    monkeypatch.setattr(ops, "draw_tokens", lambda x, choice, u: drawing.append(choice) or draw_tokens(x, choice, u))

    def tokens(*, measured: bool) -> list[int]:
        with driven_worker(random_llama, engine__max_num_seqs=5) as driver:
            if measured:
                with driver.dispatcher.activate():
                    driver.worker.model_runner.largest_step().compute()
            driver.add("a", [1, 2, 3], SamplingParams(temperature=1.0))
            return [*driver.step({"a": 3})["a"], *driver.step({"a": 1})["a"]]

    assert tokens(measured=True) == tokens(measured=False)
    assert [len(choice.rows) for choice in drawing if (choice.top_p < 1).all()] == [5]


def test_the_largest_step_is_no_larger_than_all_requests_together(random_llama):
    with driven_worker(random_llama, engine__max_model_len=20, engine__max_num_seqs=3) as driver:
        assert driver.worker.model_runner.largest_step()[:2] == (60, 3)


def test_with_an_amount_from_the_user_nothing_is_run_to_measure(random_llama):
    with driven_worker(random_llama, engine__kv_cache_memory=12345) as driver:
        driver.worker.get_model().register_forward_pre_hook(lambda *_: pytest.fail("a step ran"))
        with driver.dispatcher.activate():
            assert driver.worker.determine_available_memory() == 12345


def test_a_request_for_too_much_memory_stops_the_start(random_llama):
    dispatcher = make_dispatcher(random_llama, engine__kv_cache_memory=2**60)

    with pytest.raises(EngineError, match="engine.kv_cache_memory asks for"):
        dispatcher.executor_factory().determine_available_memory()
