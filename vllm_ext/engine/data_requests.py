"""Requests with data of a program's own, ``{"data": data}``, which the engine's IO processor turns into prompts.

The processor's code runs where its engine's platform is the current one. What it raises ends the one request.
"""

from __future__ import annotations

import copy
import logging
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from vllm_ext.contracts.io_processor import IOProcessor, Renderer
from vllm_ext.contracts.pooling_outputs import PoolingRequestOutput
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.contracts.tokenizer import TokenizerLike
from vllm_ext.engine.inputs.prompts import is_data_prompt, shown, split_prompts
from vllm_ext.errors import InvalidRequest, PluginError, PluginLoadError, innermost_cause

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher

logger = logging.getLogger(__name__)


class Use(NamedTuple):
    """What the prompts of a processor are for."""

    merge: str
    """The processor's method that has a say in the parameters."""
    params_cls: type


GENERATE = Use("merge_sampling_params", SamplingParams)
POOL = Use("merge_pooling_params", PoolingParams)


class Prepared(NamedTuple):
    """What the model gets of one request: prompts, and parameters for each; ``None`` for the model's own."""

    prompts: list[Any]
    params: list[Any] | None


class DataRequests:
    """The IO processor of one engine, and the way of a request through it.

    Args:
        dispatcher: has the class, or the reason why there is none.
        tokenizer: for the processor to use.

    Raises:
        PluginLoadError: the processor cannot be made; and as of :func:`load_io_processor`.
    """

    def __init__(self, dispatcher: Dispatcher, tokenizer: TokenizerLike) -> None:
        self._activate = dispatcher.activate
        cls, self._source, self._refusal = dispatcher.io_processor
        self._processor: IOProcessor[Any, Any] | None = None
        if cls is not None:
            try:
                with self._activate():
                    self._processor = cls(dispatcher.vllm_config, Renderer(tokenizer))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise PluginLoadError(
                    f"{self._source} failed in __init__(): {innermost_cause(error)}", plugin=self._source
                ) from error

    def serve(
        self, use: Use, request: Mapping[str, Any], params: Any, run: Callable[[list[Any], Any], Sequence[Any]]
    ) -> PoolingRequestOutput[Any]:
        """Prepare a request, let ``run`` have its prompts and parameters, and make one output of theirs.

        Raises:
            InvalidRequest: there is no processor, the request has another form, the processor refuses it, or a prompt
                cannot be served.
            PluginError: the processor failed, or returned what it must not.
        """
        request_id = f"data-{uuid4().hex}"
        parsed = self.parse(use, request, params)
        try:
            prepared = self.prepare(use, self.pre_process(parsed, request_id), params)
            with self.naming_refusals():
                outputs = run(prepared.prompts, prepared.params)
            return as_output(request_id, outputs, self.post_process(outputs, request_id))
        except BaseException:
            self.discard(request_id)
            raise

    @property
    def processor(self) -> IOProcessor[Any, Any]:
        """InvalidRequest where there is none; the text says why, and what to do."""
        if self._processor is None:
            raise InvalidRequest(f"the request has data, which takes an IO processor: {self._refusal}")
        return self._processor

    def parse(self, use: Use, request: Mapping[str, Any], params: Any) -> Any:
        """Check a request's form, and let the processor read its data."""
        processor = self.processor
        if others := [key for key in request if key != "data"]:
            raise InvalidRequest(f"a request with 'data' has nothing besides; found {', '.join(map(repr, others))}")
        if params is not None and not isinstance(params, use.params_cls):
            raise InvalidRequest(
                f"the parameters are {params!r}; a request with data takes one {use.params_cls.__name__}"
            )
        with self.running("parse_data", may_refuse=True):
            return processor.parse_data(request["data"])

    def pre_process(self, parsed: Any, request_id: str) -> Any:
        return self._call("pre_process", parsed, request_id=request_id, may_refuse=True)

    def post_process(self, outputs: Sequence[Any], request_id: str) -> Any:
        return self._call("post_process", outputs, request_id=request_id)

    def prepare(self, use: Use, result: Any, params: Any) -> Prepared:
        """Check what ``pre_process`` returned, and merge the parameters."""
        prompts = self._prompts(result)
        # A copy: the user may use the same parameters for other requests.
        merged = self._call(use.merge, copy.copy(params), may_refuse=True)
        if merged is None or isinstance(merged, use.params_cls):
            return Prepared(prompts, None if merged is None else [merged] * len(prompts))
        is_for_each = isinstance(merged, list | tuple) and all(isinstance(each, use.params_cls) for each in merged)
        if not is_for_each or len(merged) != len(prompts):
            name = use.params_cls.__name__
            self._complain(use.merge, f"{shown(merged)}, not {name} or a list of {len(prompts)}, one for each prompt")
        return Prepared(prompts, list(merged))

    def discard(self, request_id: str) -> None:
        """Let the processor forget a request; that it fails in it is a warning."""
        try:
            with self._activate():
                self.processor.discard(request_id)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - reported; what ended the request is the error
            # Not what ended the request, in whose handling this may be.
            error.__context__ = None
            fault = innermost_cause(error)
            logger.warning(
                "%s failed in discard(): %s; what it keeps of request %r may stay", self._source, fault, request_id
            )

    @contextmanager
    def naming_refusals(self) -> Iterator[None]:
        """That the engine refuses a prompt which the processor wrote is said as such."""
        try:
            yield
        except InvalidRequest as error:
            raise InvalidRequest(f"{self._source} made a prompt that is refused: {error}") from error

    @contextmanager
    def running(self, method: str, *, may_refuse: bool = False) -> Iterator[None]:
        """The processor's code inside the block: what it raises becomes an error that says where.

        Args:
            may_refuse: whether a ValueError is about the request.
        """
        try:
            with self._activate():
                yield
        except (KeyboardInterrupt, CancelledError, GeneratorExit):  # of the caller
            raise
        except BaseException as error:
            if may_refuse and isinstance(error, ValueError):
                raise InvalidRequest(f"{self._source} refuses the request: {error}") from error
            text = f"{self._source} failed in {method}(): {innermost_cause(error)}"
            raise PluginError(text, plugin=self._source) from error

    def _call(self, method: str, /, *args: Any, may_refuse: bool = False, **kwargs: Any) -> Any:
        with self.running(method, may_refuse=may_refuse):
            return getattr(self.processor, method)(*args, **kwargs)

    def _prompts(self, result: Any) -> list[Any]:
        try:
            prompts = split_prompts(result)
        except InvalidRequest:
            prompts = [result]
        for prompt in prompts:
            if not isinstance(prompt, str | list | tuple | Mapping) or is_data_prompt(prompt):
                self._complain("pre_process", f"{shown(prompt)}, which is no prompt and no list of prompts")
        if not prompts:
            self._complain("pre_process", "no prompt")
        return prompts

    def _complain(self, method: str, what: str) -> None:
        raise PluginError(f"{self._source}: {method}() returned {what}", plugin=self._source)


def as_output(request_id: str, outputs: Sequence[Any], result: Any) -> PoolingRequestOutput[Any]:
    """One output for a request, of what was made of those of its prompts."""
    num_cached_tokens = sum(output.num_cached_tokens for output in outputs)
    return PoolingRequestOutput(request_id, result, [], num_cached_tokens)
