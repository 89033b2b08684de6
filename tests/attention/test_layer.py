"""The attention layer: what it is bound to when it is built, and what it hands on."""

from __future__ import annotations

import pytest
import torch
from support.attention_backends import RecordingBackend, RecordingImpl
from support.device import BACKEND_OF_CPU, make_dispatcher

from vllm_ext.attention.backends.sdpa import SDPAImpl
from vllm_ext.attention.layer import Attention
from vllm_ext.contracts.attention import AttentionMetadata
from vllm_ext.contracts.forward_context import set_forward_context
from vllm_ext.contracts.kv_cache import FullAttentionSpec
from vllm_ext.errors import ConfigError, ContractError

PREFIX = "model.layers.0.self_attn.attn"


def build(dispatcher, prefix: str = PREFIX) -> Attention:
    with dispatcher.activate():
        return Attention(4, 16, 0.25, 2, prefix=prefix)


@pytest.fixture
def recording(random_llama):
    """A dispatcher whose settings name a backend that keeps its calls."""
    return make_dispatcher(random_llama, attention__backend="support.attention_backends.RecordingBackend")


def test_the_platform_chooses_the_backend(random_llama):
    dispatcher = make_dispatcher(random_llama)

    assert build(dispatcher).attn_backend is BACKEND_OF_CPU
    assert len(dispatcher.attention_choices) == 1


def test_the_settings_may_name_the_backend(recording):
    layer = build(recording)

    assert layer.attn_backend is RecordingBackend
    assert isinstance(layer.impl, RecordingImpl)
    assert (layer.impl.num_heads, layer.impl.head_size, layer.impl.scale, layer.impl.num_kv_heads) == (4, 16, 0.25, 2)


def test_a_backend_that_cannot_serve_the_layer_is_refused_with_its_reasons(random_llama):
    picky = make_dispatcher(random_llama, attention__backend="support.attention_backends.PickyBackend")

    with pytest.raises(ConfigError, match=r"head size 16 is not among \[64, 128\]"):
        build(picky)


def test_a_short_name_that_the_platform_does_not_have_is_refused(random_llama):
    with pytest.raises(ConfigError, match="attention.backend is 'FLASHINFER'"):
        build(make_dispatcher(random_llama, attention__backend="FLASHINFER"))


def test_flat_tensors_reach_the_implementation_by_head(recording):
    layer = build(recording)
    cache, metadata = torch.zeros(3), AttentionMetadata()
    layer.bind_kv_cache(cache)

    with set_forward_context({PREFIX: metadata}, 5):
        output = layer(torch.zeros(5, 64), torch.zeros(5, 32), torch.zeros(5, 32))

    assert torch.equal(output, torch.ones(5, 64))
    assert layer.impl.call == (layer, (5, 4, 16), (5, 2, 16), (5, 2, 16), cache, metadata)


def test_an_implementation_may_write_its_output_and_return_nothing(random_llama):
    layer = build(make_dispatcher(random_llama, attention__backend="support.attention_backends.SilentBackend"))

    with set_forward_context({PREFIX: AttentionMetadata()}, 5):
        output = layer(torch.zeros(5, 64), torch.zeros(5, 32), torch.zeros(5, 32))

    assert torch.equal(output, torch.ones(5, 64))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("OlderBackend", "OlderImpl cannot be built: too many positional arguments. It is called with the 10 "),
        ("BackendWithoutImpl", "None is no class"),
    ],
)
def test_an_implementation_that_cannot_be_built_is_refused_with_its_backend(random_llama, name, complaint):
    dispatcher = make_dispatcher(random_llama, attention__backend=f"support.attention_backends.{name}")

    with pytest.raises(
        ContractError,
        match=rf"implementation class of attention backend support.attention_backends.{name}: .*{complaint}",
    ):
        build(dispatcher)


def test_a_profiling_run_has_no_metadata(recording):
    layer = build(recording)

    with set_forward_context(None, 2):
        layer(torch.zeros(2, 64), torch.zeros(2, 32), torch.zeros(2, 32))

    assert layer.impl.call[-1] is None


def test_the_layer_is_known_to_the_engine_by_its_name(recording):
    layer = build(recording)

    assert recording.vllm_config.compilation_config.static_forward_context == {PREFIX: layer}
    assert layer.get_kv_cache_spec(recording.vllm_config) == FullAttentionSpec(16, 2, 16, torch.float32)


def test_two_layers_of_one_name_are_refused(recording):
    build(recording)

    with pytest.raises(ContractError, match=f"two attention layers with the prefix '{PREFIX}'"):
        build(recording)


def test_the_implementation_is_told_when_the_weights_are_there(recording):
    layer = build(recording)

    layer.process_weights_after_loading(torch.float32)

    assert layer.impl.act_dtype is torch.float32


class TestStoringApart:
    """A backend whose forward() does not store keys and values."""

    @pytest.fixture
    def layer(self, random_llama) -> Attention:
        return build(make_dispatcher(random_llama, attention__backend="support.attention_backends.ApartBackend"))

    def test_they_are_stored_before_it_attends(self, layer):
        cache, slots = torch.zeros(3), torch.arange(5)
        layer.bind_kv_cache(cache)

        with set_forward_context({PREFIX: AttentionMetadata()}, 5, slot_mapping={PREFIX: slots}):
            layer(torch.zeros(5, 64), torch.zeros(5, 32), torch.zeros(5, 32))

        assert layer.impl.stored == (layer, (5, 2, 16), (5, 2, 16), cache, slots)
        assert layer.impl.call[-1] is not None

    def test_a_profiling_run_stores_nothing(self, layer):
        with set_forward_context(None, 2):
            layer(torch.zeros(2, 64), torch.zeros(2, 32), torch.zeros(2, 32))

        assert layer.impl.stored is None

    def test_a_worker_that_does_not_say_where_to_is_named_the_layer(self, layer):
        message = (
            f"'SDPA' stores keys and values before forward.., and the worker gives no slot_mapping for .*'{PREFIX}'"
        )
        with set_forward_context({PREFIX: AttentionMetadata()}, 5), pytest.raises(ContractError, match=message):
            layer(torch.zeros(5, 64), torch.zeros(5, 32), torch.zeros(5, 32))

    def test_an_implementation_without_the_method_is_told_so(self):
        with pytest.raises(NotImplementedError, match=r"SDPAImpl does not implement do_kv_cache_update\(\)"):
            SDPAImpl(2, 4, 1.0).do_kv_cache_update(*[None] * 5)


def test_slopes_and_sinks_reach_the_implementation(recording):
    sinks = torch.nn.Parameter(torch.zeros(4))

    with recording.activate():
        layer = Attention(4, 16, 0.25, 2, prefix=PREFIX, alibi_slopes=[0.5] * 4, sinks=sinks)

    assert layer.impl.alibi_slopes == [0.5] * 4
    assert layer.impl.sinks is sinks
    assert not list(layer.parameters()), "the parameter is the model's"


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"alibi_slopes": [0.5] * 4}, "ALiBi slopes are not supported"),
        ({"sinks": torch.zeros(4)}, "attention sinks are not supported"),
        ({"logits_soft_cap": 1.0}, "a soft cap on the logits is not supported"),
        ({"per_layer_sliding_window": 4}, "sliding windows are not supported"),
    ],
)
def test_a_term_that_the_backend_does_not_compute_is_refused(random_llama, terms, reason):
    dispatcher = make_dispatcher(random_llama, attention__backend="support.attention_backends.PlainBackend")

    with dispatcher.activate(), pytest.raises(ConfigError, match=f"cannot serve this model: {reason}"):
        Attention(4, 16, 0.25, 2, prefix=PREFIX, **terms)
