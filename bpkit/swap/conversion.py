"""Swap: hand-written backwards into any model and out of it, in place.

A module of `bpkit.nn` subclasses torch's and replaces `forward` alone, so swapping is one assignment
to `module.__class__`: parameters, buffers, hooks, optimizers and DDP wrappers keep the very objects
they hold. Nothing is copied, and 5,000 modules take milliseconds.

A class made at run time by torch (a parametrised module has one of its own, FSDP makes one for each
module class) is not a torch class any more but still runs torch's forward. Its base is replaced in a
class made for the occasion; the class that others share is never edited.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from typing import TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from bpkit.core.errors import BpkitError
from bpkit.core.module import Handwritten
from bpkit.core.spec import RuleSpec
from bpkit.layers.parametrized import TWINS as PARAMETRIZATIONS
from bpkit.plugins.registry import registry

Model = TypeVar("Model", bound=nn.Module)
Selector = str | type[nn.Module]
Classes = Mapping[type[nn.Module], type[nn.Module]]

_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.ParameterList,
    nn.ParameterDict,
    ParametrizationList,
)


@dataclass(frozen=True)
class ConvertReport:
    """What of a model runs hand-written backwards, and what does not.

    Attributes:
        converted: class name by module path.
        left: the reason by module path, for every module that computes something by itself.
    """

    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} modules converted, {len(self.left)} left"]
        lines += [f"  {path or '(the model itself)'}: {reason}" for path, reason in self.left.items()]
        return "\n".join(lines)


def convert(
    model: Model,
    *,
    only: Selector | Iterable[Selector] | None = None,
    exclude: Selector | Iterable[Selector] | None = None,
    fuse: bool = False,
    rule: str | None = None,
) -> Model:
    """Give every torch module in `model` that has a hand-written twin that twin's class, in place.

    Args:
        model: any module, wrapped (DDP, FSDP, `torch.compile`) or not.
        only: convert these alone: a path pattern (`"encoder.*"`), a class (`torch.nn.Linear`), or
            several of them.
        exclude: leave these, likewise; a module inside an excluded one is excluded with it.
        fuse: run the formulas of the converted modules compiled where that is quicker.
        rule: name of a registered rule whose backward takes the place of the derived one, for the
            layers that the rule has.

    Returns:
        The same object.

    Raises:
        BpkitError: a pattern that matches no module, an unknown rule, a model that the rule refuses, a lazy
            module that a rule is for and that has not been called yet.
    """
    spec = None if rule is None else registry().rules[rule]
    _require_module("convert", model)
    classes = twins() if spec is None else _under(spec)
    names = dict(model.named_modules())
    if spec is not None:
        _require_made(spec, names)
    wanted = None if only is None else _selected(model, only, "only")
    unwanted = set() if exclude is None else _selected(model, exclude, "exclude")
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in names.values():
        if module in unwanted or (wanted is not None and module not in wanted):
            continue
        swapped = _swapped(module, classes)
        if swapped is not None:
            before.append((module, type(module)))
            module.__class__ = swapped
            module.__dict__.pop("rule", None)  # another rule's
        if isinstance(module, Handwritten):
            module.__dict__.pop("fused", None)
            if fuse:
                module.fused = True
    if spec is not None and spec.prepare is not None:
        try:
            spec.prepare(model)
        except BaseException:
            for module, cls in before:
                module.__class__ = cls
            raise
    return model


def revert(model: Model) -> Model:
    """Give every hand-written module in `model` its torch class back, in place; the same object."""
    _require_module("revert", model)
    back = {module: reference for reference, module in twins().items()}
    for each in registry().rules:
        back.update({module: reference for reference, module in each.modules.items()})
    for module in model.modules():
        swapped = _swapped_class(module, back)  # also of an instance with a forward of its own by now
        if swapped is not None:
            module.__class__ = swapped
            module.__dict__.pop("fused", None)
            module.__dict__.pop("rule", None)
    return model


def converted(model: nn.Module) -> ConvertReport:
    """What of `model` runs hand-written backwards, read from the classes its modules have now."""
    _require_module("converted", model)
    classes = twins()
    ours = _ours()
    report = ConvertReport()
    for path, module in model.named_modules():
        within = f"{path}." if path else ""
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):  # weight_norm, spectral_norm, prune
                name = str(getattr(hook, "name", getattr(hook, "_tensor_name", "weight")))
                report.left[within + name] = f"{type(hook).__name__}: one of torch's hooks computes it"
        own = _own_method(module) is not None or not _forward_is_ours(module, ours)
        if not own and isinstance(module, Handwritten):
            report.converted[path] = type(module).__name__
            report.left.update({within + attribute: reason for attribute, reason in module.natives()})
        elif _computes(module) or not classes.keys().isdisjoint(type(module).__mro__):
            report.left[path] = _reason(module, classes, ours)
    return report


def _require_module(called: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise BpkitError(f"{called}: model must be a torch.nn.Module, not {type(model).__name__}")


def twins() -> dict[type[nn.Module], type[nn.Module]]:
    """By torch class, the registered hand-written class that stands in for it."""
    specs = [*registry().layers, *registry().losses]
    return {
        **{spec.reference: spec.module for spec in specs if spec.reference is not None},
        **PARAMETRIZATIONS,
    }


def _under(spec: RuleSpec) -> dict[type[nn.Module], type[nn.Module]]:
    """`twins`, and the classes of a rule in place of torch's, of those twins, and of another rule's."""
    classes = twins()
    given = {classes[reference]: module for reference, module in spec.modules.items() if reference in classes}
    for other in registry().rules:
        for reference, module in other.modules.items():
            if reference in spec.modules and module is not spec.modules[reference]:
                given[module] = spec.modules[reference]
    return {**classes, **given, **spec.modules}


def _require_made(spec: RuleSpec, names: Mapping[str, nn.Module]) -> None:
    """Refuse a lazy module that the rule is for: its first call would lose the rule."""
    for path, module in names.items():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            becomes = module.cls_to_become
            if becomes is not None and any(issubclass(becomes, each) for each in spec.modules):
                raise BpkitError(
                    f"convert(rule={spec.name!r}): {path or 'the model'} is a {type(module).__name__} that "
                    "has not seen an input yet; call the model once, and convert it then"
                )


def _ours() -> set[type[nn.Module]]:
    """Every registered hand-written class, those of rules among them."""
    registered = [spec.module for spec in (*registry().layers, *registry().losses)]
    ruled = [module for spec in registry().rules for module in spec.modules.values()]
    return {*registered, *ruled, *PARAMETRIZATIONS.values()}


def _forward_is_ours(module: nn.Module, ours: set[type[nn.Module]]) -> bool:
    """Whether `forward` is that of the hand-written class, and not of a subclass that a user made of it."""
    base = next((base for base in type(module).__mro__ if base in ours), None)
    return base is None or type(module).forward is base.forward


def _swapped(module: nn.Module, classes: Classes) -> type[nn.Module] | None:
    """The class `module` should have, or None to leave it."""
    return None if _own_method(module) is not None else _swapped_class(module, classes)


def _swapped_class(module: nn.Module, classes: Classes) -> type[nn.Module] | None:
    cls = type(module)
    if cls in classes:
        return classes[cls]
    return _remade(cls, classes) if _made_at_run_time(module) else None


def _remade(cls: type[nn.Module], classes: Classes) -> type[nn.Module] | None:
    """A class like `cls`, which torch made at run time, over other bases (FSDP: one over a parametrised)."""
    bases = []
    for base in cls.__bases__:
        by_torch = base.__name__ in {f"Parametrized{each.__name__}" for each in base.__bases__}
        bases.append(classes.get(base) or (_remade(base, classes) if by_torch else None) or base)
    if tuple(bases) == cls.__bases__:
        return None
    body = {key: value for key, value in cls.__dict__.items() if key not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(bases), body)


def _own_method(module: nn.Module) -> str | None:
    """The method that this instance alone has replaced: `forward`, or a helper of it (`_conv_forward`)."""
    cls = type(module)
    mine = (name for name, value in module.__dict__.items() if callable(value))
    return next((name for name in mine if callable(getattr(cls, name, None))), None)


def _made_at_run_time(module: nn.Module) -> bool:
    # Importing FSDP takes over half a second; where nobody has, no module can be sharded by it.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return is_parametrized(module) or (fsdp is not None and isinstance(module, fsdp.FSDPModule))


def _computes(module: nn.Module) -> bool:
    """Whether `module` does something of its own, beyond calling the modules in it."""
    if isinstance(module, _CONTAINERS):
        return False
    leaf = next(module.children(), None) is None
    own_state = any(True for _ in module.parameters(recurse=False)) or any(
        True for _ in module.buffers(recurse=False)
    )
    return leaf or own_state


def _reason(module: nn.Module, classes: Classes, ours: set[type[nn.Module]]) -> str:
    cls = type(module)
    name = cls.__qualname__
    own = _own_method(module)
    if own is not None:
        return f"{name}: this instance has a {own} of its own"
    if _swapped_class(module, classes) is not None:
        return f"{name}: has a hand-written twin; convert it"
    own_base = next((base for base in cls.__mro__ if base in ours), None)
    if own_base is not None:
        return f"{name}: a subclass of {own_base.__name__} with a forward of its own, which runs as written"
    if cls.__module__.startswith("torch.nn."):
        return f"{name}: no hand-written twin is registered"
    base: type[nn.Module] | None = next((base for base in cls.__mro__ if base in classes), None)
    if base is None:
        return f"{name}: a module of your own, which runs as written"
    changed = " with a forward of its own" if cls.forward is not base.forward else ""
    return f"{name}: a subclass of torch.nn.{base.__name__}{changed}; only exact torch classes are swapped"


def _selected(model: nn.Module, selectors: Selector | Iterable[Selector], argument: str) -> set[nn.Module]:
    """The modules that the selectors pick, with all below them; a shared one goes by each of its paths."""
    names = dict(model.named_modules(remove_duplicate=False))
    each = (
        list(selectors) if isinstance(selectors, Iterable) and not isinstance(selectors, str) else [selectors]
    )
    picked: set[str] = set()
    for selector in each:
        matches = _matcher(selector, argument)
        found = {path for path, module in names.items() if matches(path, module)}
        if not found:
            shown = selector if isinstance(selector, str) else selector.__name__
            raise BpkitError(
                f"convert({argument}={shown!r}) matches no module; paths are those of "
                f"model.named_modules(), such as {next((path for path in names if path), '')!r}"
            )
        picked |= found
    return {
        module
        for path, module in names.items()
        if path in picked or any(above in picked for above in _above(path))
    }


def _above(path: str) -> Iterable[str]:
    """The paths of the modules that the one at `path` is in, the model's own apart."""
    return (path[:end] for end, each in enumerate(path) if each == ".")


def _matcher(selector: Selector, argument: str) -> Callable[[str, nn.Module], bool]:
    if isinstance(selector, str):
        pattern = re.compile(translate(selector))
        return lambda path, module: pattern.match(path) is not None
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        return lambda path, module: isinstance(module, selector)
    raise BpkitError(f"convert({argument}=...) takes path patterns and module classes, not {selector!r}")
