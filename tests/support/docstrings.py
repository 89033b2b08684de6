"""What the docstring of a contract's method has to say, found by comparing it with the method's signature and body."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from vllm_ext import errors

SHAPE = re.compile(r"``\[[^`]*\]``|\b(any|one|same|its|whose|'s) shape\b|shape of ``|of the shape ``|``shape``|scalar")
_DTYPES = r"u?int\d+|b?float\d+|bool|integers?|floating-point"
DTYPE = re.compile(rf"\b({_DTYPES})\b|\b(any|one|same|its|whose|'s) dtype\b|dtype of ``|``\w*dtype``|shape and dtype")
UNIT = re.compile(
    r"\b(bytes?|tokens?|seconds|blocks?|layers?|heads?|ranks?|rows?|ids?|numbers?|requests?|devices?|dimensions?|lengths?"
    r"|columns|logits?|steps?|processes|major|priority|factor|seed|sizes?|position)\b"
)
EFFECT = re.compile(
    r"in place|not changed|not to be changed|be changed|is changed|changed|only read|written|filled|replace|rearrange"
    r"|set |sets|adjust|kept|change "
)
READ_ONLY = re.compile(r"argument is only read")
EXTENSION = "extension of vLLM's contract"
IN_VLLM = re.compile(r"vLLM(?:'s)?:?\s+(``\w+``(?:(?:, | and )``\w+``)*)")
CONDITION = r"\W{1,4}(where|if|when|for|outside|inside|unless|as|until|with|once|after|about|which|\(|:)"
NUMBER_TYPES = {
    *("int", "float", "int | None", "float | None", "list[int]", "list[int] | None", "Sequence[int]"),
    *("list[float] | None", "tuple[int, ...]"),
}
CHANGEABLE = re.compile(r"\b(Tensor|VllmConfig|Module|LinearLayer)\b")


class Method(NamedTuple):
    """A method of a contract, where it is defined."""

    cls: type | None
    """The contract; ``None`` for a function of a module."""
    name: str
    function: Any
    """Without what made it a property or a class method."""

    @property
    def doc(self) -> str:
        """Its own text, or that of what it overrides."""
        if self.function.__doc__:
            return inspect.cleandoc(self.function.__doc__)
        above = [vars(base).get(self.name) for base in inspect.getmro(self.cls or object)]
        texts = [plain(value).__doc__ for value in above if value is not None and base_is_ours(value)]
        return inspect.cleandoc(next((text for text in texts if text), ""))

    @property
    def class_doc(self) -> str:
        """What the contract's class, those that it derives from, and their modules say of all of their methods."""
        ours = [base for base in inspect.getmro(self.cls or object) if base.__module__.startswith("vllm_ext.")]
        modules = dict.fromkeys(sys.modules[each.__module__] for each in (*ours, self.function))
        texts = [vars(each).get("__doc__") or "" for each in (*ours, *modules)]
        return " ".join(" ".join(texts).split())

    @property
    def parameters(self) -> dict[str, str]:
        """Annotations as they are written, by name, without those of ``self`` and ``cls``."""
        found = inspect.signature(self.function).parameters
        return {name: str(each.annotation) for name, each in found.items() if name not in ("self", "cls")}

    @property
    def result(self) -> str:
        """The annotation of what it returns."""
        return str(inspect.signature(self.function).return_annotation)


def base_is_ours(value: Any) -> bool:
    return (getattr(plain(value), "__module__", "") or "").startswith("vllm_ext.")


def plain(value: Any) -> Any:
    """The function in a property, class method or static method."""
    if isinstance(value, property):
        return value.fget
    return inspect.unwrap(getattr(value, "__func__", value))


def complaints(method: Method, vllm: dict[str, set[str]]) -> list[str]:
    """What the docstring lacks; ``vllm`` has the names of vLLM's classes' members."""
    if not method.doc:
        return ["has no docstring"]
    return [
        *_of_tensors(method),
        *_of_numbers(method),
        *_of_effects(method),
        *_of_errors(method),
        *_of_vllm(method, vllm),
    ]


# Parts of a docstring -------------------------------------------------------------------------------------------------


def entries(doc: str, section: str) -> dict[str, str]:
    """The entries below ``Args:`` or ``Raises:`` by name; several names may share one."""
    found: dict[str, str] = {}
    inside, current = False, []
    for line in doc.splitlines():
        if not line.startswith(" ") and line.strip():
            inside = line.startswith(section) and line.rstrip().endswith(":")
        elif inside and (match := re.match(r" {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", line)):
            current = [name.strip("*") for name in match[1].split(", ")]
            found |= dict.fromkeys(current, match[2])
        elif inside:
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
    return found


def about(method: Method, name: str) -> str:
    """What is said of a parameter: its entry, or the sentences that name it, or the entry in a docstring that this one
    sends its reader to, or sentences of the class and its module.
    """
    if own := entries(method.doc, "Args").get(name):
        return own
    others = (entries(inspect.getdoc(other) or "", "Args").get(name) for other in referred_to(method))
    texts = (_sentences(method.doc, name), *others, _sentences(method.class_doc, name))
    return " ".join(filter(None, texts))


def _sentences(text: str, name: str) -> str:
    return " ".join(sentence for sentence in re.split(r"(?<=[.:;])\s+", text) if f"``{name}``" in sentence)


def in_vllm(text: str) -> set[str]:
    """Names that the text says vLLM has."""
    return {name for names in IN_VLLM.findall(" ".join(text.split())) for name in re.findall(r"\w+", names)}


def result_text(doc: str) -> str:
    """What stands after ``Returns:``, else the whole but the entries."""
    match = re.search(r"^(?:Returns|Yields):? (.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    return match[1] if match else re.sub(r"^(Args|Raises).*?(?=^\S|\Z)", "", doc, flags=re.MULTILINE | re.DOTALL)


def referred_to(method: Method) -> Iterator[Any]:
    """The functions that the docstring sends its reader to, as far as they exist."""
    module = inspect.getmodule(method.function)
    for target in re.findall(r":meth:`([\w.]+)`", method.doc):
        owner, _, name = target.rpartition(".")
        cls = getattr(module, owner, None) if owner else method.cls
        if (value := inspect.getattr_static(cls, name, None)) is not None:
            yield plain(value)


# Rules ----------------------------------------------------------------------------------------------------------------


def _of_tensors(method: Method) -> Iterator[str]:
    for name, annotation in method.parameters.items():
        if "Tensor" in annotation:
            text = about(method, name)
            yield from _lacking(f"tensor {name}", text, {"shape": SHAPE, "dtype": DTYPE})
    if "Tensor" in method.result:
        text = result_text(method.doc)
        tensors = [name for name, annotation in method.parameters.items() if "Tensor" in annotation]
        if not any(re.search(rf"``{name}``( itself)?(\.|,|;|$)", text.strip()) for name in tensors):
            texts = [text, *(result_text(inspect.getdoc(other) or "") for other in referred_to(method))]
            yield from _lacking("the resulting tensor", " ".join(texts), {"shape": SHAPE, "dtype": DTYPE})


def _lacking(what: str, text: str, wanted: dict[str, re.Pattern[str]]) -> Iterator[str]:
    text = " ".join(text.split())
    if missing := [name for name, pattern in wanted.items() if not pattern.search(text)]:
        yield f"says no {' and no '.join(missing)} of {what}"


def _of_numbers(method: Method) -> Iterator[str]:
    for name, annotation in method.parameters.items():
        if annotation in NUMBER_TYPES and not UNIT.search(about(method, name)):
            yield f"says not what number {name} counts"
    if method.result in NUMBER_TYPES and not UNIT.search(method.doc.lower()):
        yield "says not what the resulting number counts"


def _of_effects(method: Method) -> Iterator[str]:
    for name, annotation in method.parameters.items():
        if CHANGEABLE.search(annotation) and not annotation.startswith("Callable"):
            texts = (about(method, name), result_text(method.doc))
            if not READ_ONLY.search(method.class_doc) and not any(map(EFFECT.search, texts)):
                yield f"says not whether {name} is changed"
    for name in sorted(_written(method)):
        if not re.search(r"in place|changed|overwritten|written|filled|kept", f"{about(method, name)} {method.doc}"):
            yield f"says not that {name} is changed in place"
    for attribute in sorted(_assigned(method)):
        if not re.search(rf"\b{attribute}\b", method.doc):
            yield f"says not that it sets {attribute}"


def _written(method: Method) -> set[str]:
    """Parameters of which the body calls a method like ``add_()``, or sets items."""
    found = set()
    for node in ast.walk(_tree(method.function)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if re.fullmatch(r"[a-z]\w*_", attr):
                found.add(name)
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))]):
                found.add(name)
    return found & set(method.parameters)


def _assigned(method: Method) -> set[str]:
    """Public attributes that the body sets, of ``self`` or of an argument."""
    found = set()
    for node in ast.walk(_tree(method.function)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            parts = []
            while isinstance(target, ast.Attribute):
                parts.append(target.attr)
                target = target.value
            names = {"self", "cls", *method.parameters}
            if parts and isinstance(target, ast.Name) and target.id in names and not any(p[0] == "_" for p in parts):
                found.add(parts[0])
    return found


def _of_errors(method: Method) -> Iterator[str]:
    doc = " ".join(method.doc.split())
    listed = entries(method.doc, "Raises")
    for name in sorted(raised(method.function, method.cls)):
        # A sentence about all methods, such as "every coroutine raises EngineError where ...".
        in_class = re.search(rf"\b([Ee]very|[Aa]ny|A|What|One)\b[^.]* raises? (:class:`)?{name}\b", method.class_doc)
        told = any(_covers(other, name) and len(text.split()) >= 3 for other, text in listed.items())
        if not (told or in_class or re.search(rf"\b{name}\b`*{CONDITION}", doc)):
            yield f"says not when it raises {name}"
    for name in (*listed, *re.findall(r"\b[A-Z]\w*(?:Error|Exception)\b", doc)):
        if _exception(name) is None:
            yield f"promises {name}, which is no exception"
    promised = re.search(r"\b(raises?|raising|refuses? it)\b", doc, re.IGNORECASE)
    if promised and not any(map(_exception, re.findall(r"\b[A-Z]\w+", doc))):
        yield f"says {promised[0]!r} and not which exception"


def _covers(told: str, raised_name: str) -> bool:
    """Whether who catches ``told`` catches what is raised."""
    first, second = _exception(told), _exception(raised_name)
    return first is not None and second is not None and issubclass(second, first) and first is not Exception


def _exception(name: str) -> type[BaseException] | None:
    found = getattr(errors, name, None) or getattr(builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def raised(function: Any, cls: type | None, seen: frozenset[Any] = frozenset()) -> set[str]:
    """Names of the exceptions in ``raise`` statements of the body, and of the private functions that it calls: those of
    its class and of its module. What the body catches itself does not count.
    """
    found: set[str] = set()
    caught = {n.id for h in ast.walk(_tree(function)) if isinstance(h, ast.ExceptHandler) for n in ast.walk(h.type or h)
              if isinstance(n, ast.Name)}  # fmt: skip
    for node in ast.walk(_tree(function)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            made = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            target = _resolve(made, function, cls)
            if isinstance(target, type) and issubclass(target, BaseException):
                found.add(target.__name__)
            elif inspect.isroutine(target):
                annotation = str(inspect.signature(target).return_annotation)
                found |= {annotation} if _exception(annotation) else set()
        elif isinstance(node, ast.Call):
            target = _resolve(node.func, function, cls)
            is_private = inspect.isroutine(target) and target.__name__.startswith("_")
            if is_private and target not in seen and base_is_ours(target):
                found |= raised(target, cls, seen | {target})
    return found - (caught - {"Exception"})


def _resolve(node: ast.expr, function: Any, cls: type | None) -> Any:
    """What a name or an attribute of ``self``, ``cls`` stands for; ``None`` where that is not known."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id) or getattr(builtins, node.id, None)
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    if is_own and cls is not None:
        return plain(inspect.getattr_static(cls, node.attr, None))
    return None


@cache
def _tree(function: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _of_vllm(method: Method, vllm: dict[str, set[str]]) -> Iterator[str]:
    doc = " ".join(method.doc.split())
    classes = in_vllm(method.class_doc) & set(vllm)
    theirs: set[str] = set().union(*(vllm[name] for name in (*classes, *(() if method.cls else ("functions",)))))
    anywhere = set().union(*vllm.values())
    named = in_vllm(doc)
    if EXTENSION in doc:
        if method.name in theirs:
            yield f"is called an extension, and vLLM has {method.name}"
    elif named:
        for name in sorted(named - anywhere - set(vllm)):
            yield f"says that vLLM calls it {name}, which vLLM has not"
    elif method.name not in theirs and EXTENSION not in method.class_doc:
        yield "is no name of vLLM's, and does not say so" if classes else "does not say what it is in vLLM"
