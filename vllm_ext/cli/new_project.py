"""The files of a new plugin project, made of the templates that come with vllm_ext."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Template

from vllm_ext._version import __version__
from vllm_ext.contracts.groups import KIND_OF_GROUP, KINDS, PluginKind
from vllm_ext.discovery import scan
from vllm_ext.errors import ConfigError, did_you_mean

TEMPLATES = Path(__file__).parent.parent / "assets" / "plugin_projects"
"""A folder for each kind, and one for what all have. ``.txt`` at the end of a name is left out, ``package`` in a path
becomes the package's name, and ``$`` begins what differs in a text."""

_PREFIX = "vllm"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*")
_VALUES = {
    "general": ":register",
    "platform": ":register",
    "io_processor": ":register",
    "stat_logger": ".logger:{cls}StatLogger",
    "endpoint": ".endpoint:{cls}Endpoint",
    "logits_processor": ".processor:{cls}LogitsProcessor",
    "executor": ".executor:{cls}Executor",
}
"""Where the entry point of each kind leads, after the package's name."""


@dataclass(frozen=True, slots=True)
class NewProject:
    """A plugin project that is not written yet."""

    kind: PluginKind
    name: str
    """The plugin's, by which settings know it."""

    @property
    def package(self) -> str:
        """``vllm_NAME``: no module of Python's or of another's has such a name by chance."""
        package = self.name.replace("-", "_").lower()
        return package if package.startswith(_PREFIX) else f"{_PREFIX}_{package}"

    @property
    def distribution(self) -> str:
        return self.package.replace("_", "-")

    def files(self) -> Iterator[tuple[PurePosixPath, str]]:
        """Path below the project's folder and text of each file."""
        cls = "".join(part[0].upper() + part[1:] for part in re.split("[_-]", self.name))
        values = {
            "name": self.name,
            "package": self.package,
            "distribution": self.distribution,
            "cls": cls,
            "title": self.kind.title.replace("io ", "IO "),
            "group": self.kind.groups[0],
            "value": self.package + _VALUES[self.kind.key].format(cls=cls),
            "version": __version__,
        }
        own = TEMPLATES / self.kind.key
        values["readme"] = Template((own / "readme.txt").read_text(encoding="utf-8")).substitute(values).rstrip()
        for folder in (TEMPLATES / "common", own):
            for template in sorted((*folder.glob("*.*.txt"), *folder.glob("*/*.txt"))):
                path = template.relative_to(folder).as_posix().removesuffix(".txt").replace("package", self.package)
                yield PurePosixPath(path), Template(template.read_text(encoding="utf-8")).substitute(values)


def new_project(kind: str, name: str) -> NewProject:
    """A project for a plugin ``name`` of a kind, a key of the settings' section ``plugins``.

    Raises:
        ConfigError: there is no such kind; ``name`` does not do as a plugin's, or is taken, as its package's may be.
    """
    by_key = {each.key: each for each in KINDS}
    if kind not in by_key:
        raise ConfigError(
            f"command line (KIND): no kind of plugin {kind!r}{did_you_mean(kind, by_key)}; kinds: {', '.join(by_key)}"
        )
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        hint = f" (did you mean {near!r}?)" if _NAME.fullmatch(near) else ""
        raise ConfigError(
            f"command line (NAME): {name!r} does not do as a plugin's name{hint}; it takes letters, digits, and single "
            "'-' or '_' between them, and begins with a letter"
        )
    project = NewProject(by_key[kind], name)
    for record in scan():
        if record.name == name and KIND_OF_GROUP.get(record.group) is project.kind:
            raise ConfigError(
                f"command line (NAME): a {project.kind.title} plugin {name!r} is installed already, by "
                f"{record.distribution}, and settings could not tell two apart by their names; take another name"
            )
    # Looked for on the path, and not imported.
    if keyword.iskeyword(project.package) or importlib.util.find_spec(project.package) is not None:
        raise ConfigError(
            f"command line (NAME): the package of a plugin {name!r} is {project.package!r}, and something installed "
            "has that name; take another name"
        )
    return project


def write_project(project: NewProject, directory: Path) -> list[Path]:
    """Write the files of ``project`` into ``directory``, which is made where it is not there.

    Returns: their paths.

    Raises:
        ConfigError: there is something already, or it cannot be written.
    """
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            what = "is not empty" if directory.is_dir() else "is a file"
            raise ConfigError(
                f"{str(directory)!r} {what}, and nothing is overwritten; name another folder with --directory"
            )
        written = []
        for path, text in project.files():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
            written.append(target)
        return written
    except OSError as error:
        raise ConfigError(
            f"the project cannot be written into {str(directory)!r}: {error.strerror or error}; name another folder "
            "with --directory"
        ) from error
