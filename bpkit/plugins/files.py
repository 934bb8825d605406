"""A plugin that is one Python file, not packaged: `-p path/to/mine.py`, `Trainer(plugins=["mine.py"])`."""

from __future__ import annotations

import importlib.util
import re
import sys
import zlib
from pathlib import Path
from types import ModuleType

from bpkit.plugins.manager import PluginError


def is_path(name: str) -> bool:
    """Whether a plugin's name is a file's: it ends in `.py`, has a directory, or is there, with a dot."""
    return (
        name in (".", "..")
        or name.endswith(".py")
        or "/" in name
        or "\\" in name
        or ("." in name and Path(name).is_file())
    )


def absolute(name: str) -> str:
    """The name of a file's plugin: its path from the root, the same in every process."""
    return str(Path(name).expanduser().resolve())


def load(name: str) -> ModuleType:
    """The module that the file at `name` is; the one that is there, if it has been imported before.

    It is called by the file's name, unless another module is: pickles find it again by that.

    Raises:
        PluginError: no such file, a directory, or no Python.
    """
    path = Path(name)
    if path.is_dir():
        raise PluginError(name, "is a directory; name a file in it, or the package as a module")
    if not path.is_file():
        raise PluginError(name, "no such file")
    if path.suffix != ".py":
        raise PluginError(name, "is not a Python file: its name does not end in .py")
    try:
        code = compile(path.read_bytes(), name, "exec")
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise PluginError(name, f"is not valid Python: {where}{error.msg}") from error
    except (ValueError, OSError) as error:  # null bytes, no permission
        raise PluginError(name, f"is not readable as Python: {error}") from error
    module_name = re.sub(r"\W", "_", path.stem)
    there = sys.modules.get(module_name)
    if there is not None and _is(there, path):
        return there
    if there is not None or not _is_free(module_name, path):
        module_name = f"{module_name}_{zlib.crc32(name.encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # pickle and dataclasses look there
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _is(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


def _is_free(module_name: str, path: Path) -> bool:
    """Whether an import of that name would find this very file, or nothing."""
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return True
    return spec is None or (spec.origin is not None and Path(spec.origin).resolve() == path)
