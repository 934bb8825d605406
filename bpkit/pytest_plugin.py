"""The pytest plugin that comes with bpkit: a fixture and a marker, by which a plugin's tests are its proof.

    @pytest.mark.bpkit_specs("bpkit-mine")
    def test_is_proven(spec, verify):
        verify(spec)

It imports no torch until a test asks for either; `pytest -p no:bpkit` leaves it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bpkit.core.spec import Spec
    from bpkit.plugins.registry import Registry
    from bpkit.verification.report import Report

_MARKER = (
    "bpkit_specs(*plugins, kinds=None): run the test once for each spec of the named plugins, as its `spec`. "
    "A plugin is named as `bpkit plugins` shows it, or by its module or file.py. kinds (such as ['layers']) "
    "are those that can be proven, unless they are named."
)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def verify() -> Callable[..., Report]:
    """`verify(target, *inputs, reference=...)`: as `bpkit.verify`; a failure fails the test with its text."""

    def verify(target: Any, *inputs: Any, **settings: Any) -> Report:
        from bpkit.verification import verify as run

        before = logging.root.manager.disable
        logging.disable(logging.DEBUG)  # torch.compile's own, hundreds of lines in a failure
        try:
            report = run(target, *inputs, **settings)
        finally:
            logging.disable(before)
        if not report.ok:
            pytest.fail(str(report), pytrace=False)
        return report

    return verify


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a marked test the specs that its marker names, as `spec`."""
    markers = list(metafunc.definition.iter_markers("bpkit_specs"))
    if not markers:
        return
    if "spec" not in metafunc.fixturenames:
        _refuse(metafunc, "the test takes no argument `spec`")
    found = {}
    for marker in markers:
        if not marker.args or not all(isinstance(each, str) for each in marker.args):
            _refuse(metafunc, 'name a plugin or several, as in bpkit_specs("bpkit-mine")')
        if set(marker.kwargs) - {"kinds"}:
            _refuse(metafunc, f"takes kinds=[...] beside the plugins, not {', '.join(marker.kwargs)}")
        found.update(_specs(metafunc, marker.args, marker.kwargs.get("kinds")))
    metafunc.parametrize("spec", list(found.values()), ids=list(found))


def _specs(metafunc: pytest.Metafunc, plugins: tuple[str, ...], kinds: list[str] | None) -> dict[str, Spec]:
    """The specs of the plugins, by kind and name."""
    from bpkit.core.errors import BpkitError, unknown_name
    from bpkit.plugins.catalog import KINDS
    from bpkit.plugins.registry import registry
    from bpkit.verification.targets import PROVABLE

    try:
        for kind in kinds or ():
            if kind not in KINDS:
                raise unknown_name("kind", kind, KINDS)
        known = registry().extended(*plugins)
        found = {}
        for plugin in plugins:
            mine = dict(_brought(known, plugin, tuple(kinds or PROVABLE)))
            if not mine:
                wanted = f"of the kinds {', '.join(kinds)}" if kinds else "that can be proven"
                raise BpkitError(f"plugin {plugin} brings nothing {wanted}")
            found.update(mine)
    except BpkitError as error:
        _refuse(metafunc, str(error))
    return found


def _brought(known: Registry, plugin: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, Spec]]:
    from bpkit.plugins import files

    names = {plugin, files.absolute(plugin)} if files.is_path(plugin) else {plugin}
    for kind in kinds:
        catalog = getattr(known, kind)
        for spec in catalog:
            if catalog.owner(spec.name).name in names:
                yield f"{kind.removesuffix('es' if kind == 'losses' else 's')}-{spec.name}", spec


def _refuse(metafunc: pytest.Metafunc, reason: str) -> None:
    pytest.fail(f"{metafunc.definition.nodeid}: marker bpkit_specs: {reason}", pytrace=False)
