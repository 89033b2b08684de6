"""What an engine really uses: objects built, methods called, while a few tokens go through it.

Nothing here is on the path of an engine that is not watched.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.errors import dotted_path
from vllm_ext.registry.base import all_registries

if TYPE_CHECKING:
    import torch

    from vllm_ext.config import Config
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.managers import PlatformBinding
    from vllm_ext.plan import Receipt

PROMPT = [0, 1, 2]
NUM_TOKENS = 4


class Usage:
    """Counts by slot and class path, while the engine starts and then while it makes steps."""

    def __init__(self) -> None:
        self.is_stepping = False
        self.at_start: Counter[tuple[str, str]] = Counter()
        """Objects that were built; of the platform, calls."""
        self.in_steps: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        """Calls by method."""
        self.modules: dict[int, torch.nn.Module] = {}
        """The model's, and what else was called."""
        self.module_calls: Counter[int] = Counter()
        self.looked_up_before = {registry.what: dict(registry.consulted) for registry in all_registries()}
        """How often the entries of the registries had been asked for."""

    @property
    def saw_workers(self) -> bool:
        """Whether there were any in this process."""
        return any(slot == "worker" for slot, _ in self.at_start)

    def watch(self, slot: str, thing: Any, contract: type) -> ExitStack:
        """Count the calls of what ``contract`` declares, until what is returned is closed."""
        undo = ExitStack()
        declarations = {name: value for base in contract.__mro__[-2::-1] for name, value in vars(base).items()}
        for name, declared in declarations.items():
            if name.startswith("_") or not callable(getattr(contract, name)) or isinstance(declared, type):
                continue
            setattr(thing, name, self._counted((slot, dotted_path(type(thing))), name, getattr(thing, name)))
            undo.callback(delattr, thing, name)
        return undo

    def note_module(self, module: torch.nn.Module, *_: Any) -> None:
        """Before each forward of any module; a hook of torch."""
        if id(module) not in self.modules:
            self.modules |= {id(each): each for each in module.modules()}
        if self.is_stepping:
            self.module_calls[id(module)] += 1

    def by(self, name_of: Callable[[torch.nn.Module], str | None]) -> dict[str, tuple[int, int]]:
        """How many modules there are, and calls in steps, by what ``name_of`` says; ``None`` is passed over."""
        found: dict[str, tuple[int, int]] = {}
        for number, module in self.modules.items():
            if (name := name_of(module)) is not None:
                built, calls = found.get(name, (0, 0))
                found[name] = built + 1, calls + self.module_calls[number]
        return found

    def _counted(self, key: tuple[str, str], name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.is_stepping:
                self.in_steps[key][name] += 1
            elif key[0] == "platform":
                self.at_start[key] += 1
            return method(*args, **kwargs)

        return counted


class WatchedDispatcher(Dispatcher):
    """A dispatcher that lets ``usage`` count what it builds."""

    def __init__(self, binding: PlatformBinding, config: Config, usage: Usage) -> None:
        self._usage = usage
        self._undo = usage.watch("platform", binding.platform, Platform)
        try:
            super().__init__(binding, config)
        except BaseException:
            self._undo.close()
            raise
        # A step that is replayed calls no ops that could be counted.
        self.vllm_config.compilation_config.cudagraph_mode = "NONE"

    def worker_factory(self, **kwargs: Any) -> WorkerBase:
        worker = super().worker_factory(**kwargs)
        self._watch("worker", worker, WorkerBase)
        return worker

    def communicator_factory(self, **kwargs: Any) -> DeviceCommunicatorBase:
        communicator = super().communicator_factory(**kwargs)
        self._watch("communicator", communicator, DeviceCommunicatorBase)
        return communicator

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the model's modules as well; at the end nothing is counted any more."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        with self._undo:
            self._undo.callback(register_module_forward_pre_hook(self._usage.note_module).remove)
            yield

    def _watch(self, slot: str, thing: Any, contract: type) -> None:
        self._usage.at_start[slot, dotted_path(type(thing))] += 1
        self._undo.push(self._usage.watch(slot, thing, contract))


def run_a_little(dispatcher: WatchedDispatcher, usage: Usage) -> tuple[Receipt, ...]:
    """Start an engine on ``dispatcher``, generate a few tokens or pool a few, and stop it.

    Only what happens in this process is counted.

    Returns: what each process of the engine proved to run.

    Raises:
        VllmExtError: the engine cannot start, or a step failed.
    """
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.engine.llm import LLM

    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    if dispatcher.settings.engine.core_process:
        return asyncio.run(_run_async(dispatcher, params))
    with dispatcher.watching(), LLM.from_dispatcher(dispatcher) as llm:
        usage.is_stepping = True
        if dispatcher.is_pooling:
            llm.encode([PROMPT])
        else:
            llm.generate([PROMPT], params)
        usage.is_stepping = False
        return llm.receipts


async def _run_async(dispatcher: Dispatcher, params: SamplingParams) -> tuple[Receipt, ...]:
    """The same through an engine core in a process of its own, where nothing is counted."""
    from vllm_ext.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_dispatcher(dispatcher)
    try:
        async for _ in engine.encode(PROMPT) if dispatcher.is_pooling else engine.generate(PROMPT, params):
            continue
        return engine.receipts
    finally:
        engine.shutdown()
