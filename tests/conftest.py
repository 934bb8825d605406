"""`--device cuda` makes every tensor that a test creates without saying where on that device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bpkit import pytest_plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="where the tests make their tensors: cpu (default), cuda"
    )
    parser.addoption(
        "--every-sample", action="store_true", help="run the slow conformance tests on all of torch's samples"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu: about the CPU itself; left out on another device")
    if not config.pluginmanager.is_registered(pytest_plugin):  # bpkit runs from a checkout, uninstalled
        config.pluginmanager.register(pytest_plugin, "bpkit")
    device = torch.device(config.getoption("--device"))
    if device.type != "cpu" and not torch.get_device_module(device).is_available():
        raise pytest.UsageError(f"--device {device}: this machine has none that torch can use")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.device(config.getoption("--device")).type != "cpu":
        kept = [item for item in items if item.get_closest_marker("cpu") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test, for what does not follow torch's default device."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _default_device(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        yield
        return
    before = torch.get_default_device()
    torch.set_default_device(device)
    yield
    torch.set_default_device(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
