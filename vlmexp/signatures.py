"""Field names and types of a library's configuration class, read from its source without importing the library.

Importing transformers' Trainer or peft takes up to ten seconds; a typing mistake should be answered at once.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmexp.errors import UserError, closest, shown, unknown

_TYPES = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "dict": (dict,), "list": (list,),
    "Dict": (dict,), "List": (list,), "tuple": (list, tuple), "None": (type(None),),
}  # fmt: skip


def check_fields(group: str, values: Mapping[str, Any], package: str, class_name: str) -> None:
    """Raise a UserError if a key of `values` is no field of the class, or a value is not of the field's type."""
    fields = class_fields(package, class_name)
    for name, value in values.items():
        check_name(f"{group}.{name}={shown(value)}", name, fields, f"{package}.{class_name}")
        if not _fits(value, fields[name]):
            raise UserError(
                f"{group}.{name}={shown(repr(value))} must be {ast.unparse(fields[name])} (see {package}.{class_name})."
            )


def check_arguments(group: str, values: Mapping[str, Any], package: str, module: str, class_name: str) -> None:
    """The same for a class whose options are arguments of its `__init__` with a default and no annotation.

    Args:
        module: path of the source file inside the package.
    """
    defaults = init_defaults(package, module, class_name)
    for name, value in values.items():
        check_name(f"{group}.{name}={value}", name, defaults, f"{package}.{class_name}")
        default = defaults[name]
        if default is not None and type(value) is not type(default):
            raise UserError(f"{group}.{name}={value!r} must be {type(default).__name__} (see {package}.{class_name}).")


def check_name(given: str, name: str, known: Collection[str], class_name: str) -> None:
    """Raise a UserError if a name is none of the known ones."""
    if name not in known:
        listing = f". It has: {', '.join(sorted(known))}."
        raise UserError(f"{given}: {class_name} has no option {name!r}{closest(name, known) or listing}")


@functools.cache
def popped_names(package: str, module: str, class_name: str, function: str = "__init__") -> frozenset[str]:
    """The names that a function of a class takes out of its keyword arguments with `kwargs.pop`."""
    tree = ast.parse((_root(package) / module).read_text(encoding="utf-8"))
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    init = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return frozenset(
        str(node.args[0].value)
        for node in ast.walk(init)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "pop"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    )


@functools.cache
def init_defaults(package: str, module: str, class_name: str) -> dict[str, Any]:
    """The arguments of a class's `__init__` that have a literal default."""
    tree = ast.parse((_root(package) / module).read_text(encoding="utf-8"))
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    init = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    arguments = init.args.args[len(init.args.args) - len(init.args.defaults) :]
    return {item.arg: ast.literal_eval(value) for item, value in zip(arguments, init.args.defaults, strict=True)}


@functools.cache
def returned_defaults(package: str, module: str, class_name: str, function: str) -> dict[str, Any]:
    """The literal dict that a function of a class returns."""
    tree = ast.parse((_root(package) / module).read_text(encoding="utf-8"))
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    body = next(node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == function)
    found = next(node.value for node in ast.walk(body) if isinstance(node, ast.Return) and node.value is not None)
    defaults: dict[str, Any] = ast.literal_eval(found)
    return defaults


@functools.cache
def enumerated(package: str, module: str, class_name: str) -> tuple[str, ...]:
    """The values of an enumeration of texts."""
    tree = ast.parse((_root(package) / module).read_text(encoding="utf-8"))
    owner = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return tuple(
        item.value.value
        for item in owner.body
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
    )


@functools.cache
def class_fields(package: str, class_name: str) -> dict[str, ast.expr]:
    """Annotated fields of a class of an installed package, those of its bases in that package included."""
    classes = _classes(package)
    if class_name not in classes:
        raise unknown(f"{package} class", class_name, (name for name in classes if name.endswith("Config")))
    node = classes[class_name]
    fields: dict[str, ast.expr] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= class_fields(package, base.id)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields[item.target.id] = item.annotation
    return fields


@functools.cache
def _classes(package: str) -> dict[str, ast.ClassDef]:
    return {
        node.name: node
        for path in _config_files(package)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }


def _root(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"The package {package!r} is not installed: pip install {package}")
    return Path(spec.origin).parent


def _config_files(package: str) -> Iterator[Path]:
    root = _root(package)
    yield from [root / "training_args.py"] if package == "transformers" else [root / "config.py"]
    yield from sorted(root.glob("tuners/*/config.py"))


def _fits(value: Any, annotation: ast.expr) -> bool:
    """Whether a YAML value fits the annotation; an annotation that is no plain type accepts everything."""
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):  # a quoted annotation
            return _fits(value, ast.parse(text, mode="eval").body)
        case ast.Name(id=name) if name in _TYPES:
            return isinstance(value, _TYPES[name]) and (isinstance(value, bool) <= (bool in _TYPES[name]))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return value is None or _fits(value, inner)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=options)):
            return any(_fits(value, option) for option in options)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            options = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            values = [option.value for option in options if isinstance(option, ast.Constant)]
            # PEFT writes patterns such as "pissa_niter_[number of iters]" into a Literal.
            return value in values or (isinstance(value, str) and any("[" in str(known) for known in values))
        case ast.Subscript(value=ast.Name(id=name)) if name in _TYPES:
            return isinstance(value, _TYPES[name])
    return True
