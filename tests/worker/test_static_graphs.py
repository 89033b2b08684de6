"""Decode steps that are recorded once and replayed, against the same steps computed op by op."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.device import DrivenWorker, driven_worker, make_dispatcher
from support.families import NATIVE, write_model

from vllm_ext import _custom_ops
from vllm_ext.attention.backends.cpu_attn import CPUAttentionMetadataBuilder
from vllm_ext.contracts.attention import AttentionCGSupport
from vllm_ext.contracts.forward_context import get_forward_context
from vllm_ext.contracts.static_graph import AbstractStaticGraphWrapper
from vllm_ext.layers.activation import SiluAndMul
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext.worker.kernel_graph import Buffer, KernelGraphWrapper, plan_memory, record_kernels

NO_KERNELS = "the products of this machine are not those of the compiled kernels"
needs_kernels = pytest.mark.skipif(not _custom_ops.linear_panel(torch.float32), reason=NO_KERNELS)
VOCAB = 600


def wrapper_of(driver: DrivenWorker) -> Any:
    return driver.worker.model_runner._runnable


def logits_of_random_steps(driver: DrivenWorker, seed: int, num_steps: int = 40) -> list[torch.Tensor]:
    """Requests come, are computed in chunks, decode together and end, at random; the logits of every step."""
    rng = random.Random(seed)
    running: dict[str, int] = {}
    logits = []
    for number in range(num_steps):
        if len(running) < 6 and rng.random() < 0.3:
            name = f"r{number}"
            running[name] = rng.randint(1, 9)
            driver.add(name, rng.choices(range(VOCAB), k=running[name]))
        scheduled = {name: rng.randint(1, left) if left > 1 else 1 for name, left in running.items()}
        if not scheduled:
            continue
        driver.step(scheduled)
        logits.append(driver.logits.clone() if driver.logits is not None else torch.empty(0))
        for name, count in scheduled.items():
            running[name] = max(1, running[name] - count)
        for name in [name for name in running if running[name] == 1 and rng.random() < 0.1]:
            driver.finish(name)
            del running[name]
    for name in running:
        driver.finish(name)
    driver.step({})
    return logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_replayed_steps_have_the_logits_of_computed_ones_bit_by_bit(random_llama, seed, dtype):
    if not _custom_ops.linear_panel(dtype):
        pytest.skip(NO_KERNELS)
    settings = {"engine__block_size": 4, "engine__max_num_seqs": 6, "engine__dtype": str(dtype).removeprefix("torch.")}
    with driven_worker(random_llama, **settings, engine__enforce_eager=True) as driver:
        expected = logits_of_random_steps(driver, seed)
    with driven_worker(random_llama, **settings) as driver:
        found = logits_of_random_steps(driver, seed)
        num_recorded = len(wrapper_of(driver)._graphs)

    assert num_recorded > 1
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@needs_kernels
@pytest.mark.parametrize("family", [name for name in NATIVE if "gelu" not in name])
def test_native_families_are_replayed(tmp_path, family):
    """But for those whose activation has no kernel."""
    model = write_model(tmp_path / "model", NATIVE[family])
    with driven_worker(model) as driver:
        driver.add("a", [1, 2, 3])
        driver.step({"a": 3})
        driver.step({"a": 1})

        assert (wrapper_of(driver).why_not, len(wrapper_of(driver)._graphs)) == (None, 1)


@needs_kernels
def test_a_batch_size_is_recorded_once_and_replayed_from_then_on(random_llama):
    with driven_worker(random_llama, engine__block_size=4) as driver:
        model, calls = wrapper_of(driver).runnable, []
        wrapper_of(driver).runnable = lambda *args, **kwargs: (calls.append(len(args[0])), model(*args, **kwargs))[1]
        for name in "ab":
            driver.add(name, [1, 2, 3])
        driver.step({"a": 3, "b": 3})
        for _ in range(5):
            driver.step({"a": 1, "b": 1})

    assert calls == [6, 2]


@needs_kernels
def test_a_step_of_very_many_requests_is_computed_and_others_are_replayed_all_the_same(random_llama):
    with driven_worker(random_llama, num_blocks=520, engine__max_num_seqs=520) as driver:
        names = [str(number) for number in range(520)]
        for name in names:
            driver.add(name, [1])
        driver.step(dict.fromkeys(names, 1))
        driver.step(dict.fromkeys(names, 1))
        driver.step(dict.fromkeys(names[:500], 1))

        assert wrapper_of(driver).why_not is None
        sizes = {descriptor.num_tokens for descriptor in wrapper_of(driver)._graphs}

    assert (500 in sizes, 520 in sizes) == (True, False)


@needs_kernels
def test_sizes_share_the_memory_of_what_is_computed_in_between(random_llama):
    with driven_worker(random_llama, engine__block_size=4, engine__max_num_seqs=6) as driver:
        logits_of_random_steps(driver, seed=0)
        wrapper = wrapper_of(driver)
        arenas = {graph._alive[0].data_ptr() for graph in wrapper._graphs.values()}

    assert len(arenas) == 1


@needs_kernels
def test_memory_for_steps_that_are_not_recorded_is_not_asked_for(random_llama):
    sizes = []
    for max_num_seqs in (512, 100_000):
        with driven_worker(random_llama, engine__block_size=4, engine__max_num_seqs=max_num_seqs) as driver:
            driver.add("a", [1])
            driver.step({"a": 1})
            driver.step({"a": 1})
            sizes.append(wrapper_of(driver)._arena.nbytes)

    assert sizes[0] == sizes[1] > 0


@needs_kernels
def test_recording_does_not_import_torchs_compiler(random_llama):
    """Which would double the time to the first token."""
    program = (
        "import sys; from vllm_ext import LLM\n"
        "with LLM(sys.argv[1], platform='cpu', dtype='float32') as llm: llm.generate([[1, 2]])\n"
        "print('torch._dynamo.convert_frame' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program, random_llama], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


def test_enforce_eager_computes_every_step(random_llama):
    with driven_worker(random_llama, engine__enforce_eager=True) as driver:
        assert wrapper_of(driver) is driver.worker.get_model()


@needs_kernels
def test_a_model_that_computes_with_torch_is_not_replayed_and_the_log_says_with_what(random_llama, caplog):
    caplog.set_level("INFO")
    with driven_worker(random_llama) as driver:
        model = driver.worker.get_model()
        wrapper = KernelGraphWrapper(
            lambda *args, **kwargs: model(*args, **kwargs).relu(), driver.dispatcher.vllm_config, runtime_mode="FULL"
        )
        driver.worker.model_runner._runnable = wrapper
        driver.add("a", [1, 2, 3])
        driver.step({"a": 3})
        for _ in range(3):
            driver.step({"a": 1})

    assert wrapper.why_not == "torch computes aten.relu.default"
    assert [record.message for record in caplog.records if "op by op" in record.message] == [
        "decode steps are computed op by op: torch computes aten.relu.default"
    ]


class SiluOfAPlugin(SiluAndMul):
    """Computes part of it where no op tells of it."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward_native(x)
        output.numpy()[:] *= 2
        return output


def exchange_act_fn(model: torch.nn.Module) -> None:
    model.model.layers[1].mlp.act_fn = SiluOfAPlugin()


def exchange_forward(model: torch.nn.Module) -> None:
    mlp = model.model.layers[1].mlp
    whole = mlp.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        output = whole(x)
        output.numpy()[:] *= 2
        return output

    mlp.forward = forward


@needs_kernels
@pytest.mark.parametrize(
    ("exchange", "reason"),
    [
        (exchange_act_fn, f"{__name__}.SiluOfAPlugin may compute what torch does not see"),
        (exchange_forward, "forward() of a vllm_ext.models.decoder.DecoderMLP was exchanged"),
    ],
)
def test_code_of_others_is_called_in_every_step(random_llama, exchange, reason):
    def logits(**settings: Any) -> torch.Tensor:
        with driven_worker(random_llama, **settings) as driver:
            with driver.dispatcher.activate():
                driver.worker.apply_model(exchange)
                driver.worker.clear_graphs()
            driver.add("a", [1, 2, 3])
            driver.step({"a": 3})
            steps = [driver.step({"a": 1}) and driver.logits.clone() for _ in range(3)]
            assert settings or wrapper_of(driver).why_not == reason
        return torch.cat(steps)

    assert torch.equal(logits(), logits(engine__enforce_eager=True))


@needs_kernels
def test_an_output_that_is_part_of_something_larger_is_not_replayed(random_llama):
    with driven_worker(random_llama) as driver:
        model = driver.worker.get_model()
        wrapper = KernelGraphWrapper(
            lambda *args, **kwargs: model(*args, **kwargs)[:, :8], driver.dispatcher.vllm_config, runtime_mode="FULL"
        )
        driver.worker.model_runner._runnable = wrapper
        model.compute_logits = lambda hidden_states: torch.zeros(len(hidden_states), VOCAB)
        driver.add("a", [1, 2, 3])
        driver.step({"a": 3})
        driver.step({"a": 1})

    assert wrapper.why_not == "the model returns a part of what was computed"


def test_a_model_that_is_split_over_ranks_is_computed_op_by_op(random_llama):
    config = make_dispatcher(random_llama, engine__tensor_parallel_size=2).vllm_config

    assert config.compilation_config.cudagraph_mode == "NONE"


class Recording(AbstractStaticGraphWrapper):
    """Notes which steps may be replayed."""

    seen: list[tuple[str, int | None]]

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        context = get_forward_context()
        of_step = context.batch_descriptor
        self.seen.append((context.cudagraph_runtime_mode, None if of_step is None else of_step.num_tokens))
        return self.runnable(*args, **kwargs)


@needs_kernels
def test_the_platforms_wrapper_is_called_like_the_model(random_llama, monkeypatch):
    monkeypatch.setattr(
        CpuPlatform, "get_static_graph_wrapper_cls", classmethod(lambda cls: f"{__name__}.{Recording.__name__}")
    )
    monkeypatch.setattr(Recording, "seen", [], raising=False)
    with driven_worker(random_llama) as driver:
        Recording.seen.clear()
        driver.add("a", [1, 2, 3])
        driver.add("b", [1])
        driver.step({"a": 3, "b": 1})
        driver.step({"a": 1, "b": 1})
        runner = driver.worker.model_runner

        assert Recording.seen == [("NONE", None), ("FULL", 2)]
        assert (runner._runnable.runnable, runner._runnable.runtime_mode) == (runner.model, "FULL")


@needs_kernels
def test_a_backend_whose_metadata_changes_is_not_replayed(random_llama, monkeypatch):
    monkeypatch.setattr(CPUAttentionMetadataBuilder, "_cudagraph_support", AttentionCGSupport.NEVER)

    with driven_worker(random_llama) as driver:
        assert wrapper_of(driver) is driver.worker.get_model()


@needs_kernels
def test_a_token_outside_of_the_table_is_an_error_in_a_replayed_step_too():
    table, ids = torch.randn(4, 8), torch.tensor([0, 3])
    with record_kernels() as graph:
        graph_output = _custom_ops.embedding(ids, table)
    graph.keep(graph_output)
    ids[1] = 4

    with pytest.raises(IndexError, match="embedding: an index is outside of the table"):
        graph.replay()


@needs_kernels
def test_a_slot_outside_of_the_cache_is_an_error_in_a_replayed_step_too():
    cache, slots, heads = torch.zeros(3, 2, 4, 16), torch.tensor([0, 7]), torch.ones(2, 2, 8)
    with record_kernels() as graph:
        _custom_ops.reshape_and_cache(heads, heads, cache[:2], slots)
    graph.keep(cache)
    slots[1] = 8

    with pytest.raises(IndexError, match="reshape_and_cache: an index is outside of the table"):
        graph.replay()
    assert not cache[2].any()


BUFFERS = st.lists(st.integers(1, 5000), min_size=1, max_size=12)


@given(sizes=BUFFERS, data=st.data())
def test_buffers_that_live_at_the_same_time_do_not_overlap(sizes, data):
    buffers, address = [], 4096
    for size in sizes:
        buffers.append(Buffer(address, size))
        address += size
    spots = st.tuples(st.integers(0, len(sizes) - 1), st.floats(0, 0.99))
    touched = [
        [buffers[i].address + int(part * sizes[i]) for i, part in of_call]
        for of_call in data.draw(st.lists(st.lists(spots, max_size=4), max_size=12))
    ]

    offsets, size = plan_memory(buffers, touched)

    lives = {}
    for number, addresses in enumerate(touched):
        for i, buffer in enumerate(buffers):
            if any(buffer.address <= spot < buffer.address + buffer.num_bytes for spot in addresses):
                lives.setdefault(i, []).append(number)
    for i in lives:
        assert offsets[i] % 64 == 0
        assert offsets[i] + sizes[i] <= size
        for j in lives:
            if i < j and lives[i][0] <= lives[j][-1] and lives[j][0] <= lives[i][-1]:
                assert offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]


def test_memory_is_used_again_once_nothing_needs_it():
    buffers = [Buffer(4096 * number, 640) for number in range(1, 5)]

    offsets, size = plan_memory(buffers, [[4096, 8192], [8192, 12288], [12288, 16384]])

    assert size == 2 * 640
    assert offsets[0] == offsets[2] != offsets[1] == offsets[3]
