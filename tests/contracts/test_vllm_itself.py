"""The contracts beside those of a vLLM that is installed; without one, all of this is skipped.

A plugin that is written for vLLM overrides a method with vLLM's parameters, and calls one with them. Where a method has
others here, that is known, and this table says why it does no harm.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.compatibility import public_methods
from support.distributions import GENERAL, config

from vllm_ext.contracts.groups import KINDS, STAT_LOGGER_PLUGINS_GROUP, VLLM_BUILTIN_PLATFORMS
from vllm_ext.dispatch.planning import plan_installed
from vllm_ext.hosts.variables import host_variables

pytest.importorskip("vllm", reason="no vLLM is installed beside vllm_ext")
pytestmark = pytest.mark.filterwarnings("ignore")  # what vLLM's imports warn of is not ours

CLASSES = {
    "contracts.platform.Platform": "platforms.interface.Platform",
    "contracts.worker.WorkerBase": "v1.worker.worker_base.WorkerBase",
    "contracts.attention.AttentionBackend": "v1.attention.backend.AttentionBackend",
    "contracts.attention.AttentionImpl": "v1.attention.backend.AttentionImpl",
    "contracts.attention.AttentionMetadataBuilder": "v1.attention.backend.AttentionMetadataBuilder",
    "contracts.communicator.DeviceCommunicatorBase": (
        "distributed.device_communicators.base_device_communicator.DeviceCommunicatorBase"
    ),
    "contracts.custom_op.CustomOp": "model_executor.custom_op.CustomOp",
    "contracts.custom_op.PluggableLayer": "model_executor.custom_op.PluggableLayer",
    "contracts.linear_method.LinearMethod": "model_executor.layers.linear.LinearMethodBase",
    "contracts.quantization.QuantizationConfig": ("model_executor.layers.quantization.base_config.QuantizationConfig"),
    "contracts.model_loader.BaseModelLoader": "model_executor.model_loader.base_loader.BaseModelLoader",
    "contracts.pooler.Pooler": "model_executor.layers.pooler.abstract.Pooler",
    "contracts.tokenizer.TokenizerLike": "tokenizers.protocol.TokenizerLike",
    "contracts.lora_resolver.LoRAResolver": "lora.resolver.LoRAResolver",
    "contracts.logits_processor.LogitsProcessor": "v1.sample.logits_processor.interface.LogitsProcessor",
    "contracts.logits_processor.AdapterLogitsProcessor": "v1.sample.logits_processor.AdapterLogitsProcessor",
    "contracts.stat_logger.StatLoggerBase": "v1.metrics.loggers.StatLoggerBase",
    "contracts.stat_logger.AggregateStatLoggerBase": "v1.metrics.loggers.AggregateStatLoggerBase",
    "contracts.scheduler.SchedulerInterface": "v1.core.sched.interface.SchedulerInterface",
    "contracts.io_processor.IOProcessor": "plugins.io_processors.interface.IOProcessor",
    "contracts.endpoint.EndpointPlugin": "plugins.endpoint_plugins.interface.EndpointPlugin",
    "registry.models._ModelRegistry": "model_executor.models.registry._ModelRegistry",
    "registry.tokenizers._TokenizerRegistry": "tokenizers.registry._TokenizerRegistry",
}

DIFFERENCES = {
    "WorkerBase.set_kv_cache_layout": "given by position",
    "AttentionBackend.validate_configuration": "an override is not asked what it does not take",
    "PluggableLayer.register_oot": "given by position",
    "TokenizerLike.encode": "add_special_tokens is given by keyword; the engine cuts by itself",
    "TokenizerLike.from_pretrained": "a model is a directory: nothing is downloaded, and no code of it is run",
    "TokenizerLike.convert_ids_to_tokens": "the engine leaves out none",
    "SchedulerInterface.schedule": "the engine throttles nothing",
    "SchedulerInterface.reset_prefix_cache": "given by keyword; there is no connector",
    "_TokenizerRegistry.load_tokenizer_cls": "named_by is for messages, and has a default",
}
RECORDS = {
    "contracts.scheduler_output.NewRequestData": "v1.core.sched.output.NewRequestData",
    "contracts.scheduler_output.CachedRequestData": "v1.core.sched.output.CachedRequestData",
    "contracts.scheduler_output.SchedulerOutput": "v1.core.sched.output.SchedulerOutput",
    "contracts.outputs.ModelRunnerOutput": "v1.outputs.ModelRunnerOutput",
}
"""All of vLLM's fields are there, and can be given."""
CONFIGS = {
    "contracts.vllm_config.VllmConfig": "config.VllmConfig",
    "contracts.vllm_config.ModelConfig": "config.ModelConfig",
    "contracts.vllm_config.CacheConfig": "config.CacheConfig",
    "contracts.vllm_config.ParallelConfig": "config.ParallelConfig",
    "contracts.vllm_config.SchedulerConfig": "config.SchedulerConfig",
    "contracts.vllm_config.ObservabilityConfig": "config.ObservabilityConfig",
}
OTHER_VALUES = {
    "ModelConfig.max_logprobs": "no limit is set",
    "ParallelConfig.disable_custom_all_reduce": "there are no such kernels",
    "SchedulerConfig.async_scheduling": "vLLM decides it where it is None",
}
"""Constants that are not vLLM's default."""
ENUMS = {
    "contracts.device.PlatformEnum": "platforms.interface.PlatformEnum",
    "contracts.device.CpuArchEnum": "platforms.interface.CpuArchEnum",
    "contracts.attention.AttentionType": "v1.attention.backend.AttentionType",
    "contracts.attention.AttentionCGSupport": "v1.attention.backend.AttentionCGSupport",
    "contracts.logits_processor.MoveDirectionality": "v1.sample.logits_processor.interface.MoveDirectionality",
}


def find(package: str, path: str) -> Any:
    module, _, name = f"{package}.{path}".rpartition(".")
    return getattr(importlib.import_module(module), name)


def faults(ours: inspect.Signature, theirs: inspect.Signature) -> Iterator[str]:
    """How a method of ours and vLLM's of the same name cannot stand for each other."""
    own, other = ours.parameters, theirs.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in own.values())
    yield from (
        f"ours does not take {name}" for name, p in other.items() if name not in own and not _is_rest(p, takes_any)
    )
    takes_any = any(p.kind is p.VAR_KEYWORD for p in other.values())
    yield from (
        f"vLLM's does not take {name}" for name, p in own.items() if name not in other and not _is_rest(p, takes_any)
    )
    common = [name for name in own if name in other]
    if common != [name for name in other if name in own]:
        yield "they come in another order"


def _is_rest(parameter: inspect.Parameter, takes_any: bool) -> bool:
    return takes_any or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


@pytest.mark.parametrize("path", CLASSES)
def test_methods_have_vllms_parameters_unless_it_is_known_why_not(path):
    ours, theirs = find("vllm_ext", path), find("vllm", CLASSES[path])
    found = {}
    for name in public_methods(ours):
        pair = getattr(ours, name), getattr(theirs, name, None)
        if all(map(inspect.isroutine, pair)):
            found[f"{ours.__name__}.{name}"] = list(faults(*map(inspect.signature, pair)))

    odd = {name: texts for name, texts in found.items() if texts}
    known = {name for name in DIFFERENCES if name.startswith(f"{ours.__name__}.")}
    assert {name: texts for name, texts in odd.items() if name not in known} == {}
    assert known - set(odd) == set()


@pytest.mark.parametrize("path", RECORDS)
def test_records_have_vllms_fields(path):
    ours, theirs = find("vllm_ext", path), find("vllm", RECORDS[path])
    missing = {field.name for field in dataclasses.fields(theirs)} - {field.name for field in dataclasses.fields(ours)}

    assert missing == set()


@pytest.mark.parametrize("path", CONFIGS)
def test_what_cannot_be_otherwise_is_vllms_default(path):
    ours, theirs = find("vllm_ext", path), find("vllm", CONFIGS[path])
    defaults = {f.name: getattr(f.default, "default", f.default) for f in dataclasses.fields(theirs)}
    found = vars_of(ours)
    constants = {name: found[name] for name in defaults if name in found and isinstance(found[name], PLAIN)}
    fields = {field.name for field in dataclasses.fields(ours)} if ours.__name__ != "ObservabilityConfig" else set()

    assert {
        f"{ours.__name__}.{name}": value
        for name, value in constants.items()
        if name not in fields
        and isinstance(defaults[name], PLAIN)
        and value != defaults[name]
        and f"{ours.__name__}.{name}" not in OTHER_VALUES
    } == {}


PLAIN = (bool, int, float, str, type(None))


def vars_of(cls: type) -> dict[str, Any]:
    return {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}


@pytest.mark.parametrize("path", ENUMS)
def test_enumerations_have_vllms_members_and_values(path):
    ours, theirs = find("vllm_ext", path), find("vllm", ENUMS[path])

    assert {name: each.value for name, each in ours.__members__.items()} == {
        name: each.value for name, each in theirs.__members__.items()
    }


@pytest.mark.parametrize("path", [path for kind in KINDS for path in kind.vllm_contracts])
def test_plugins_for_vllm_are_compared_with_classes_that_it_has(path):
    assert isinstance(find("vllm", path.removeprefix("vllm.")), type)


def test_the_groups_are_those_that_vllm_reads():
    sources = (Path(importlib.import_module("vllm").__file__).parent / path for path in ("plugins", "v1/sample"))
    read = "".join(file.read_text() for folder in sources for file in folder.rglob("*.py"))
    groups = [group for kind in KINDS for group in kind.groups if group.startswith("vllm.")]

    assert [group for group in groups if f'"{group}"' not in read] == []


def test_its_own_platforms_are_those_that_are_candidates():
    detectors = importlib.import_module("vllm.platforms").builtin_platform_plugins

    assert {name: detector.__name__ for name, detector in detectors.items()} == {
        name: f"{name}_platform_plugin" for name in VLLM_BUILTIN_PLATFORMS
    }


def test_it_loads_what_the_variables_say(plugins, monkeypatch):
    files = {"acme.py": "def a(): pass\ndef b(): pass\n"}
    plugins.distribution(
        "acme", {GENERAL: ["a = acme:a", "b = acme:b"], STAT_LOGGER_PLUGINS_GROUP: ["c = acme:a"]}, files
    )
    plan = plan_installed(config(host="vllm", platform__driver="cpu", plugins__general__disabled=["b"]))
    variables = host_variables(plan.bind(plan.candidates()[0]), {})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    load = importlib.import_module("vllm.plugins").load_plugins_by_group
    own = {"lora_filesystem_resolver", "lora_hf_hub_resolver"}
    assert set(load(GENERAL)) == {"a"} | own
    assert set(load(STAT_LOGGER_PLUGINS_GROUP)) == {"c"}
    assert set(load(GENERAL)) == {d.name for d in plan.selected("general")}
    resolve = importlib.import_module("vllm.platforms").resolve_current_platform_cls_qualname
    assert resolve() == "vllm.platforms.cpu.CpuPlatform"
