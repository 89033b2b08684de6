"""``prometheus``: what a scraper reads agrees with what was told, under vLLM's names."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.fake_engine import make_vllm_config

from vllm_ext import LLM, SamplingParams
from vllm_ext.contracts.stats import FinishedRequestStats, IterationStats, PrefixCacheStats, SchedulerStats
from vllm_ext.stat_loggers.prometheus import PrometheusStatLogger


class Scraped:
    """All samples of a registry, as prometheus_client's own parser reads its text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.samples = {
            (sample.name.removeprefix("vllm:"), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(generate_latest(registry).decode())
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Of the one series that has these labels among its own."""
        (found,) = (
            value for (n, own), value in self.samples.items() if n == name and labels.items() <= dict(own).items()
        )
        return found

    def buckets(self, name: str) -> dict[float, float]:
        """How many observations were at most so large, by limit."""
        return {float(dict(own)["le"]): value for (n, own), value in self.samples.items() if n == f"{name}_bucket"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def stat_logger(registry) -> PrometheusStatLogger:
    return PrometheusStatLogger(make_vllm_config("some-model"), registry=registry)


def step(**fields) -> IterationStats:
    return IterationStats(**fields)


@pytest.mark.parametrize(
    ("told", "state"), [(None, "awake"), ((1, 0), None), ((1, 1), "weights_offloaded"), ((1, 2), "discard_all")]
)
def test_one_of_the_sleep_states_is_1(stat_logger, registry, told, state):
    if told is not None:
        stat_logger.record_sleep_state(*told)

    scraped = Scraped(registry)
    states = ("awake", "weights_offloaded", "discard_all")
    assert [scraped.value("engine_sleep_state", sleep_state=name) for name in states] == [s == state for s in states]

    stat_logger.record_sleep_state(0, 0)
    assert Scraped(registry).value("engine_sleep_state", sleep_state="awake") == 1


def test_gauges_have_the_last_values(stat_logger, registry):
    stat_logger.record(SchedulerStats(4, 7, kv_cache_usage=0.75), None)
    stat_logger.record(SchedulerStats(3, 9, kv_cache_usage=0.25), None)
    scraped = Scraped(registry)

    assert scraped.value("num_requests_running", model_name="some-model", engine="0") == 3
    assert scraped.value("num_requests_waiting") == 9
    assert scraped.value("kv_cache_usage_perc") == 0.25


def test_counters_have_sums(stat_logger, registry):
    for number in range(1, 4):
        found = PrefixCacheStats(1, 10 * number, number)
        brought = step(num_prompt_tokens=number, num_generation_tokens=2 * number, num_preempted_reqs=1)
        stat_logger.record(SchedulerStats(prefix_cache_stats=found), brought)
    scraped = Scraped(registry)

    names = ("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens", "num_preemptions")
    assert [scraped.value(f"{name}_total") for name in names] == [60, 6, 6, 12, 3]
    assert (scraped.value("iteration_tokens_total_count"), scraped.value("iteration_tokens_total_sum")) == (3, 18)


def test_a_record_of_half_the_stats_is_taken(stat_logger, registry):
    stat_logger.record(None, step(num_generation_tokens=1))
    stat_logger.record(SchedulerStats(num_running_reqs=2), None)
    scraped = Scraped(registry)

    assert (scraped.value("generation_tokens_total"), scraped.value("num_requests_running")) == (1, 2)


@pytest.mark.parametrize(
    "name, field",
    [
        ("time_to_first_token_seconds", "time_to_first_tokens_iter"),
        ("inter_token_latency_seconds", "inter_token_latencies_iter"),
    ],
)
def test_latencies_of_a_step_are_in_their_buckets(stat_logger, registry, name, field):
    values = [0.0005, 0.011, 0.02, 0.4, 100.0]
    stat_logger.record(None, step(**{field: values}))
    scraped = Scraped(registry)

    assert scraped.value(f"{name}_count") == 5
    assert scraped.value(f"{name}_sum") == pytest.approx(sum(values))
    for limit, count in scraped.buckets(name).items():
        assert count == sum(value <= limit for value in values)


def test_requests_that_ended_are_counted_by_reason_and_described(stat_logger, registry):
    one = FinishedRequestStats("length", "a", 10.0, 5, 3, 8, 1.0, 2.0, 6.0, 4.0, 2.0)
    other = FinishedRequestStats("stop", "b", 20.0, 7, 1, None, 3.0, 4.0, 4.0, 0.0, 0.0)
    stat_logger.record(None, step(finished_requests=[one, other], n_params_iter=[1, 3]))
    scraped = Scraped(registry)

    reasons = {
        reason: scraped.value("request_success_total", finished_reason=reason) for reason in ("stop", "length", "abort")
    }
    assert reasons == {"stop": 1, "length": 1, "abort": 0}
    expected = {
        "e2e_request_latency_seconds": (2, 30.0),
        "request_queue_time_seconds": (2, 4.0),
        "request_prefill_time_seconds": (2, 6.0),
        "request_inference_time_seconds": (2, 10.0),
        "request_decode_time_seconds": (2, 4.0),
        "request_prompt_tokens": (2, 12),
        "request_generation_tokens": (2, 4),
        "request_time_per_output_token_seconds": (1, 2.0),
        "request_params_max_tokens": (1, 8),
        "request_params_n": (2, 4),
    }
    assert {name: (scraped.value(f"{name}_count"), scraped.value(f"{name}_sum")) for name in expected} == expected


def test_the_shape_of_the_cache_is_published_when_the_engine_is_ready(registry):
    config = make_vllm_config("some-model", block_size=8)
    config.cache_config.num_gpu_blocks = 123
    PrometheusStatLogger(config, registry=registry).log_engine_initialized()

    assert Scraped(registry).value("cache_config_info", num_gpu_blocks="123", block_size="8", engine="0") == 1


class TestSeveralEngines:
    def test_two_of_one_model_have_series_of_their_own(self, registry):
        made = [PrometheusStatLogger(make_vllm_config("some-model"), registry=registry) for _ in range(2)]
        for number, each in enumerate(made, 1):
            each.record(SchedulerStats(num_running_reqs=number), step(num_generation_tokens=10 * number))
        scraped = Scraped(registry)

        assert [scraped.value("num_requests_running", engine=str(engine)) for engine in range(2)] == [1, 2]
        assert [scraped.value("generation_tokens_total", engine=str(engine)) for engine in range(2)] == [10, 20]

    def test_two_models_are_told_apart_by_name(self, registry):
        made = [PrometheusStatLogger(make_vllm_config(name), registry=registry) for name in ("one", "other")]

        assert [each.engine_label for each in made] == ["0", "0"]

    def test_two_registries_know_nothing_of_each_other(self, registry, stat_logger):
        other = CollectorRegistry()
        PrometheusStatLogger(make_vllm_config("some-model"), registry=other).record(SchedulerStats(5), None)

        assert Scraped(other).value("num_requests_running") == 5
        assert Scraped(registry).value("num_requests_running") == 0

    def test_an_engine_after_another_goes_on_with_its_series(self, registry):
        for _ in range(2):
            made = PrometheusStatLogger(make_vllm_config("some-model"), registry=registry)
            made.record(None, step(num_generation_tokens=10))
            del made
            gc.collect()

        assert Scraped(registry).value("generation_tokens_total", engine="0") == 20


def test_an_engine_is_counted_as_its_outputs_say(random_llama, registry):
    factory = functools.partial(PrometheusStatLogger, registry=registry)
    prompts = [[5, 6, 7], [8] * 20, [8] * 20 + [9]]
    with LLM(random_llama, platform="cpu", dtype="float32", stat_loggers=[factory]) as llm:
        outputs = [llm.generate([prompt], SamplingParams(max_tokens=6, ignore_eos=True))[0] for prompt in prompts]
    scraped = Scraped(registry)

    assert scraped.value("prompt_tokens_total") == sum(map(len, prompts))
    assert scraped.value("generation_tokens_total") == sum(len(output.outputs[0].token_ids) for output in outputs) == 18
    assert scraped.value("prefix_cache_hits_total") == sum(output.num_cached_tokens for output in outputs) == 16
    assert scraped.value("request_success_total", finished_reason="length") == 3
    assert scraped.value("e2e_request_latency_seconds_count") == 3
    assert scraped.value("num_requests_running") == 0


def test_without_prometheus_client_it_says_what_to_install():
    program = (
        "import sys; sys.modules['prometheus_client'] = None; from vllm_ext.cli.main import main; "
        "sys.exit(main(['run', '--set', 'plugins.stat_logger.enabled=[prometheus]']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "declined: it needs prometheus_client; pip install 'vllm-ext[prometheus]'" in done.stderr
