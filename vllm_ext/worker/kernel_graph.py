"""Static graphs for processors: the compiled kernels of a decode step, recorded once and then called all at once."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from vllm_ext import _custom_ops
from vllm_ext.contracts.forward_context import get_forward_context
from vllm_ext.contracts.static_graph import AbstractStaticGraphWrapper, BatchDescriptor
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import dotted_path
from vllm_ext.worker.op_watcher import OpWatcher

logger = logging.getLogger(__name__)

_ALLOCATIONS = frozenset(
    (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default)
)
_ALIGNMENT = 64
"""Bytes: a line of the processor's cache, and a vector of AVX-512."""


_OP_BY_OP = "decode steps are computed op by op: %s"
_OPEN_CODE = ("vllm_ext", "torch")
"""Packages whose layers compute with ops of torch or with kernels that can be recorded, and with nothing else."""


class Buffer(NamedTuple):
    """Memory that a step allocates for what it computes in between."""

    address: int
    num_bytes: int


class KernelGraph:
    """Calls of kernels in their order, with the addresses that they were made with; see :func:`record_kernels`."""

    def __init__(self) -> None:
        self._calls: Any = None
        self._output: torch.Tensor
        self._alive: tuple[Any, ...] = ()

    def addresses(self) -> list[list[int]]:
        """Where each call reads and writes, call by call: beginnings, of tensors or parts of them."""
        found: list[list[int]] = _custom_ops._C.addresses(self._calls)
        return found

    def move(self, address: int, num_bytes: int, target: int) -> None:
        """Let the calls use other memory from now on: what was in ``num_bytes`` from ``address`` is at ``target``."""
        _custom_ops._C.move(self._calls, address, address + num_bytes, target)

    def keep(self, output: torch.Tensor, *alive: Any) -> None:
        """Say what :meth:`replay` returns, and what has to stay where it is as long as this graph is used."""
        self._output, self._alive = output, alive

    def replay(self) -> torch.Tensor:
        """Make the calls again, with today's number of threads; returns what :meth:`keep` was told.

        Raises:
            IndexError: an id is outside of its table; what was computed with it means nothing.
        """
        _custom_ops._C.replay(self._calls, torch.get_num_threads())
        return self._output


@contextmanager
def record_kernels() -> Iterator[KernelGraph]:
    """Record the kernels that this thread calls in the block; they are computed as always."""
    graph = KernelGraph()
    _custom_ops._C.start_recording()
    try:
        yield graph
    finally:
        graph._calls = _custom_ops._C.stop_recording()


_MAX_CAPTURE_SIZE = 512
"""Tokens; vLLM's ``max_cudagraph_capture_size``. Of a longer step Python is no part worth mentioning, and models may
compute it in pieces, which torch puts together.
"""


class KernelGraphWrapper(AbstractStaticGraphWrapper):
    """Replays decode steps of models that compute with nothing but the compiled kernels.

    Python's part of a step, some two hundred calls for a model of eight layers, is a third of its time where the model
    is small. The first step of each batch size is computed as always, while the kernels' arguments are recorded. Where
    torch computes something in between, or a layer is a plugin's, no step is replayed, and a line in the log says what
    it was.

    What a step allocates is laid out anew when it is recorded: memory of what is not needed any more is used again, and
    all batch sizes share it, so that it stays in the cache of the processor.
    """

    def __init__(
        self, runnable: Callable[..., torch.Tensor], vllm_config: VllmConfig, runtime_mode: str, **kwargs: Any
    ) -> None:
        super().__init__(runnable, vllm_config, runtime_mode, **kwargs)
        self._max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        self._graphs: dict[BatchDescriptor, KernelGraph] = {}
        self._arena = torch.empty(0, dtype=torch.uint8, device="cpu")
        self.why_not: str | None = None
        """Why nothing is replayed; ``None`` as long as nothing stands against it."""

    def clear_graphs(self) -> None:
        """Forget what was recorded, as after weights were exchanged."""
        self._graphs.clear()
        self.why_not = None

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        context = get_forward_context()
        descriptor = context.batch_descriptor
        if descriptor is None or context.cudagraph_runtime_mode != self.runtime_mode:
            return self.runnable(*args, **kwargs)
        if self.why_not or descriptor.num_tokens > _MAX_CAPTURE_SIZE:
            return self.runnable(*args, **kwargs)
        graph = self._graphs.get(descriptor)
        if graph is not None:
            return graph.replay()
        output, graph = self._record(descriptor.num_tokens, args, kwargs)
        if graph is not None:
            self._graphs[descriptor] = graph
        return output

    def _record(
        self, num_tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, KernelGraph | None]:
        """Compute a step; with what is to be called for the next of its kind, if that can be."""
        self.why_not = code_of_others(self.runnable)
        if self.why_not:
            logger.info(_OP_BY_OP, self.why_not)
            return self.runnable(*args, **kwargs), None
        with _Seen() as seen, record_kernels() as recorded:
            output = self.runnable(*args, **kwargs)
        buffers = [Buffer(tensor.data_ptr(), tensor.nbytes) for tensor in seen.allocated]
        if seen.computed:
            self.why_not = f"torch computes {', '.join(sorted(seen.computed))}"
        elif Buffer(output.data_ptr(), output.nbytes) not in buffers:
            self.why_not = "the model returns a part of what was computed"
        if self.why_not:
            logger.info(_OP_BY_OP, self.why_not)
            return output, None
        # Not in the arena, whose memory anything may use.
        held = torch.empty_like(output)
        recorded.move(output.data_ptr(), output.nbytes, held.data_ptr())
        inner = [buffer for buffer in buffers if buffer.address != output.data_ptr()]
        offsets, size = plan_memory(inner, recorded.addresses())
        base = self._room_for(size, num_tokens)
        for buffer, offset in zip(inner, offsets, strict=True):
            recorded.move(buffer.address, buffer.num_bytes, base + offset)
        recorded.keep(held, self._arena)
        return output, recorded

    def _room_for(self, size: int, num_tokens: int) -> int:
        """The address of memory that all graphs share, since they never run at the same time."""
        start = -self._arena.data_ptr() % _ALIGNMENT
        if start + size > self._arena.nbytes:
            # So that the largest batch that is recorded will fit; pages that are never touched cost nothing.
            largest = size * max(1, min(self._max_num_seqs, _MAX_CAPTURE_SIZE) // num_tokens)
            self._arena = torch.empty(largest + _ALIGNMENT, dtype=torch.uint8, device="cpu")
            start = -self._arena.data_ptr() % _ALIGNMENT
        return self._arena.data_ptr() + start


def plan_memory(buffers: Sequence[Buffer], touched: Sequence[Sequence[int]]) -> tuple[list[int], int]:
    """Offsets in one piece of memory, such that buffers that are needed at the same time do not overlap.

    Args:
        buffers: that overlap nowhere.
        touched: addresses that each call reads or writes, call by call. A buffer is needed from the first call that
            touches it to the last.

    Returns: an offset for each buffer, and the size of the piece, in bytes.
    """
    order = sorted(range(len(buffers)), key=lambda i: buffers[i].address)
    begins = [buffers[i].address for i in order]
    lives: dict[int, tuple[int, int]] = {}
    for number, addresses in enumerate(touched):
        for address in addresses:
            place = bisect_right(begins, address) - 1
            if place >= 0 and address < begins[place] + buffers[order[place]].num_bytes:
                first, _ = lives.get(order[place], (number, number))
                lives[order[place]] = first, number
    offsets, size = [0] * len(buffers), 0
    placed: list[tuple[int, int, int, int]] = []
    # The largest first: small ones fit between them.
    for i in sorted(lives, key=lambda i: -buffers[i].num_bytes):
        first, last = lives[i]
        room = -(-buffers[i].num_bytes // _ALIGNMENT) * _ALIGNMENT
        offset = 0
        for begin, end, other_first, other_last in sorted(placed):
            if other_last < first or last < other_first:
                continue
            if offset + room <= begin:
                break
            offset = max(offset, end)
        offsets[i], size = offset, max(size, offset + room)
        placed.append((offset, offset + room, first, last))
    return offsets, size


def code_of_others(runnable: Callable[..., torch.Tensor]) -> str | None:
    """Why a model's steps cannot be known from what was recorded, if so: a plugin's code may compute with numpy or with
    a library of its own, of which no op tells.
    """
    for module in runnable.modules() if isinstance(runnable, nn.Module) else ():
        parts = (module, getattr(module, "impl", None), getattr(module, "linear_method", None))
        for cls in (type(part) for part in parts if part is not None):
            if not _is_open(cls):
                return f"{dotted_path(cls)} may compute what torch does not see"
        # An op has the method of its class there that is called on this platform.
        if not _is_open(vars(module).get("forward", type(module))):
            return f"forward() of a {dotted_path(type(module))} was exchanged"
    return None


def _is_open(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).partition(".")[0] in _OPEN_CODE


class _Seen(OpWatcher):
    """Ops of torch that were called: what was allocated, and what computed. Views are neither."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[torch.Tensor] = []
        self.computed: set[str] = set()

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        if func in _ALLOCATIONS:
            self.allocated.append(result)
        elif not func.is_view:
            self.computed.add(str(func))
