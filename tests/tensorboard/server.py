"""The tab's plugin over event files, read by TensorBoard's own data provider."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from werkzeug.test import Client
from werkzeug.wrappers import Response

from bpkit.tensorboard.plugin import GradientsPlugin
from bpkit.tensorboard.record import ABSENT


class Tab:
    """The plugin over a directory."""

    def __init__(self, logdir: Path) -> None:
        self.multiplexer = EventMultiplexer(tensor_size_guidance={"bpkit": 1000})
        self.logdir = logdir
        provider = MultiplexerDataProvider(self.multiplexer, str(logdir))
        self.plugin = GradientsPlugin(base_plugin.TBContext(data_provider=provider))
        self.apps = self.plugin.get_plugin_apps()
        self.load()

    def load(self) -> None:
        self.multiplexer.AddRunsFromDirectory(str(self.logdir))
        self.multiplexer.Reload()

    def get(self, route: str, **parameters: Any) -> Response:
        return Client(self.apps[route], Response).get(route, query_string=parameters)

    def ask(self, route: str, **parameters: Any) -> Mapping[str, Any]:
        response = self.get(route, **parameters)
        assert response.status_code == 200, response.text
        return json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def map(self, name: str, statistic: str = "gradient norm", **parameters: Any) -> Mapping[str, Any]:
        response = self.get("/map", run=name, statistic=statistic, **parameters)
        assert response.status_code == 200, response.text
        (length,) = struct.unpack_from("<I", response.data)
        answer = dict(json.loads(response.data[4 : 4 + length]))
        cells = np.frombuffer(response.data, "<f4", offset=4 + length)
        answer["cells"] = cells.reshape(len(answer["rows"]) - 1, len(answer["steps"]))
        return answer


def sample(*norms: float) -> list[list[float]]:
    return [[norm, ABSENT] for norm in norms]
