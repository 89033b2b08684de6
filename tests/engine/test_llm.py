"""``LLM`` on the fake worker: the order of outputs, streams, interrupts, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor, wait
from operator import attrgetter
from threading import Event, Semaphore

import pytest
import torch
from support.fake_engine import FakeDispatcher, continuation, make_vllm_config
from tqdm import tqdm

from vllm_ext.config import Override, load_config
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.async_llm import AsyncLLM
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import ConfigError, EngineError, InvalidRequest


def greedy(max_tokens: int = 5) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens)


def worker_of(llm: LLM):
    return llm.dispatcher.worker


def test_outputs_come_in_the_order_of_the_prompts(make_llm):
    prompts = [[1, 2], "the dog", {"prompt_token_ids": [3]}]
    llm = make_llm()
    outputs = llm.generate(prompts, [greedy(9), greedy(1), greedy(4)])

    assert [output.prompt_token_ids for output in outputs] == [
        [1, 2],
        llm.llm_engine.tokenizer.encode("the dog"),
        [3],
    ]
    assert [output.outputs[0].token_ids for output in outputs] == [
        continuation(output.prompt_token_ids, num_tokens) for output, num_tokens in zip(outputs, (9, 1, 4), strict=True)
    ]


def test_one_prompt_gives_a_list_of_one(make_llm):
    llm = make_llm()

    assert len(llm.generate("the dog", greedy())) == 1
    assert len(llm.generate([1, 2, 3], greedy())) == 1


def test_no_prompts_give_no_outputs(make_llm):
    assert make_llm().generate([]) == []


def test_default_parameters_are_those_of_sampling_params(make_llm):
    (output,) = make_llm().generate([1])

    assert len(output.outputs[0].token_ids) == SamplingParams().max_tokens


def test_a_short_request_ends_before_an_earlier_long_one(make_llm):
    llm = make_llm()
    ended = [
        output.prompt_token_ids for output in llm.stream([[1], [2], [3]], [greedy(9), greedy(2), greedy(5)])
        if output.finished
    ]  # fmt: skip

    assert ended == [[2], [3], [1]]


def test_after_a_call_the_worker_knows_that_nothing_is_in_flight(make_llm):
    llm = make_llm()
    llm.generate([[1], [2]], greedy())

    assert worker_of(llm).requests == {}


def test_a_stream_gives_every_step_of_every_request(make_llm):
    counts: dict[str, list[int]] = {}
    for output in make_llm().stream([[1], [2]], [greedy(3), greedy(2)]):
        counts.setdefault(output.request_id, []).append(len(output.outputs[0].token_ids))

    assert sorted(counts.values()) == [[1, 2], [1, 2, 3]]


def test_a_stream_ends_in_what_generate_returns(make_llm):
    llm = make_llm()
    (whole,) = llm.generate("the quick", greedy(20))
    *_, last = llm.stream("the quick", greedy(20))

    assert last.outputs == whole.outputs


def test_a_stream_that_is_left_early_aborts_its_requests(make_llm):
    llm = make_llm()
    stream = llm.stream([[1], [2]], greedy(50))
    next(stream)
    stream.close()

    assert not llm.llm_engine.engine_core.scheduler.has_unfinished_requests()
    assert llm.generate([3], greedy(2))[0].outputs[0].token_ids == continuation([3], 2)
    assert worker_of(llm).requests == {}


def test_two_streams_and_a_call_share_the_engine(make_llm):
    llm = make_llm()
    one, other = llm.stream([1], greedy(4)), llm.stream([2], greedy(6))
    first = [next(one), next(other)]
    (between,) = llm.generate([3], greedy(3))
    rest = [list(one), list(other)]

    assert between.outputs[0].token_ids == continuation([3], 3)
    for start, outputs, prompt, num_tokens in zip(first, rest, ([1], [2]), (4, 6), strict=True):
        tokens = [output.outputs[0].token_ids for output in (start, *outputs)]
        assert tokens == [continuation(prompt, n) for n in range(1, num_tokens + 1)]


def test_two_threads_are_never_in_a_step_at_once(make_llm, monkeypatch):
    llm = make_llm()
    inside, both_inside = Semaphore(1), Event()
    step = llm.llm_engine.step

    def watched():
        if not inside.acquire(blocking=False):
            both_inside.set()
            return step()
        # The first of them waits for the second, which must not come.
        if worker_of(llm).steps == []:
            both_inside.wait(0.3)
        try:
            return step()
        finally:
            inside.release()

    monkeypatch.setattr(llm.llm_engine, "step", watched)
    prompts = [[1], [2], [3]]
    with ThreadPoolExecutor(len(prompts)) as threads:
        outputs = list(threads.map(lambda prompt: llm.generate(prompt, greedy(9))[0], prompts))

    assert not both_inside.is_set()
    assert [output.outputs[0].token_ids for output in outputs] == [continuation(prompt, 9) for prompt in prompts]


@pytest.mark.parametrize("method", ["reset_prefix_cache", "collective_rpc", "start_profile", "stop_profile"])
def test_what_another_thread_asks_of_the_engine_waits_for_the_end_of_a_step(make_llm, monkeypatch, method):
    llm = make_llm()
    done: list[str] = []
    step = llm.llm_engine.step
    monkeypatch.setattr(llm.llm_engine, method, lambda *args, **kwargs: done.append(method))

    def watched():
        other = threads.submit(getattr(llm, method), *(["check_health"] if method == "collective_rpc" else []))
        wait([other], 0.2)
        done.append("step")
        return step()

    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(llm.llm_engine, "step", watched)
        llm.generate([1], greedy(1))

    assert done[0] == "step"
    assert method in done


def test_a_bad_prompt_is_named_by_its_position_and_none_is_started(make_llm):
    llm = make_llm(max_model_len=10)
    with pytest.raises(InvalidRequest, match=r"prompt 2: the prompt has 30 tokens.*max_model_len"):
        llm.generate([[1], [2], [3] * 30], greedy())

    assert not llm.llm_engine.engine_core.scheduler.has_unfinished_requests()
    assert worker_of(llm).steps == []


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ([greedy()], "1 sampling_params for 2 prompts"),
        ({"temperature": 0}, r"sampling_params is \{'temperature': 0\}"),
        ([greedy(), {"temperature": 0}], r"sampling_params\[1\] is \{'temperature': 0\}"),
    ],
)
def test_sampling_params_have_to_fit_the_prompts(make_llm, params, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        make_llm().generate([[1], [2]], params)


def test_a_stream_checks_its_arguments_at_once(make_llm):
    with pytest.raises(InvalidRequest, match="prompts is 5"):
        make_llm().stream(5)


def test_lower_priorities_come_first_and_outputs_keep_the_order_of_the_prompts(make_llm):
    llm = make_llm(policy="priority", max_num_seqs=1)
    outputs = llm.generate([[1], [2], [3]], greedy(2), priority=[5, -1, 0])

    started = [name for step in worker_of(llm).steps for name in step.new]
    assert [output.outputs[0].token_ids for output in outputs] == [continuation([i], 2) for i in (1, 2, 3)]
    assert started == [outputs[1].request_id, outputs[2].request_id, outputs[0].request_id]


@pytest.mark.parametrize(
    ("priority", "complaint"),
    [
        ([1], "1 priorities for 2 prompts"),
        ("high", "prompt 0: priority is 'high'; it takes an integer"),
        ([0, True], "prompt 1: priority is True; it takes an integer"),
    ],
)
def test_priorities_have_to_fit_the_prompts(make_llm, priority, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        make_llm(policy="priority").generate([[1], [2]], greedy(), priority=priority)


class OnlyWrites:
    def write(self, text: str) -> None:
        """Text that nobody reads."""


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stderr", [None, OnlyWrites(), closed()], ids=["none", "stand-in", "closed"])
def test_a_program_without_a_proper_stderr_has_an_engine(make_cpu_llm, monkeypatch, stderr):
    monkeypatch.setattr("sys.stderr", stderr)
    llm = make_cpu_llm(None)

    (output,) = llm.generate("She had", greedy(2), use_tqdm=stderr is None)
    assert len(output.outputs[0].token_ids) == 2


def test_the_tokenizer_is_the_one_that_prompts_go_through(make_llm):
    llm = make_llm()
    (output,) = llm.generate("the dog", greedy())

    assert llm.get_tokenizer().encode("the dog") == output.prompt_token_ids
    assert llm.get_tokenizer().decode(output.prompt_token_ids) == "the dog"


def test_what_outputs_of_vllm_have_besides_is_none(make_llm):
    (output,) = make_llm().generate("the dog", greedy())

    names = ("metrics", "lora_request", "encoder_prompt", "encoder_prompt_token_ids", "kv_transfer_params")
    assert [getattr(output, name) for name in names] == [None] * 5
    assert output.outputs[0].lora_request is None
    assert pickle.loads(pickle.dumps(output)) == copy.deepcopy(output) == output


def test_what_was_in_the_prefix_cache_is_told_and_can_be_forgotten(make_llm):
    llm = make_llm()
    prompt = list(range(1, 12))

    assert [llm.generate(prompt, greedy())[0].num_cached_tokens for _ in range(2)] == [0, 8]
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, greedy())[0].num_cached_tokens == 0
    stream = llm.stream(prompt, greedy(20))
    next(stream)
    assert not llm.reset_prefix_cache()
    assert llm.reset_prefix_cache(reset_running_requests=True)
    *_, last = stream
    assert last.outputs[0].token_ids == continuation(prompt, 20)
    assert llm.llm_engine.get_stats().num_preemptions == 1


def interrupt_in_step(number: int, error: type[BaseException]):
    """Raises in the worker's step ``number``, once."""

    def prepare(worker):
        def before_step():
            if len(worker.steps) == number - 1:
                worker.before_step = lambda: None
                raise error("stop it")

        worker.before_step = before_step

    return prepare


def test_an_interrupt_ends_the_call_and_leaves_the_engine_usable(make_llm):
    llm = make_llm(prepare=interrupt_in_step(3, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2]], greedy(20))

    assert not llm.llm_engine.engine_core.scheduler.has_unfinished_requests()
    assert llm.generate([3], greedy(4))[0].outputs[0].token_ids == continuation([3], 4)


def test_a_failed_step_ends_the_other_calls_too_and_says_why(make_llm):
    llm = make_llm(prepare=interrupt_in_step(3, ValueError))
    waiting = llm.stream([1], greedy(20))
    next(waiting)
    with pytest.raises(EngineError, match="ValueError: stop it"):
        llm.generate([2], greedy(20))

    with pytest.raises(EngineError, match="a step of another call.*stop it"):
        list(waiting)


def test_a_closed_llm_says_so(make_llm, engines):
    llm = make_llm()
    stream = llm.stream([1], greedy())
    next(stream)
    engines.remove(llm)
    llm.close()
    llm.close()

    assert worker_of(llm).calls.count("shutdown") == 1
    with pytest.raises(EngineError, match="shut down"):
        llm.generate([1])
    with pytest.raises(EngineError, match="shut down"):
        next(stream)


def test_an_llm_that_could_not_be_started_can_be_forgotten(tmp_path):
    llm = LLM.__new__(LLM)
    llm.close()
    del llm


def test_leaving_the_context_closes(model_dir):
    with LLM.from_dispatcher(FakeDispatcher(make_vllm_config(model_dir))) as llm:
        worker = worker_of(llm)

    assert worker.calls[-1] == "shutdown"


@pytest.mark.parametrize(
    "front_end, vllm_config, end",
    [(LLM, "dispatcher.vllm_config", LLM.close), (AsyncLLM, "vllm_config", AsyncLLM.shutdown)],
)
def test_settings_that_are_loaded_already_make_either(random_llama, front_end, vllm_config, end):
    settings = {"engine.model": str(random_llama), "engine.max_model_len": 99, "platform.driver": "cpu"}
    config = load_config(overrides=[Override(key, value, "test") for key, value in settings.items()], environ={})

    engine = front_end.from_config(config)
    try:
        assert attrgetter(vllm_config)(engine).model_config.max_model_len == 99
    finally:
        end(engine)


def test_it_names_its_platform(make_llm):
    assert make_llm().platform_name == "platform 'fake'"


def test_a_progress_bar_counts_requests(make_llm, capsys):
    make_llm().generate([[1], [2], [3]], greedy(), use_tqdm=True)

    assert "3/3" in capsys.readouterr().err


def test_a_program_may_make_the_progress_bar_itself(make_llm):
    made = []

    def make(**options: object) -> tqdm:
        made.append(tqdm(**options, file=io.StringIO()))
        return made[-1]

    make_llm().generate([[1], [2], [3]], greedy(), use_tqdm=make)

    (bar,) = made
    assert (bar.n, bar.total, bar.desc) == (3, 3, "Processed prompts")
    assert bar.disable, "it is closed"


def test_an_unknown_engine_setting_is_refused_with_the_closest_known_one():
    with pytest.raises(ConfigError, match="max_model_length.*did you mean 'max_model_len'"):
        LLM(max_model_length=5)


@pytest.mark.parametrize("given, dtype", [("half", torch.float16), ("float", torch.float32)])
def test_a_dtype_may_have_the_other_name_that_vllm_takes(given, dtype):
    with LLM(dtype=given, platform="cpu") as llm:
        assert llm.llm_engine.vllm_config.model_config.dtype is dtype


def test_a_keyword_that_vllm_alone_has_may_be_none():
    with LLM(platform="cpu", tokenizer=None, revision=None, max_model_len=None) as llm:
        assert llm.platform_name == "platform 'cpu'"
    with pytest.raises(ConfigError, match="engine.revisions: unknown key"):
        LLM(revisions=None)


def test_a_wrong_value_names_the_keyword():
    with pytest.raises(ConfigError, match=r"LLM\(block_size=...\).*engine.block_size"):
        LLM(block_size="many")
