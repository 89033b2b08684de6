"""Any decoder-only architecture of the library transformers, with attention by the platform's backend.

The model is transformers' own, eager code from the installed library only: no code of a model directory is run, and
nothing is downloaded. It computes on the flat batch as if it were one sequence, with each token's position given.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from vllm_ext.contracts.vllm_config import ModelConfig, VllmConfig
from vllm_ext.errors import ConfigError, UnsupportedModel, VllmExtError, innermost_cause
from vllm_ext.models.adapter_attention import PROBE, STEP, Found, Probe, add_layer, probing
from vllm_ext.models.adapter_linear import use_platform_linear
from vllm_ext.models.adapter_weights import WeightNames, load_by_name


class TransformersForCausalLM(nn.Module):
    """The model contract over a model of transformers; its parameters have the names that they have there.

    Raises:
        UnsupportedModel: transformers cannot build it, or it does not fit; the text says why.
        ConfigError: it would have to be split over ranks.
    """

    parts_that_generate: ClassVar[tuple[str, ...]] = ()
    """Where the model is made into one that pools: the head stays, and is not used."""
    _body: Any
    _head: Any

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.check_tensor_parallel_size(vllm_config)
        config = vllm_config.model_config
        self._source = f"{config.hf_config.source or config.model}: {', '.join(config.architectures)}"
        try:
            model = _build(config)
            found = self._adopt(model)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self._source} cannot run through transformers: {error}") from error
        except VllmExtError:
            raise
        except Exception as error:
            raise UnsupportedModel(
                f"{self._source} cannot run through transformers {transformers.__version__}: {innermost_cause(error)}"
            ) from error
        names = {module: name for name, module in self.named_modules()}
        for each in found:
            add_layer(each, f"{prefix}{names[each.module]}.attn")
        model.set_attn_implementation(STEP)
        use_platform_linear(self)

    @classmethod
    def check_tensor_parallel_size(cls, vllm_config: VllmConfig) -> None:
        """ConfigError for more than one rank."""
        config, size = vllm_config.model_config, vllm_config.parallel_config.tensor_parallel_size
        if size > 1:
            raise ConfigError(
                f"engine.tensor_parallel_size is {size}, and {config.hf_config.source or config.model} names "
                f"{', '.join(config.architectures)}, which runs through transformers; such a model is not split. "
                "Possible for this model: 1"
            )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self._head.get_input_embeddings()(input_ids)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._body(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)[0][0]

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The model's own code behind its body: it may scale logits or cap them.
        self._given.hidden_states = hidden_states[None]
        return self._head(input_ids=hidden_states.new_zeros((1, 1), dtype=torch.int64), use_cache=False).logits[0]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return load_by_name(self, self._names, weights)

    def _adopt(self, model: Any) -> list[Found]:
        """Take the model apart into body and head, and find its attention."""
        self._names, body = WeightNames(model), model.base_model
        for name, child in model.named_children():
            self.add_module(name, child)
        # Not registered again: the parts are, under their names.
        self._given = _Given()
        self.__dict__["_body"] = body
        setattr(model, model.base_model_prefix, self._given)
        self.__dict__["_head"] = model
        return self._probe(model)

    @torch.inference_mode()
    def _probe(self, model: Any) -> list[Found]:
        """Run two tokens, whatever the weights are."""
        probe = Probe()
        token = probing.set(probe)
        try:
            self.eval()
            logits = self.compute_logits(self.forward(torch.tensor([0, 1]), torch.tensor([0, 1])))
        finally:
            probing.reset(token)
        if logits.shape[0] != 2:
            raise UnsupportedModel(f"its head gives logits of shape {list(logits.shape)} for two tokens")
        modules = [each.module for each in probe.found]
        num_layers = model.config.get_text_config().num_hidden_layers
        if len(set(modules)) != num_layers or len(modules) != num_layers:
            raise UnsupportedModel(
                f"it calls attention {len(modules)} times, from {len(set(modules))} modules, in {num_layers} layers; "
                "each layer has to call it once"
            )
        return probe.found


class _Given(nn.Module):
    """Stands where the body was, and answers with the hidden states that it has computed before."""

    hidden_states: torch.Tensor

    @property
    def decoder(self) -> _Given:
        """Some heads ask the body's decoder."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        return _Output(last_hidden_state=self.hidden_states)


class _Output(BaseModelOutput):
    """Heads look for one thing and another that they do nothing with where it is ``None``."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _WithoutWeights(TorchFunctionMode):
    """Weights take no memory while they are made, and no time to be filled with numbers that nobody wants; buffers,
    which no checkpoint has, are made as always. Modules make weights by ``torch.empty``.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _build(model_config: ModelConfig) -> Any:
    """The model of ``config.json``, its weights allocated and not filled."""
    values = model_config.hf_config.to_dict()
    # Where a model directory would name code of its own.
    values.pop("auto_map", None)
    kind = values.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UnsupportedModel(f"its config.json has the model_type {kind!r}, which transformers does not know")
    config = CONFIG_MAPPING[kind].from_dict(values)
    model_cls = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_cls is None or model_cls.__name__ not in model_config.architectures:
        there = "no decoder-only language model" if model_cls is None else model_cls.__name__
        raise UnsupportedModel(f"its model_type {kind!r} stands for {there} there")
    _check(model_cls, config)
    _check_rope(config, model_config.max_model_len)
    with _WithoutWeights():
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=model_config.dtype, attn_implementation=PROBE, trust_remote_code=False
        )
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, param in module._parameters.items():
            if param is not None and param.is_meta:
                data = torch.empty(param.shape, dtype=param.dtype)
                module._parameters[name] = made.setdefault(id(param), nn.Parameter(data, requires_grad=False))
    if unknown := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise UnsupportedModel(f"its buffer {unknown[0]!r} has no contents before a checkpoint is loaded")
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        raise UnsupportedModel(f"{type(model.base_model).__name__} cannot be told the positions of its tokens")
    return model.requires_grad_(False)


def _check(model_cls: Any, config: Any) -> None:
    """What can be seen without building it."""
    name = model_cls.__name__
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{name} is an encoder-decoder")
    if model_cls._is_stateful:
        raise UnsupportedModel(f"{name} keeps a state other than keys and values")
    if not model_cls._supports_attention_backend:
        raise UnsupportedModel(f"transformers does not let the attention of {name} be replaced")


def _check_rope(config: Any, max_model_len: int) -> None:
    """Some frequencies change once a sequence is long, in transformers for all requests of a step."""
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            limit = kind.get("original_max_position_embeddings") or config.max_position_embeddings
            if max_model_len > limit:
                raise UnsupportedModel(
                    f"its {kind['rope_type']} rope is another one beyond {limit} tokens, for all requests of a step; "
                    f"set engine.max_model_len to at most {limit}"
                )
