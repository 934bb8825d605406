"""What a command line names: an object by its module, the inputs to call it with."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpkit.core.errors import BpkitError, nearest

# torch's makers of tensors, by which inputs are written: "randn(4, 6), randint(3, (4,))".
_MAKERS = "randn rand randint randperm zeros ones full arange linspace eye tensor empty"
_SHAPE = re.compile(r"(?<![\w.])\d+(?:x\d+)+(?![\w.])")


def found(name: str) -> Any:
    """The object called `package.module:attribute`, or `path/to/file.py:attribute`.

    Modules are looked for in the current directory as well.

    Raises:
        BpkitError: no such module, file or attribute (with the nearest that there is); a module that
            raises when it is imported.
    """
    module_name, _, attribute = name.rpartition(":")
    module = _module(module_name)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            close = nearest(part, [each for each in dir(value) if not each.startswith("_")])
            hint = f"; did you mean {close!r}?" if close else ""
            raise BpkitError(f"{name}: {module_name} has no {part!r}{hint}")
        value = getattr(value, part)
    return value


def _module(name: str) -> Any:
    try:
        if name.endswith(".py"):
            return _from_file(Path(name))
        if "" not in sys.path:
            sys.path.insert(0, "")
        return importlib.import_module(name)
    except BpkitError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise BpkitError(f"no module {name!r} here or among what is installed") from None
        raise BpkitError(f"{name} cannot be imported: {error}") from error
    except Exception as error:
        raise BpkitError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise BpkitError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # pickle and dataclasses look there
    spec.loader.exec_module(module)
    return module


def inputs(texts: Sequence[str]) -> tuple[Any, ...]:
    """What `--inputs` describes, one text after another, from a fixed seed.

    Python values separated by commas, torch's makers of tensors among them, and `4x6` for
    `randn(4, 6)`; or `module:function`, which gives a tuple when called.

    Raises:
        BpkitError: something else.
    """
    import torch

    torch.manual_seed(0)
    return tuple(value for text in texts for value in _values(text))


def _values(text: str) -> tuple[Any, ...]:
    import torch

    if re.fullmatch(r"[\w./]+:[\w.]+", text):
        given = found(text)
        made = given() if callable(given) else given
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)
    written = _SHAPE.sub(lambda match: f"randn({', '.join(match[0].split('x'))})", text)
    names = {name: getattr(torch, name) for name in _MAKERS.split()}
    kinds = {
        name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "int64", "bool")
    }
    try:
        value = eval(f"({written},)", {"__builtins__": {}, "torch": torch, **names, **kinds})
    except Exception as error:
        raise BpkitError(
            f"--inputs {text!r}: {type(error).__name__}: {error}; write values separated by commas, such as "
            "'4x6, randint(3, (4,)), 0.5', or module:function"
        ) from error
    return tuple(value)
