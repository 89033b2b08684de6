"""What a test registers ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def restored_registries() -> Iterator[None]:
    """The block counts as a process of its own: general plugins run anew in it, and what was registered inside is
    forgotten at its end, as are the process's default platform and plan. Engines made inside must be closed inside.
    """
    from vllm_ext.contracts.current_platform import current_platform
    from vllm_ext.managers import set_default_bound_plan
    from vllm_ext.managers.general import none_has_run
    from vllm_ext.managers.policy import forget_reports
    from vllm_ext.managers.registrations import EVERY
    from vllm_ext.registry.custom_ops import CUSTOM_OPS
    from vllm_ext.registry.owners import forget_owners

    registries: list[Any] = [registry for registry in EVERY if registry is not CUSTOM_OPS]
    before, ops = [registry.snapshot() for registry in registries], CUSTOM_OPS.snapshot()
    try:
        with none_has_run():
            yield
    finally:
        for registry, state in zip(registries, before, strict=True):
            registry.restore(state)
        # In-tree ops register when their module is imported, which may have been inside, and happens once.
        now = CUSTOM_OPS.ops.snapshot()
        in_tree = {name: op for name, op in now.items() if op.value.__module__.startswith("vllm_ext.")}
        CUSTOM_OPS.restore((ops[0] | in_tree, ops[1]))
        current_platform.set_default(None)
        set_default_bound_plan(None)
        forget_reports()
        forget_owners()
