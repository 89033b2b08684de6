"""The example logits processors in an engine: tokens as each request has them by itself, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import random
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.device import make_dispatcher
from support.processes import nothing_left
from support.scripted_logits import FAVOURITES, Scripted, scripted_tokens

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.dispatch.take_over import make_hand_over, take_over
from vllm_ext.dispatch.trail import dispatch_trail
from vllm_ext.engine.llm_engine import LLMEngine
from vllm_ext.errors import (
    ConfigError,
    ContractError,
    EngineError,
    InvalidRequest,
    PlanMismatch,
    PluginError,
    PluginLoadError,
    PluginNotFound,
)

PROMPT = [5, 6, 7]
GROUP = "vllm.logits_processors"
LABELS = [f"{GROUP}: vllm-ext-dummy-logits:{name}" for name in ("forbid", "keep", "repeat_limit")]
NONE = {"plugins.logits_processor.enabled": []}
LIMITS = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 12, "block_size": 4}
TWO_WORKERS = {
    "executor": "multiproc",
    "tensor_parallel_size": 2,
    "kv_cache_memory": 1 << 20,
    # Also where the machine is busy.
    "join_timeout_s": 120,
}
BLOCK_BYTES = 4 * 3 * 2 * 2 * 16 * 4
"""Of the random Llama: 4 tokens, 3 layers, keys and values, 2 heads of 16 numbers in float32."""


def greedy(count: int = 6, **extra_args) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, extra_args=extra_args or None)


@pytest.fixture
def example(plugins):
    """The example project is installed; ``example.distribution`` installs more."""
    plugins.project("vllm_ext_dummy_logits")
    return plugins


@pytest.fixture
def make_llm(random_llama):
    made: list[LLM] = []

    def make(**options) -> LLM:
        made.append(LLM(random_llama, dtype="float32", platform="cpu", **options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def tokens(llm: LLM, params: SamplingParams, prompt: list[int] = PROMPT) -> list[int]:
    return llm.generate([prompt], params)[0].outputs[0].token_ids


def in_flight(llm: LLM) -> int:
    stats = llm.llm_engine.get_stats()
    return stats.num_running_reqs + stats.num_waiting_reqs


def installed(plugins, name: str, body: str) -> None:
    """A distribution with one processor whose class has this body besides what every processor needs."""
    source = (
        "from vllm_ext import LogitsProcessor\n"
        "class Processor(LogitsProcessor):\n"
        "    def __init__(self, vllm_config, device, is_pin_memory): self.config = vllm_config\n"
        "    def is_argmax_invariant(self): return False\n"
        "    def update_state(self, batch_update): pass\n"
        "    def apply(self, logits): return logits\n" + body
    )
    plugins.distribution(f"dist_{name}", {GROUP: [f"{name} = {name}_module:Processor"]}, {f"{name}_module.py": source})


class TestInAnEngine:
    def test_a_forbidden_token_does_not_come(self, example, make_llm):
        llm = make_llm()
        unforbidden = tokens(llm, greedy())

        other = tokens(llm, greedy(forbid=unforbidden[2]))

        assert other[:2] == unforbidden[:2]
        assert unforbidden[2] not in other

    def test_a_request_that_asks_for_nothing_is_as_without_plugins(self, example, make_llm):
        with_plugins = make_llm()
        without = make_llm(overrides=NONE)
        shared = with_plugins.generate([PROMPT, PROMPT], [greedy(), greedy(forbid=tokens(without, greedy())[0])])

        assert shared[0].outputs[0].token_ids == tokens(without, greedy())
        assert shared[1].outputs[0].token_ids[0] != tokens(without, greedy())[0]

    def test_one_that_never_changes_the_likeliest_token_is_left_out_for_greedy_requests(self, example, make_llm):
        llm = make_llm(overrides={"plugins.logits_processor.enabled": ["keep"]})
        from vllm_ext_dummy_logits.processors import KeepLikeliest

        expected = tokens(llm, greedy(keep=1))
        assert KeepLikeliest.num_applied == 0

        drawn = tokens(llm, SamplingParams(max_tokens=6, ignore_eos=True, seed=1, extra_args={"keep": 1}))
        assert KeepLikeliest.num_applied == 6
        assert drawn == expected

    def test_options_reach_it_by_the_configuration(self, plugins, make_llm):
        forced = "logits[:, self.config.additional_config['optional']['token']] = 1e9"
        installed(plugins, "optional", f"    def apply(self, logits):\n        {forced}\n        return logits\n")

        assert tokens(make_llm(overrides={"options": {"optional": {"token": 77}}}), greedy(2)) == [77, 77]

    def test_a_class_path_in_the_settings_works_and_comes_after_the_plugins(self, example, make_llm):
        llm = make_llm(logits_processors=["support.scripted_logits:Scripted"])

        assert tokens(llm, greedy(6)) == scripted_tokens(PROMPT, 6, None, None)
        # What the plugin forbids, the script, which comes later, brings back.
        assert tokens(llm, greedy(6, forbid=0)) == scripted_tokens(PROMPT, 6, None, None)

    def test_a_class_that_is_a_plugin_as_well_is_applied_once(self, plugins, make_llm):
        installed(
            plugins, "added", "    def apply(self, logits):\n        logits[:, 9] += 1000\n        return logits\n"
        )
        import added_module

        llm = make_llm(logits_processors=[added_module.Processor])

        assert [processor.cls for processor in llm.dispatcher.logits_processors] == [added_module.Processor]


class TestRandomBatches:
    """Requests join, leave, are preempted and computed in chunks; each has the tokens that it has by itself."""

    ADD = st.tuples(
        st.just("add"),
        st.integers(1, 30),
        st.none() | st.integers(0, FAVOURITES - 1),
        st.none() | st.integers(5, 7),
        st.booleans(),
        st.integers(1, 20),
    )
    ACTIONS = st.lists(
        st.one_of(ADD, ADD, ADD, st.tuples(st.just("abort"), st.integers(0, 9)), st.just(("step",))),
        min_size=8,
        max_size=24,
    )

    @pytest.fixture
    def engine(self, example, make_llm) -> LLMEngine:
        from vllm_ext_dummy_logits.processors import ForbidToken, KeepLikeliest, RepeatLimit

        classes = [Scripted, ForbidToken, RepeatLimit, KeepLikeliest]
        limits = LIMITS | {"kv_cache_memory": 15 * BLOCK_BYTES}
        return make_llm(overrides=NONE, logits_processors=classes, **limits).llm_engine

    def test_every_request_gets_the_tokens_that_it_gets_alone(self, engine):
        seen = {"mixed": 0, "aborted": 0, "finished": 0}

        @settings(max_examples=60, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(self.ACTIONS, st.integers(0, 2**16))
        def check(actions, seed):
            self.follow(engine, actions, random.Random(seed), seen)

        check()

        assert engine.get_stats().num_preemptions > 0
        assert min(seen.values()) > 5, seen

    def follow(self, engine: LLMEngine, actions, draw: random.Random, seen: dict[str, int]) -> None:
        expected: dict[str, list[int]] = {}
        drawing: dict[str, bool] = {}
        got: dict[str, list[int]] = {}

        def step() -> None:
            seen["mixed"] += len({drawing[name] for name in expected if name not in got}) == 2
            for output in engine.step():
                (completion,) = output.outputs
                wanted = expected[output.request_id]
                assert completion.token_ids == wanted[: len(completion.token_ids)]
                if output.finished and completion.finish_reason == "abort":
                    seen["aborted"] += 1
                elif output.finished:
                    seen["finished"] += 1
                    assert completion.token_ids == wanted
                if output.finished:
                    got[output.request_id] = completion.token_ids

        for number, (what, *values) in enumerate(actions):
            if what == "add":
                length, forbid, limit, draws, count = values
                name, prompt = str(number), [draw.randrange(600) for _ in range(length)]
                extra = {"forbid": forbid, "repeat_limit": limit, "keep": 1 if draws else None}
                params = SamplingParams(
                    temperature=1.5 if draws else 0, max_tokens=count, ignore_eos=True, extra_args=extra
                )
                expected[name], drawing[name] = scripted_tokens(prompt, count, forbid, limit), draws
                engine.add_request(name, prompt, params)
            elif what == "abort":
                engine.abort_request([name for name in list(expected)[values[0] :][:1] if name not in got])
            else:
                step()
        while engine.has_unfinished_requests():
            step()
        assert got.keys() == expected.keys()


class TestChoice:
    """They are chosen as plugins of every kind are."""

    @staticmethod
    def used(llm: LLM) -> list[str]:
        return [processor.cls.__name__ for processor in llm.dispatcher.logits_processors]

    def test_all_are_used_unless_told_otherwise(self, example, make_llm):
        assert self.used(make_llm()) == ["ForbidToken", "KeepLikeliest", "RepeatLimit"]

    def test_a_model_that_pools_has_no_use_for_them(self, example, make_llm):
        llm = make_llm(runner="pooling")

        assert llm.dispatcher.logits_processors == ()
        assert len(llm.embed([PROMPT])) == 1
        assert "vllm_ext_dummy_logits" not in sys.modules

    def test_those_that_the_user_names_for_a_model_that_pools_are_refused(self, random_llama):
        with pytest.raises(ConfigError, match=r"engine.logits_processors \(.*\) names a.B, c:D, and the model pools"):
            make_dispatcher(random_llama, engine__runner="pooling", engine__logits_processors=["a.B", "c:D"])

    def test_every_process_of_an_engine_that_pools_leaves_them_out(self, example, random_llama):
        handed = make_hand_over(make_dispatcher(random_llama, engine__runner="pooling"))

        _, receipt = take_over(handed, "worker", 0)

        assert receipt.fingerprint == handed.fingerprint
        assert receipt.active == handed.active == ("vllm_ext.platforms: vllm-ext:cpu",)
        assert receipt.inactive == ()
        assert "vllm_ext_dummy_logits" not in sys.modules

    def test_the_list_of_those_enabled_is_their_order(self, example, make_llm):
        llm = make_llm(overrides={"plugins.logits_processor.enabled": ["repeat_limit", "forbid"]})

        assert self.used(llm) == ["RepeatLimit", "ForbidToken"]

    def test_a_disabled_one_is_not_used(self, example, make_llm):
        llm = make_llm(overrides={"plugins.logits_processor.disabled": ["forbid", "keep"]})

        assert self.used(llm) == ["RepeatLimit"]

    def test_vllm_plugins_filters_them_as_well(self, example, make_llm, monkeypatch):
        monkeypatch.setenv("VLLM_PLUGINS", "keep")

        assert self.used(make_llm()) == ["KeepLikeliest"]

    def test_a_name_that_nothing_has_is_an_error(self, example, make_llm):
        with pytest.raises(PluginNotFound, match=r"'forbit'.*did you mean 'forbid'"):
            make_llm(overrides={"plugins.logits_processor.enabled": ["forbit"]})

    def test_safe_mode_leaves_out_plugins_and_class_paths(self, example, make_llm, monkeypatch):
        monkeypatch.setenv("VLLM_EXT_SAFE_MODE", "1")

        assert self.used(make_llm(logits_processors=["support.scripted_logits:Scripted"])) == []

    def test_a_class_path_of_a_distribution_that_is_not_allowed_is_refused(self, example, make_llm):
        with pytest.raises(ConfigError, match=r"engine.logits_processors .*names 'support.scripted_logits:Scripted'"):
            make_llm(overrides={"allow_distributions": []}, logits_processors=[Scripted])

    def test_a_class_that_workers_cannot_import_is_refused(self, make_llm):
        class Local(Scripted):
            pass

        with pytest.raises(ConfigError, match=r"engine.logits_processors has the class .*Local.*top level of a module"):
            make_llm(logits_processors=[Local])

    def test_a_class_path_to_something_else_is_refused(self, make_llm):
        with pytest.raises(ContractError, match=r"logits processor class of setting engine.logits_proc.* is not a"):
            make_llm(logits_processors=["support.scripted_logits:script"])


class TestExplained:
    """The trail has every processor, why, and what became of it."""

    @staticmethod
    def trail(llm: LLM) -> list[tuple[str, str, str]]:
        steps = [step for step in dispatch_trail(llm.dispatcher) if step.slot == "logits_processors"]
        return [(step.candidate, step.state, step.owner) for step in steps]

    def test_what_is_used_comes_first_in_its_order(self, example, make_llm):
        llm = make_llm(
            overrides={"plugins.logits_processor.enabled": ["keep", "forbid"]},
            logits_processors=["support.scripted_logits:Scripted"],
        )

        assert self.trail(llm) == [
            ("'keep' of vllm-ext-dummy-logits 0.1", "active", "vllm-ext-dummy-logits 0.1"),
            ("'forbid' of vllm-ext-dummy-logits 0.1", "active", "vllm-ext-dummy-logits 0.1"),
            ("'repeat_limit' of vllm-ext-dummy-logits 0.1", "available", "vllm-ext-dummy-logits 0.1"),
            ("support.scripted_logits:Scripted", "chosen", "the settings"),
        ]

    def test_one_that_failed_is_shown_with_its_cause(self, plugins, make_llm):
        plugins.distribution("dist_odd", {GROUP: ["odd = odd_module:odd"]}, {"odd_module.py": "1 / 0\n"})
        llm = make_llm()

        (step,) = (step for step in dispatch_trail(llm.dispatcher) if step.slot == "logits_processors")
        assert (step.state, step.reason) == (
            "failed",
            "plugins.logits_processor.enabled is all; ZeroDivisionError: division by zero",
        )

    def test_a_class_may_be_named_where_it_is_imported_to(self, plugins, make_llm):
        plugins.distribution("dist_names", {}, {"names.py": "from support.scripted_logits import Scripted\n"})
        llm = make_llm(logits_processors=["names.Scripted"])

        assert self.trail(llm) == [("names.Scripted", "chosen", "the settings")]

    def test_those_that_a_model_that_pools_does_without_are_passed_over(self, example, random_llama):
        made = make_dispatcher(random_llama, engine__runner="pooling")

        steps = [step for step in dispatch_trail(made) if step.slot == "logits_processors"]

        assert [step.state for step in steps] == ["passed_over"] * 3
        assert {step.reason.partition("; ")[2] for step in steps} == {"the model pools, and no logits are computed"}


class TestFaults:
    def test_a_platform_whose_worker_applies_none_is_warned_about(self, example, random_llama, caplog):
        example.project("vllm_ext_dummy_platform")

        with LLM(random_llama, dtype="float32", platform="dummy") as llm:
            assert len(tokens(llm, greedy())) == 6
            with pytest.raises(InvalidRequest, match="does not act on extra_args"):
                tokens(llm, greedy(forbid=1))

        assert "my_dummy_worker.MyDummyWorker of the chosen platform applies no logits processors" in caplog.text
        assert "'forbid' of vllm-ext-dummy-logits 0.1" in caplog.text

    def test_one_that_is_no_processor_is_refused_where_it_is_named(self, plugins, make_llm):
        plugins.distribution("dist_odd", {GROUP: ["odd = odd_module:odd"]}, {"odd_module.py": "def odd(): pass\n"})

        with pytest.raises(PluginLoadError, match="is not a subclass of vllm_ext.contracts.logits_processor"):
            make_llm(overrides={"plugins.logits_processor.enabled": ["odd"]})

    def test_one_that_is_no_processor_is_reported_and_left_out_where_it_is_not_named(self, plugins, make_llm, caplog):
        plugins.distribution("dist_odd", {GROUP: ["odd = odd_module:odd"]}, {"odd_module.py": "def odd(): pass\n"})

        assert len(tokens(make_llm(), greedy())) == 6
        assert "logits processor plugin 'odd' of dist-odd 0.1 is left out, since it failed" in caplog.text

    def test_parameters_that_it_cannot_serve_are_refused_before_anything_starts(self, example, make_llm):
        llm = make_llm()

        with pytest.raises(
            InvalidRequest,
            match=r"logits processor plugin 'forbid' of vllm-ext-dummy-logits 0.1 refuses the request: "
            r"extra_args\['forbid'\] is 'x'",
        ):
            llm.generate([PROMPT, PROMPT], [greedy(), greedy(forbid="x")])
        assert in_flight(llm) == 0

    def test_one_that_fails_to_check_parameters_is_named(self, plugins, make_llm):
        installed(plugins, "unsure", "    @classmethod\n    def validate_params(cls, params): return params.colour\n")

        with pytest.raises(PluginError, match=r"plugin 'unsure' of dist-unsure 0.1 failed in validate_params\(\)"):
            tokens(make_llm(), greedy())

    @pytest.mark.parametrize(
        "body, fault",
        [
            ("    def apply(self, logits): raise KeyError('colour')\n", r"apply\(\): KeyError: 'colour'"),
            ("    def apply(self, logits): raise SystemExit(3)\n", r"apply\(\): SystemExit: 3"),
            ("    def apply(self, logits): raise BaseException(3)\n", r"apply\(\): BaseException: 3"),
            (
                "    def apply(self, logits): return None\n",
                r"apply\(\): .* return the logits, .* returned None",
            ),
            (
                "    def apply(self, logits): return logits[:, 1:]\n",
                r"apply\(\): .*\[1, 600\], and returned .*\[1, 599\]",
            ),
            ("    def update_state(self, batch_update): 1 / 0\n", r"update_state\(\): ZeroDivisionError"),
        ],
        ids=["raises", "exits", "panics", "returns nothing", "returns another shape", "cannot follow"],
    )
    def test_one_that_fails_in_a_step_is_named_and_the_engine_goes_on(self, plugins, make_llm, body, fault):
        installed(plugins, "broken", body)
        llm = make_llm()

        for _ in range(2):
            with pytest.raises(EngineError, match=rf"plugin 'broken' of dist-broken 0.1 failed in {fault}"):
                tokens(llm, greedy())
        assert in_flight(llm) == 0

    @pytest.mark.parametrize(
        "method", ["__init__(self, vllm_config, device, is_pin_memory)", "is_argmax_invariant(self)"]
    )
    def test_one_that_cannot_be_built_ends_the_start_with_its_name(self, plugins, make_llm, method):
        installed(plugins, "broken", f"    def {method}: raise OSError('no table')\n")

        with pytest.raises(
            EngineError, match=r"plugin 'broken' of dist-broken 0.1 failed in \w+\(\): OSError: no table"
        ):
            make_llm()

    def test_others_follow_the_requests_when_one_fails_to(self, example, make_llm):
        """The failing one is told of a request first; the next requests have the others' state of themselves alone."""
        installed(
            example,
            "brittle",
            "    def update_state(self, update):\n"
            "        if update and any((each[1].extra_args or {}).get('brittle') for each in update.added):\n"
            "            raise ValueError('brittle')\n",
        )
        order = ["brittle", "forbid", "repeat_limit"]
        llm = make_llm(overrides={"plugins.logits_processor.enabled": order}, logits_processors=[])
        expected = tokens(llm, greedy())
        params = [greedy(forbid=expected[0]), greedy(brittle=1), greedy(forbid=expected[1])]

        with pytest.raises(EngineError, match="brittle"):
            llm.generate([PROMPT] * 3, params)

        assert tokens(llm, greedy()) == expected


class TestProcesses:
    @pytest.fixture(autouse=True)
    def _nothing_left(self, monkeypatch):
        with nothing_left(monkeypatch):
            yield

    def test_workers_in_processes_apply_them_and_prove_it(self, example, make_llm):
        here = make_llm(logits_processors=["support.scripted_logits:Scripted"])
        there = make_llm(logits_processors=["support.scripted_logits:Scripted"], **TWO_WORKERS)
        scripted = greedy(6)

        assert tokens(there, scripted) == tokens(here, scripted) == scripted_tokens(PROMPT, 6, None, None)
        assert len(there.receipts) == 3
        for receipt in there.receipts:
            assert list(receipt.active[-3:]) == LABELS

    @pytest.mark.slow
    def test_what_a_request_asks_of_them_reaches_the_workers(self, example, make_llm):
        llm = make_llm(**TWO_WORKERS)
        unforbidden = tokens(llm, greedy())

        assert unforbidden[2] not in tokens(llm, greedy(forbid=unforbidden[2]))

    @pytest.mark.slow
    def test_one_that_fails_in_a_worker_is_named(self, plugins, make_llm):
        installed(plugins, "broken", "    def apply(self, logits): raise KeyError('colour')\n")
        llm = make_llm(**TWO_WORKERS)

        with pytest.raises(EngineError, match=r"plugin 'broken' of dist-broken 0.1 failed in apply\(\): KeyError"):
            tokens(llm, greedy())

    @pytest.mark.slow
    def test_one_that_does_not_load_in_the_workers_ends_the_start(self, plugins, make_llm, monkeypatch):
        monkeypatch.setenv("TEST_PID_OF_FRONT_END", str(os.getpid()))
        source = (
            "import os\n"
            "if os.environ['TEST_PID_OF_FRONT_END'] != str(os.getpid()): raise OSError('only one process may')\n"
            "from support.scripted_logits import Scripted as Processor\n"
        )
        plugins.distribution("dist_one", {GROUP: ["one = one_module:Processor"]}, {"one_module.py": source})

        with pytest.raises(PlanMismatch, match=r"(?s)dist-one:one +active +not active.*OSError: only one process may"):
            make_llm(**TWO_WORKERS)

    @pytest.mark.slow
    def test_they_work_behind_an_engine_core_in_a_process(self, example, random_llama):
        async def use(engine: AsyncLLM) -> list[list[int]]:
            found = []
            for params in (greedy(), greedy(forbid=expected[2])):
                async for output in engine.generate(PROMPT, params):
                    last = output.outputs[0].token_ids
                found.append(last)
            with pytest.raises(InvalidRequest, match="plugin 'forbid' of vllm-ext-dummy-logits 0.1 refuses"):
                await anext(engine.generate(PROMPT, greedy(forbid=-1)))
            return found

        options = {"dtype": "float32", "platform": "cpu", "kv_cache_memory": 1 << 20}
        with LLM(random_llama, **options) as llm:
            expected = tokens(llm, greedy())
        engine = AsyncLLM(random_llama, core_process=True, **options)
        try:
            first, second = asyncio.run(use(engine))
            assert [list(receipt.active[-3:]) for receipt in engine.receipts] == [LABELS] * 2
        finally:
            engine.shutdown()
        assert first == expected
        assert expected[2] not in second
