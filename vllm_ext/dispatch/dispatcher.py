"""The dispatcher: one engine's platform, and the factories that build what the platform chose.

A class path is resolved and checked on first use and frozen then; nothing falls back to another implementation later.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vllm_ext.config import Config
from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.contracts.call_check import check_constructor
from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.contracts.groups import EXECUTOR, LOGITS_PROCESSOR
from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.contracts.vllm_config import set_current_vllm_config
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.dispatch.attention_choice import AttentionChoice, AttentionChooser, Wish
from vllm_ext.dispatch.engine_config import build_vllm_config
from vllm_ext.dispatch.executor_choice import executor_of_hooks, with_own_names
from vllm_ext.dispatch.hooks import prepare_platform, run_platform_hooks, update_block_size
from vllm_ext.dispatch.io_processor import LoadedIOProcessor, load_io_processor
from vllm_ext.dispatch.logits_processors import (
    NO_LOGITS,
    SETTING,
    NamedLogitsProcessor,
    load_logits_processors,
    refuse_without_logits,
)
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.dispatch.op_settings import check_custom_ops, warn_of_unknown_ops
from vllm_ext.dispatch.quantization import update_quant_config
from vllm_ext.dispatch.scheduler import build_scheduler, resolve_scheduler
from vllm_ext.dispatch.stat_loggers import StatLoggers
from vllm_ext.dispatch.users_choices import keep_users_choices
from vllm_ext.dispatch.worker_extension import extend_worker
from vllm_ext.errors import ContractError, PlatformUnavailable
from vllm_ext.managers import PlatformBinding, load_chosen, load_driver, use_bound_plan
from vllm_ext.plan.rules import value_of
from vllm_ext.registry.owners import loading
from vllm_ext.registry.scope import Scope, use_scope

if TYPE_CHECKING:
    from vllm_ext.contracts.communicator import DeviceCommunicatorBase
    from vllm_ext.contracts.executor import Executor
    from vllm_ext.contracts.kv_cache import KVCacheConfig
    from vllm_ext.contracts.linear_method import LinearMethod
    from vllm_ext.contracts.scheduler import SchedulerInterface
    from vllm_ext.contracts.stat_logger import StatLoggerFactory


class Dispatcher:
    """Builds workers, attention backends, communicators and the executor of one engine.

    Args:
        binding: the bound plan and its platform.
        config: the settings.
        progress: whether loading may show a progress bar.

    Raises:
        PlatformUnavailable: no platform is bound.
        ConfigError, ModelError: settings or model directory do not fit; whatever the platform's own hooks raise.
    """

    def __init__(self, binding: PlatformBinding, config: Config, *, progress: bool = False) -> None:
        self.bound_plan = binding.bound_plan
        self.platform = binding.platform
        self.config = config
        self.settings = binding.bound_plan.plan.settings
        """The settings that hold: in safe mode, without the class paths of ``config``."""
        self.groups: dict[str, Any] = {}
        """The engine's process groups by their unique names; they enter themselves, and leave when destroyed."""
        self.stat_logger_factories: Sequence[StatLoggerFactory] = ()
        """Stat loggers besides those of plugins, from the program that uses the engine."""
        self.clock: Callable[[], float] = time.monotonic
        """Seconds, for all times that stat loggers are told. A core process has a ``time.monotonic`` of its own, which
        is the same clock on one machine."""
        self._classes: dict[tuple[str, Any], Any] = {}
        self.attention_choices: dict[tuple[AttentionSelectorConfig, int], AttentionChoice] = {}
        """By kind of layer and number of query heads: the backend, and what else was considered."""
        self.scope = Scope.of(self.bound_plan.platform_distribution, self.bound_plan.foreign_distributions)
        """Whose registrations count in this engine."""
        if self.platform.is_unspecified():
            raise PlatformUnavailable(
                "no platform is available to build an engine on; 'vllm-ext list --group vllm_ext.platforms' shows "
                "the in-tree ones, and platform.driver chooses one"
            )
        with use_platform(self.platform), use_scope(self.scope), self._as_owner():
            prepare_platform(self.platform)
            self._attention = AttentionChooser(
                self.platform, self.platform_name, self.platform_origin, self._resolve_attention
            )
            self.vllm_config = build_vllm_config(self.settings, self.platform, progress=progress)
            if self.is_pooling:
                refuse_without_logits(self.settings.engine.logits_processors, config.where(SETTING))
                self.bound_plan = self.bound_plan.leave_out(LOGITS_PROCESSOR.key, NO_LOGITS)
            self.vllm_config.cache_config.user_specified_block_size = "engine.block_size" in config.origins
            self.vllm_config.additional_config.update(self.bound_plan.options)
            changes = run_platform_hooks(self.platform, self.vllm_config, self.platform_origin)
            changes = with_own_names(self.vllm_config, changes)
            self.changes, self.overruled = keep_users_choices(self.vllm_config, self.settings, config, changes)
            """What the platform's hooks changed in the configuration, and what they changed in vain."""
            update_quant_config(self.vllm_config, self.changes, self.platform)
            self._executor_of_hooks = executor_of_hooks(self.bound_plan, self.changes)
        check_custom_ops(self.vllm_config.compilation_config.custom_ops, f"the hooks of {self.platform_name}")

    @property
    def platform_name(self) -> str:
        """Name of the chosen platform plugin, for messages."""
        decision = self.bound_plan.platform
        return f"platform {decision.name!r}" if decision else f"platform {self.platform.device_name!r}"

    @property
    def platform_origin(self) -> str:
        """The platform as the origin of a value: ``platform:NAME``."""
        decision = self.bound_plan.platform
        return f"platform:{decision.name if decision else self.platform.device_name}"

    @property
    def is_pooling(self) -> bool:
        """Whether the model makes embeddings, classes or scores, and no tokens."""
        return self.vllm_config.model_config.runner_type == "pooling"

    def _as_owner(self) -> AbstractContextManager[None]:
        """What the platform's hooks register inside the block is its plugin's, whoever wrote the class."""
        decision = self.bound_plan.platform
        return loading(decision.name, decision.distribution) if decision else nullcontext()

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make this engine's platform, configuration and dispatcher the current ones inside the block."""
        token = _current.set(self)
        try:
            with (
                use_platform(self.platform),
                use_scope(self.scope),
                set_current_vllm_config(self.vllm_config),
                use_bound_plan(self.bound_plan),
            ):
                yield
        finally:
            _current.reset(token)

    def executor_factory(self) -> Executor:
        """The executor named by the settings, or else by a hook, which creates the workers."""
        if self._executor_of_hooks is not None:
            executor_cls = load_chosen(self.bound_plan.plan, self._executor_of_hooks)
        else:
            name = self.vllm_config.parallel_config.distributed_executor_backend
            executor_cls = load_driver(self.bound_plan, EXECUTOR, name)
        executor: Executor = executor_cls(self)
        warn_of_unknown_ops(self.vllm_config.compilation_config.custom_ops)
        return executor

    def worker_factory(
        self, *, local_rank: int, rank: int, distributed_init_method: str, is_driver_worker: bool
    ) -> WorkerBase:
        """A worker of the class that the platform, or the settings, named."""
        with self.activate():
            with platform_code(self.platform):
                self.platform.import_kernels()
            worker_cls = self.worker_cls()
            return worker_cls(
                vllm_config=self.vllm_config,
                local_rank=local_rank,
                rank=rank,
                distributed_init_method=distributed_init_method,
                is_driver_worker=is_driver_worker,
            )

    def worker_cls(self) -> type[WorkerBase]:
        """The class of the workers; ContractError where the platform names none, or no worker."""
        qualname = self.vllm_config.parallel_config.worker_cls
        if qualname == "auto":
            raise ContractError(
                f"{self.platform_name} left parallel_config.worker_cls at 'auto': its check_and_update_config() has "
                "to set the class path of a worker",
                plugin=self.platform_name,
            )
        worker_cls: type[WorkerBase] = self._resolve("worker", qualname, WorkerBase, self._source("worker.cls"))
        extension = self.vllm_config.parallel_config.worker_extension_cls
        if not extension:
            return worker_cls
        source = "setting worker.extension_cls" if self.settings.worker.extension_cls else self.platform_name
        if ("extended worker", extension) not in self._classes:
            extension_cls = self._resolve("worker extension", extension, object, source)
            self._classes["extended worker", extension] = extend_worker(worker_cls, extension_cls, source)
        extended: type[WorkerBase] = self._classes["extended worker", extension]
        return extended

    def update_block_size(self) -> None:
        """Let the platform choose the size of KV cache blocks, now that the model's layers are there."""
        with self.activate():
            self.changes += update_block_size(self.platform, self.vllm_config, self.platform_origin)

    def attention_factory(self, selector: AttentionSelectorConfig, num_heads: int) -> type[AttentionBackend]:
        """The backend class for such a layer, checked to be able to serve it.

        Raises:
            ConfigError: no backend can serve the layer, or the one that the user named; the text has each reason.
            ContractError: the platform's answer is no attention backend.
        """
        layer = (selector, num_heads)
        if layer not in self.attention_choices or not self.attention_choices[layer].is_made:
            with use_platform(self.platform), use_scope(self.scope):
                choice = self._attention.choose(self._attention_wish(), selector, num_heads)
            self.attention_choices[layer] = choice
        return self.attention_choices[layer].backend

    def communicator_factory(self, **kwargs: Any) -> DeviceCommunicatorBase:
        """A communicator for one process group; arguments as of :class:`DeviceCommunicatorBase`."""
        return self.communicator_cls()(**kwargs)

    def communicator_cls(self) -> type[DeviceCommunicatorBase]:
        """The class of the communicators; ContractError where it is none, or cannot be built as they are."""
        from vllm_ext.contracts.communicator import CONSTRUCTOR_KEYWORDS, DeviceCommunicatorBase

        wanted = self.settings.communicator.cls
        with platform_code(self.platform):
            qualname = self.platform.get_device_communicator_cls() if wanted == "auto" else wanted
        source = self._source("communicator.cls")
        cls: type[DeviceCommunicatorBase] = self._resolve("communicator", qualname, DeviceCommunicatorBase, source)
        check_constructor(cls, CONSTRUCTOR_KEYWORDS, slot="communicator", source=source)
        return cls

    @functools.cached_property
    def logits_processors(self) -> tuple[NamedLogitsProcessor, ...]:
        """Those besides the worker's own, in the order in which they are applied; loaded when first asked for. A model
        that pools has none.

        Raises:
            PluginLoadError, ContractError: one that the user named cannot be used.
        """
        with self.activate():
            return load_logits_processors(self.bound_plan, self.vllm_config.model_config.logits_processors)

    @functools.cached_property
    def stat_loggers(self) -> StatLoggers:
        """Those of plugins and of :attr:`stat_logger_factories`; loaded when first asked for.

        Raises:
            PluginLoadError, ContractError: one that the user named cannot be used.
        """
        with self.activate():
            return StatLoggers(self.bound_plan, self.stat_logger_factories)

    @functools.cached_property
    def io_processor(self) -> LoadedIOProcessor:
        """The class that turns data into prompts, or why there is none; chosen and loaded when first asked for.

        Raises:
            PluginLoadError: the chosen one cannot be used.
            CheckpointError: the model names something that is no name.
        """
        with self.activate():
            return load_io_processor(self.bound_plan, self.config, self.vllm_config)

    def load_logits_processors(self) -> None:
        """Have :attr:`logits_processors` loaded now, with its errors."""
        _ = self.logits_processors

    def load_stat_loggers(self) -> None:
        """Have :attr:`stat_loggers` loaded now, with its errors: those are worth knowing before a model is loaded."""
        _ = self.stat_loggers

    def load_io_processor(self) -> None:
        """Have :attr:`io_processor` loaded now, as :meth:`load_stat_loggers`."""
        _ = self.io_processor

    def linear_method(self) -> LinearMethod:
        """How the layers of this engine lay out and multiply dense weights."""
        from vllm_ext.contracts.linear_method import LinearMethod

        with platform_code(self.platform):
            qualname = self.platform.get_unquantized_linear_method_cls()
        cls = self._resolve("linear method", qualname, LinearMethod, self.platform_name)
        method: LinearMethod = cls()
        return method

    def _attention_wish(self) -> Wish:
        """The backend that settings, or a hook of the platform, name."""
        is_hooks = any(change.path == "attention_config.backend" for change in self.changes)
        origin = self.platform_origin if is_hooks else str(self.config.origin("attention.backend"))
        return Wish(self.vllm_config.attention_config.backend, origin)

    def _resolve_attention(self, qualname: Any, source: str) -> type[AttentionBackend]:
        backend: type[AttentionBackend] = self._resolve("attention", qualname, AttentionBackend, source)
        return backend

    def scheduler_cls(self) -> type:
        """The class of the scheduler, checked; ContractError where it does not keep the contract."""
        return resolve_scheduler(self.vllm_config.scheduler_config.scheduler_cls, self._scheduler_source())

    def scheduler_factory(self, kv_cache_config: KVCacheConfig) -> SchedulerInterface:
        """The engine's scheduler, built with vLLM's keywords."""
        block_size = self.vllm_config.cache_config.block_size
        keywords = {
            "vllm_config": self.vllm_config,
            "kv_cache_config": kv_cache_config,
            "structured_output_manager": None,
            "include_finished_set": False,
            "log_stats": True,
            "block_size": block_size,
            "hash_block_size": block_size,
        }
        with self.activate():
            scheduler: SchedulerInterface = build_scheduler(self.scheduler_cls(), self._scheduler_source(), keywords)
        return scheduler

    def _scheduler_source(self) -> str:
        named = self.vllm_config.scheduler_config.scheduler_cls == self.settings.engine.scheduler_cls
        return "setting engine.scheduler_cls" if named else self.platform_name

    def is_platforms_choice(self, key: str) -> bool:
        """Whether the setting ``key``, of a class path, leaves the choice to the platform."""
        return bool(value_of(self.settings, key) == "auto")

    def _source(self, key: str) -> str:
        return self.platform_name if self.is_platforms_choice(key) else f"setting {key}"

    def _resolve(self, slot: str, qualname: Any, base: type, source: str) -> Any:
        if not isinstance(qualname, str):
            return resolve_class(qualname, base, slot=slot, source=source)
        if (slot, qualname) not in self._classes:
            self._classes[slot, qualname] = resolve_class(qualname, base, slot=slot, source=source)
        return self._classes[slot, qualname]


_current: ContextVar[Dispatcher | None] = ContextVar("vllm_ext_dispatcher", default=None)


def find_current_dispatcher() -> Dispatcher | None:
    """The dispatcher of the engine being built or stepped; ``None`` outside of one."""
    return _current.get()


def get_current_dispatcher() -> Dispatcher:
    """The dispatcher of the engine being built or stepped; RuntimeError outside of one."""
    dispatcher = _current.get()
    if dispatcher is None:
        raise RuntimeError("no engine is active here: layers are built inside Dispatcher.activate()")
    return dispatcher
