"""`run`: a script or a module as `python train.py ...` or `python -m package.module ...` runs it."""

from __future__ import annotations

import builtins
import importlib.util
import os
import pkgutil
import runpy
import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

from bpkit.core.errors import BpkitError, nearest

SHOWN = 5  # names that a line about a missing file still shows
INTERRUPTED = 130  # what a shell shows of a process that Ctrl-C ended


@dataclass(frozen=True)
class Target:
    """What is run.

    Attributes:
        path: the script's path, or the module's dotted name.
        module: it is a module's name.
    """

    path: str
    module: bool = False

    @property
    def name(self) -> str:
        """A short name for directories and titles: `train` of `src/train.py` and of `project.train`."""
        if not self.module:
            return Path(self.path).stem or Path(self.path).resolve().name
        return self.path.removesuffix(".__main__").rpartition(".")[2]


def located(path: str, *, module: bool) -> Target:
    """The target, made sure of before anything runs.

    Raises:
        BpkitError: there is no such file or module, or it is nothing that Python runs.
    """
    if module:
        _find_module(path)
    else:
        _find_script(Path(path))
    return Target(path, module)


def run(target: Target, arguments: tuple[str, ...]) -> int:
    """Run it in this process, as `__main__`, and return the exit code that Python would have ended with.

    `sys.argv` and `sys.path[0]` are as Python sets them. An exception that the script lets out is shown as
    Python shows it, by the script's own `sys.excepthook` if it has set one, and does not leave here.
    """
    _enter(target, arguments)
    try:
        if target.module:
            runpy.run_module(target.path, run_name="__main__", alter_sys=True)
        elif Path(target.path).is_file() and pkgutil.get_importer(target.path) is None:
            _run_source(Path(target.path))
        else:
            runpy.run_path(target.path, run_name="__main__")
    except SystemExit as leave:
        return _code(leave)
    except BaseException as error:
        error.__traceback__ = _own(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _run_source(path: Path) -> None:
    """A file, as Python runs it; `runpy.run_path` gives it another `__file__`, and ends with no `__main__`.

    What the script has registered to run at exit, and what unpickles its classes, finds `__main__` then.
    """
    where = str(path.absolute())
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=where, __builtins__=builtins, __loader__=SourceFileLoader("__main__", where)
    )
    sys.modules["__main__"] = main
    exec(compile(path.read_bytes(), where, "exec", dont_inherit=True), main.__dict__)


def _enter(target: Target, arguments: tuple[str, ...]) -> None:
    sys.argv = [target.path, *arguments]
    if sys.flags.safe_path:  # python -P: neither the script's directory nor the current one
        return
    # bpkit's own place in the path, the directory of its command, gives way. A directory or an archive
    # that is run (it holds a __main__.py) is put there by runpy.
    directory = str(Path(target.path).resolve().parent)
    sys.path[0] = str(Path.cwd()) if target.module else directory


def _code(leave: SystemExit) -> int:
    """`sys.exit(what)` as an exit code; anything but a number is printed, as Python does."""
    if leave.code is None:
        return 0
    if isinstance(leave.code, int):
        return leave.code & 0xFF
    print(leave.code, file=sys.stderr)
    return 1


def _own(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the script's first frame on."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in ("runpy", __name__):
        trace = trace.tb_next
    return trace


def _find_script(path: Path) -> None:
    if path.is_dir():
        if not (path / "__main__.py").is_file():
            raise BpkitError(f"{path} is a directory without a __main__.py; name a script")
        return
    if not path.exists():
        raise BpkitError(f"no such file: {path}{_hint(path)}")
    if not os.access(path, os.R_OK):
        raise BpkitError(f"{path} cannot be read")
    if path.suffix not in (".py", ".pyw") and not _is_python(path):
        raise BpkitError(f"{path} is not a Python file")


def _is_python(path: Path) -> bool:
    """Whether a file of another suffix can be run: it compiles, or it is an archive with a `__main__.py`."""
    if pkgutil.get_importer(str(path)) is not None:
        return True
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError):
        return False
    return True


def _hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a directory {path.parent}"
    there = sorted(each.name for each in path.parent.glob("*.py"))
    close = nearest(path.stem, [each.removesuffix(".py") for each in there])
    if close is not None:
        return f"; did you mean {path.with_name(f'{close}.py')}?"
    if _may_be_module(path):
        return f"; a module is run by `bpkit watch -m {path}`"
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return f"; {path.parent.absolute()} has {', '.join(there[:SHOWN]) or 'no Python file'}{more}"


def _may_be_module(path: Path) -> bool:
    parts = str(path).split(".")
    return len(parts) > 1 and path.suffix != ".py" and all(part.isidentifier() for part in parts)


def _find_module(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise BpkitError(f"{name!r} is no module's name; -m takes one with dots, such as package.train")
    path = sys.path.copy()
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            return  # a parent package imports something that is missing: the run will show it
        spec = None
    except Exception:  # a parent package fails as it is imported: likewise
        return
    finally:
        sys.path[:] = path
    if spec is None:
        raise BpkitError(f"no module named {name} from {Path.cwd()}")
