"""The annotated sample of a settings file, ``etc/vllm-ext.yaml``, from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_ext.config.keys import all_keys

_HEADER = """\
Settings of vllm-ext, all at their defaults; delete what you do not change.

Read from: the files given with --config-file, else those in VLLM_EXT_CONFIG, else the first of
  $XDG_CONFIG_HOME/vllm-ext/vllm-ext.yaml   (~/.config where XDG_CONFIG_HOME is unset)
  /etc/vllm-ext/vllm-ext.yaml
and after it vllm-ext.d/*.yaml beside it, in the order of their names. A later file wins.
The command line wins over the environment, and the environment over files. The variable of a setting is
VLLM_EXT_ and its key path joined by __, e.g. VLLM_EXT_PLATFORM__DRIVER=cpu. Mappings merge, lists replace.

A plugin's name may be written "distribution:name" where two distributions have one of that name.

Options are the plugins' own, by the name of the plugin, e.g. for one called npu:
  options:
    npu:
      batch: 4
The same from elsewhere: VLLM_EXT_OPTIONS='{"npu": {"batch": 4}}' or --set options.npu.batch=4.
"""


def render_sample() -> str:
    """The text of the sample: each key at its default, below its meaning."""
    header = "\n".join(f"# {line}".rstrip() for line in _HEADER.splitlines())
    return "\n".join([header, *_blocks()])


def _blocks() -> Iterator[str]:
    """Each top-level key or section, after an empty line."""
    open_sections: tuple[str, ...] = ()
    for key in all_keys().values():
        *sections, name = key.parts
        lines = [""] if not sections or sections[0] not in open_sections[:1] else []
        for depth, section in enumerate(sections):
            if tuple(sections[: depth + 1]) != open_sections[: depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
        indent = "  " * len(sections)
        lines += [f"{indent}# {key.description}", f"{indent}{name}: {_flow(key.default)}"]
        open_sections = tuple(sections)
        yield "\n".join(lines)
    yield ""


def _flow(value: Any) -> str:
    """``value`` as YAML on one line."""
    # Slow to import, and only this command needs it.
    import yaml

    # As the only element of a list, a scalar is written without the document's end mark.
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
