"""``LLM``: a model, and text from it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.engine.arguments import check_function, params_for_each, priorities_for_each, refuse_adapter
from vllm_ext.engine.calls import Call, Calls
from vllm_ext.engine.chat_calls import ChatCalls
from vllm_ext.engine.data_requests import GENERATE, DataRequests
from vllm_ext.engine.front_end import FrontEnd
from vllm_ext.engine.inputs.prompts import DataPrompt, PromptType, is_data_prompt, split_prompts
from vllm_ext.engine.llm_engine import LLMEngine
from vllm_ext.engine.pooling_calls import PoolingCalls
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.engine.sleep_calls import SleepCalls
from vllm_ext.managers import make_receipt
from vllm_ext.plan import Receipt

if TYPE_CHECKING:
    from torch import nn

    from vllm_ext.contracts.tokenizer import TokenizerLike

T = TypeVar("T")
_BAR = "Processed prompts"


class LLM(ChatCalls, PoolingCalls, SleepCalls, FrontEnd):
    """A model on the chosen platform, for use from Python. vLLM: ``LLM``.

    Several threads may use it: they take turns, step by step. :meth:`close` is for when they have ended.

    Args:
        model: a Hugging Face model directory; the model that comes with vllm_ext if neither this nor the settings
            name one.
        dtype: a torch dtype, or ``auto``, ``float32`` (``float``), ``bfloat16`` or ``float16`` (``half``); what the
            settings say if omitted.
        platform: a platform plugin's name, or several, of which the first that activates is used.
        config_files: settings files, instead of those in the usual places.
        overrides: any settings by their dotted key; they win over files and environment.
        progress: show progress while weights are loaded; by default on a terminal.
        stat_loggers: classes of stat loggers besides those of plugins, or functions that make one when they are called
            with ``(vllm_config, engine_index)``.
        io_processor_plugin: the IO processor plugin for ``{"data": ...}``; what the settings, or the model, name if
            omitted.
        engine_settings: keys of the settings' section ``engine``, such as ``max_model_len``. ``logits_processors`` also
            takes classes. Those that vLLM alone has, such as ``revision``, may be ``None``.

    Raises:
        ConfigError, PluginError, ModelError, EngineError: what prevents the start.
    """

    caller = "LLM"

    @overload
    def generate(
        self,
        prompts: DataPrompt,
        sampling_params: SamplingParams | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
        priority: int | None = None,
    ) -> list[PoolingRequestOutput[Any]]: ...

    # By itself, because mypy looks into a list of prompts of several forms only where no other kind of list is taken.
    @overload
    def generate(
        self,
        prompts: Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]: ...

    def generate(
        self,
        prompts: DataPrompt | PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput] | list[PoolingRequestOutput[Any]]:
        """Complete one prompt or many.

        Args:
            prompts: a text, a list of token ids, ``{"prompt": text}``, ``{"prompt_token_ids": ids}``, or a list of
                these; a flat list of integers is one prompt. Or ``{"data": data}`` for the IO processor.
            sampling_params: for all prompts, or a list with one for each; those of
                :meth:`get_default_sampling_params` if omitted.
            use_tqdm: show a progress bar that counts finished requests; or what makes one, called as tqdm is, with
                ``total`` and ``desc``.
            lora_request: nothing but ``None``, since the engine applies no adapters.
            priority: for all prompts, or a list with one for each; lower ones come first, and 0 if omitted. Another
                takes the setting ``engine.scheduling_policy: priority``.

        Returns: one output for each prompt, in the order of the prompts. For data there is one, whose ``outputs`` is
            what the IO processor made of those of its prompts.

        Raises:
            InvalidRequest: a prompt cannot be served, none of them is started; or the data cannot be.
            EngineError: a step failed.
            PluginError: the IO processor failed.
        """
        refuse_adapter(lora_request)
        if is_data_prompt(prompts):

            def run(made: list[Any], params: Any) -> list[RequestOutput]:
                return self.generate(made, params, use_tqdm=use_tqdm, priority=priority)

            return [self._data_requests.serve(GENERATE, prompts, sampling_params, run)]
        return self._complete(prompts, sampling_params, priority, use_tqdm)

    def stream(
        self,
        prompts: PromptType | Sequence[PromptType],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
    ) -> Iterator[RequestOutput]:
        """Complete one prompt or many, step by step. An extension of vLLM's contract.

        Arguments are those of :meth:`generate`. Request ids ascend with the order of the prompts.

        Returns: an iterator over the state of each request after each step: an output holds all text and tokens so
            far, or what ``output_kind`` says, and the last one of a request has ``finished`` set. Closing the iterator
            aborts what is not finished.

        Raises:
            InvalidRequest: a prompt's form or the number of ``sampling_params`` is wrong (at once), or a prompt cannot
                be served (from the iterator).
            EngineError: a step failed (from the iterator).
        """
        return self._calls.run(self._make_call(prompts, sampling_params, priority), final_only=False)

    def reset_prefix_cache(self, *, reset_running_requests: bool = False) -> bool:
        """Forget what the KV cache holds for prompts to come.

        Args:
            reset_running_requests: let streams that are not finished be computed again, instead of answering False.

        Returns: False, and nothing is changed, while streams use cache blocks.
        """
        with self._calls.turn:
            return self.llm_engine.reset_prefix_cache(reset_running_requests=reset_running_requests)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call a method of all workers between two steps.

        Args:
            method: its name, or a function that is called with the worker before ``args``.
            timeout: seconds to wait for workers in other processes; one in this process cannot be broken off.

        Returns: what each worker returned, by rank.

        Raises:
            InvalidRequest: an argument is of a wrong kind.
            ContractError: the workers have no such method.
            EngineError: it failed; the text has the worker's class and the method.
        """
        with self._calls.turn:
            return self.llm_engine.collective_rpc(method, timeout, args, kwargs)

    def apply_model(self, func: Callable[[nn.Module], T]) -> list[T]:
        """What ``func`` returns for the model of each worker, by rank; errors as of :meth:`collective_rpc`."""
        return self.collective_rpc("apply_model", args=(check_function(func),))

    def start_profile(self, profile_prefix: str | None = None) -> None:
        """Begin to record what the workers do.

        Args:
            profile_prefix: what the names of the files begin with.

        Raises:
            ConfigError: the setting ``profiler.torch_profiler_dir`` names no folder for the traces.
            EngineError: it has begun already, or the platform's worker cannot be profiled.
        """
        with self._calls.turn:
            self.llm_engine.start_profile(profile_prefix)

    def stop_profile(self) -> None:
        """End what :meth:`start_profile` began, and write a trace for each worker, which Perfetto and
        chrome://tracing show; EngineError where it was not begun, or they cannot be written.
        """
        with self._calls.turn:
            self.llm_engine.stop_profile()

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model directory asks for (``generation_config.json``), to change and pass on as one likes."""
        return copy.copy(self.llm_engine.default_sampling_params)

    def get_tokenizer(self) -> TokenizerLike:
        """The model's tokenizer: one of the library tokenizers, or what ``engine.tokenizer_mode`` names. It is the one
        that prompts go through, and may be used from any thread.
        """
        return self.llm_engine.tokenizer

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Of every process of the engine, this one first: what each proved to run. An extension of vLLM's contract."""
        own = make_receipt(self.dispatcher.bound_plan, "front end")
        return (own, *self.llm_engine.engine_core.executor.receipts)

    @property
    def platform_name(self) -> str:
        """The chosen platform plugin, for messages. An extension of vLLM's contract."""
        return self.dispatcher.platform_name

    def close(self) -> None:
        """Stop the engine and release its memory; may be called twice. An extension of vLLM's contract."""
        # __init__ may have failed before there was an engine.
        if (engine := self.__dict__.get("llm_engine")) is not None:
            engine.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _start(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        dispatcher.load_io_processor()
        self.llm_engine = LLMEngine(dispatcher)
        self._calls = Calls(self.llm_engine)
        with shut_down_on_error(self.llm_engine.shutdown):
            self._data_requests = DataRequests(dispatcher, self.llm_engine.tokenizer)

    def _run(self, call: Call, use_tqdm: bool | Callable[..., Any]) -> list[Any]:
        """The last output of each request of ``call``, in their order."""
        finished: dict[str, Any] = {}
        with (
            closing(self._calls.run(call, final_only=True)) as outputs,
            _progress_bar(use_tqdm, len(call.prompts)) as bar,
        ):
            for output in outputs:
                finished[output.request_id] = output
                if bar is not None:
                    bar.update()
        return [finished[request_id] for request_id in call.request_ids]

    def _complete(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None,
        use_tqdm: bool | Callable[..., Any],
    ) -> list[RequestOutput]:
        return self._run(self._make_call(prompts, sampling_params, priority), use_tqdm)

    def _pool(self, prompts: list[Any], params: list[PoolingParams], use_tqdm: bool | Callable[..., Any]) -> list[Any]:
        return self._run(self._calls.make_call(prompts, params, [0] * len(prompts)), use_tqdm)

    def _make_call(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] | None,
    ) -> Call:
        each = split_prompts(prompts)
        default = self.get_default_sampling_params() if sampling_params is None else sampling_params
        params = params_for_each("sampling_params", SamplingParams, default, len(each))
        return self._calls.make_call(each, params, priorities_for_each(priority, len(each)))


def _progress_bar(wanted: bool | Callable[..., Any], total: int) -> Any:
    """A context manager around a progress bar, or around ``None``, also where there is nowhere to show one."""
    if callable(wanted):
        return wanted(total=total, desc=_BAR)
    if not wanted or sys.stderr is None:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(total=total, desc=_BAR)
