"""The second check of a plugin: the static scan of its imports, as rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vllm_ext.check.import_scan import Missing, Scan, scan_imports
from vllm_ext.check.rows import Row
from vllm_ext.check.source_tree import SourceTree
from vllm_ext.discovery import find_providers
from vllm_ext.errors import ConfigError
from vllm_ext.managers.host_contracts import kind_of
from vllm_ext.plan import Decision
from vllm_ext.plan.requirements import VLLM

NAME = "imports"

_OURS = "vllm_ext"
_MAX_DOUBTS = 5


def check_folder(folder: str) -> str:
    """The real path of a folder with a vLLM in it; ConfigError where it has none."""
    if os.path.isfile(os.path.join(folder, VLLM, "__init__.py")):
        return os.path.realpath(folder)
    what = "is no folder" if not os.path.isdir(folder) else f"has no {VLLM}/__init__.py"
    above = Path(folder).resolve().parent
    is_vllm = os.path.basename(os.path.realpath(folder)) == VLLM and (above / VLLM / "__init__.py").is_file()
    raise ConfigError(
        f"command line (--against): {folder} {what}; give the folder that vllm/ lies in, such as a checkout or a "
        f"site-packages" + (f": {above}" if is_vllm else "")
    )


def import_rows(decision: Decision, against: str | None) -> Iterator[Row]:
    """What the plugin's modules import of vLLM and of vllm_ext, as far as it is not there."""
    module, _, attribute = decision.value.partition("[")[0].partition(":")
    plugins = SourceTree()
    vllm = SourceTree([against]) if against is not None else plugins
    hosts = {VLLM: vllm if vllm.find(VLLM) else None, _OURS: SourceTree(closed=(_OURS,))}
    called = attribute.strip() if kind_of(decision).is_called else ""
    scan = scan_imports(plugins, module.strip(), called, decision.distribution, hosts)
    if scan is None:
        yield Row(NAME, "skipped", f"the source of {module.strip()} is not found")
        return
    for missing in scan.missing:
        if missing.absence.is_certain:
            yield _row(missing, against)
    if scan.unread:
        yield Row(NAME, "warning", f"there is no source that can be read of {', '.join(scan.unread)}")
    if scan.imported[VLLM] and hosts[VLLM] is None:
        text = f"no vLLM is installed, and --against names none: {scan.imported[VLLM]} imports of it are not looked up"
        yield Row(NAME, "skipped", text)
    if not any(missing.absence.is_certain and not missing.guard for missing in scan.missing):
        yield Row(NAME, "pass", _summary(scan, hosts[VLLM] is not None, against))


def _row(missing: Missing, against: str | None) -> Row:
    place = f" in {against}" if missing.host == VLLM and against is not None else ""
    guard = f"; it stands {missing.guard}" if missing.guard else ""
    text = f"{missing.path}:{missing.line}: there is no {missing.absence.text}{place}{guard}"
    return Row(NAME, "warning" if missing.guard else "fail", text)


def _summary(scan: Scan, has_vllm: bool, against: str | None) -> str:
    """How much was looked up, where, and of how much it cannot be told whether it is there."""
    hosts = [host for host in (VLLM, _OURS) if scan.imported[host] and (host != VLLM or has_vllm)]
    counted = " and ".join(f"{scan.imported[host]} of {_name_of(host, against)}" for host in hosts)
    modules = f"{len(scan.modules)} module{'s' * (len(scan.modules) != 1)} of the distribution"
    text = f"{modules}, imports looked up: {counted or 'none'}"
    if doubts := [missing for missing in scan.missing if not missing.absence.is_certain]:
        shown = "; ".join(f"{each.path}:{each.line}: {each.absence.text}" for each in doubts[:_MAX_DOUBTS])
        more = f"; and {len(doubts) - _MAX_DOUBTS} more" if len(doubts) > _MAX_DOUBTS else ""
        text += f". Of {len(doubts)} it cannot be told: {shown}{more}"
    return text


def _name_of(host: str, against: str | None) -> str:
    if host != VLLM:
        return host
    provider = find_providers([VLLM], None if against is None else [against]).get(VLLM)
    version = f" {provider.version}" if provider else ""
    return f"{VLLM}{version}" + (f" in {against}" if against is not None else "")
