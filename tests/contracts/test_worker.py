"""The worker contract: what the base class does, and which methods a class lacks."""

from __future__ import annotations

import pytest
import torch
from support.fake_engine import FakePlatform, make_vllm_config

from vllm_ext import WorkerBase
from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheLayout
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.worker import CompilationTimes
from vllm_ext.contracts.worker_check import describe_missing, may_lack_sample_tokens, missing_methods
from vllm_ext.errors import CheckpointError

SPEC = {"layers.0": FullAttentionSpec(16, 2, 8, torch.float32)}


def make(cls: type[WorkerBase] = WorkerBase, **config) -> WorkerBase:
    with use_platform(FakePlatform()):
        return cls(make_vllm_config(**config), 0, 0, "tcp://127.0.0.1:1")


class Minimal(WorkerBase):
    """What the documentation asks of a worker at least."""

    def init_device(self): ...
    def load_model(self, *, load_dummy_weights=False): ...
    def get_kv_cache_spec(self): ...
    def determine_available_memory(self): ...
    def initialize_from_config(self, kv_cache_config): ...
    def execute_model(self, scheduler_output): ...


class OldSpelling(WorkerBase):
    def get_kv_cache_spaces(self):
        return SPEC


class TestOldSpelling:
    def test_a_worker_that_has_only_the_older_name_works_and_is_told_the_new_one(self):
        message = (
            r"worker .*OldSpelling implements get_kv_cache_spaces\(\), an older name of get_kv_cache_spec\(\), which"
        )
        with pytest.warns(DeprecationWarning, match=f"{message} vllm_ext 0.3.0 removes; use get_kv_cache_spec"):
            assert make(OldSpelling).get_kv_cache_spec() == SPEC

    def test_a_worker_with_the_new_name_can_be_asked_by_the_older_one(self):
        worker = make(type("Worker", (WorkerBase,), {"get_kv_cache_spec": lambda self: SPEC}))

        with pytest.warns(DeprecationWarning, match=r"Worker is asked for get_kv_cache_spaces\(\), an older name"):
            assert worker.get_kv_cache_spaces() == SPEC

    def test_a_worker_with_neither_says_the_new_one(self):
        with pytest.raises(NotImplementedError, match=r"WorkerBase does not implement get_kv_cache_spec\(\)"):
            make().get_kv_cache_spec()


class TestLayouts:
    @staticmethod
    def layer(*layouts):
        backend = type("Backend", (), {"supported_kv_cache_layouts": lambda: layouts or None})
        return type("Layer", (), {"attn_backend": backend})()

    def test_those_are_supported_that_every_layers_backend_reads_in_the_order_of_the_first(self):
        worker = make()
        layers = worker.compilation_config.static_forward_context
        layers["a"] = self.layer(KVCacheLayout.LBHNC, KVCacheLayout.BLHNC, KVCacheLayout.LBNHC)
        layers["b"] = self.layer()
        layers["c"] = self.layer(KVCacheLayout.LBNHC, KVCacheLayout.LBHNC)

        assert worker.get_supported_kv_cache_layouts() == [KVCacheLayout.LBHNC, KVCacheLayout.LBNHC]

    def test_without_a_layer_that_is_particular_it_is_any(self):
        assert make().get_supported_kv_cache_layouts() is None

    def test_what_was_agreed_on_is_kept_and_cannot_change(self):
        worker = make()
        worker.set_kv_cache_layout(KVCacheLayout.LBHNC)
        worker.set_kv_cache_layout(KVCacheLayout.LBHNC)

        assert worker.cache_config.kv_cache_layout is KVCacheLayout.LBHNC
        with pytest.raises(ValueError, match="has the layout LBHNC, and cannot be given LBNHC"):
            worker.set_kv_cache_layout(KVCacheLayout.LBNHC)


class TestModel:
    class Loaded(WorkerBase):
        def get_model(self):
            return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())

    def test_a_function_is_applied_to_it(self):
        assert make(self.Loaded).apply_model(len) == 2

    def test_it_is_shown_as_a_tree(self):
        assert "(0): Linear(in_features=2, out_features=3" in make(self.Loaded).get_model_inspection()

    def test_its_vocabulary(self):
        assert make(vocab_size=77).vocab_size == 77
        with pytest.raises(CheckpointError, match="vocab_size is missing"):
            _ = make(vocab_size=None).vocab_size


def test_defaults():
    worker = make()

    assert worker.compile_or_warm_up_model() == CompilationTimes(0.0, 0.0)
    assert worker.get_supported_tasks() == ("generate",)
    worker.update_max_model_len(50)
    assert worker.model_config.max_model_len == 50
    worker.initialize_cache(7, 0)
    assert worker.cache_config.num_gpu_blocks == 7


def test_what_has_no_default_names_worker_and_method():
    for method, arguments in (("profile", (True,)), ("sample_tokens", (None,)), ("get_model", ())):
        with pytest.raises(NotImplementedError, match=rf"worker .*WorkerBase does not implement {method}\(\)"):
            getattr(make(), method)(*arguments)


class TestMissing:
    def test_a_worker_as_the_documentation_has_it_lacks_nothing(self):
        assert missing_methods(Minimal) == []

    def test_either_spelling_of_the_cache_is_enough(self):
        old = type("Old", (Minimal,), {"get_kv_cache_spec": WorkerBase.get_kv_cache_spec,
                                       "get_kv_cache_spaces": lambda self: SPEC})  # fmt: skip

        assert missing_methods(old) == []

    def test_a_misspelling_is_named_beside_what_it_may_be_meant_for(self):
        class Misspelt(Minimal):
            execute_model = WorkerBase.execute_model

            def excute_model(self, scheduler_output): ...

        assert missing_methods(Misspelt) == ["execute_model"]
        assert describe_missing(Misspelt, ["execute_model"]) == "execute_model (it has 'excute_model')"

    def test_a_second_phase_may_be_lacking_where_the_annotation_announces_one(self):
        class MayAnnounce(Minimal):
            def execute_model(self, scheduler_output) -> ModelRunnerOutput | None: ...

        class TwoPhases(MayAnnounce):
            def sample_tokens(self, grammar_output): ...

        class OnePhase(Minimal):
            def execute_model(self, scheduler_output) -> ModelRunnerOutput: ...

        assert [may_lack_sample_tokens(cls) for cls in (MayAnnounce, TwoPhases, OnePhase, Minimal, WorkerBase)] == [
            True, False, False, False, False,
        ]  # fmt: skip
