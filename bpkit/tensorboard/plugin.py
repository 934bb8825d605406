"""`GradientsPlugin`: the tab Gradients of TensorBoard.

TensorBoard imports this module when it starts, and an error here would end it: nothing is imported that
an installation of bpkit might lack, and torch, which is slow to import, is not. Every answer to the page is
guarded; what goes wrong in one is a line in the log and on the page.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard import plugin_util  # type: ignore[import-untyped]
from tensorboard.backend import http_util  # type: ignore[import-untyped]
from tensorboard.plugins import base_plugin  # type: ignore[import-untyped]
from werkzeug import wrappers

from bpkit.core.errors import BpkitError
from bpkit.tensorboard import answers
from bpkit.tensorboard.history import Array
from bpkit.tensorboard.record import PLUGIN
from bpkit.tensorboard.source import Source

logger = logging.getLogger("bpkit")

STATIC = Path(__file__).parent / "static"
TYPES = {".js": "text/javascript", ".css": "text/css"}

Request = wrappers.Request
App = Callable[..., Any]


class GradientsPlugin(base_plugin.TBPlugin):
    """Routes below `/data/plugin/bpkit`: the page's files, and what it asks for."""

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        self._source = Source(context.data_provider)

    def is_active(self) -> bool:
        """False: TensorBoard sees by itself which plugins have data, and asks those that have none."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The tab; its page is `static/index.js`, which reloads by itself."""
        return base_plugin.FrontendMetadata(
            es_module_path="/index.js", tab_name="Gradients", disable_reload=True
        )

    def get_plugin_apps(self) -> Mapping[str, App]:
        """What is answered under which address."""
        files = {f"/{path.name}": _file(path) for path in STATIC.iterdir() if path.suffix in TYPES}
        return {
            **files,
            "/runs": _answer(self._runs),
            "/map": _answer(self._map),
            "/layer": _answer(self._layer),
            "/findings": _answer(self._findings),
            "/verdicts": _answer(self._verdicts),
        }

    def _runs(self, request: Request) -> answers.Answer:
        return answers.runs(self._source.entries(*_asked(request)))

    def _map(self, request: Request) -> bytes:
        history = self._source.history(*_asked(request), _text(request, "run"))
        told, cells = answers.heat_map(
            history,
            _text(request, "statistic"),
            _size(request, "rows"),
            _size(request, "columns"),
            request.args.get("match", ""),
        )
        return _packed(told, cells)

    def _layer(self, request: Request) -> answers.Answer:
        asked, run, name = _asked(request), _text(request, "run"), _text(request, "layer")
        histogram = self._source.histogram(*asked, run, name)
        return answers.layer(self._source.history(*asked, run), name, histogram)

    def _findings(self, request: Request) -> answers.Answer:
        return answers.findings(self._source.judgement(*_asked(request), _text(request, "run")))

    def _verdicts(self, request: Request) -> answers.Answer:
        return answers.verdicts(self._source.judgements(*_asked(request)))


def _packed(told: answers.Answer, numbers: Array) -> bytes:
    """The length of a JSON text, the text, and numbers as they are, all little-endian.

    JSON has no NaN and no infinity; and to write half a million characters of base64 and compress them, which
    TensorBoard does with text, takes longer than to send the bytes.
    """
    text = json.dumps(told, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)  # a Float32Array begins at a multiple of its size
    return struct.pack("<I", len(text)) + text + numbers.astype("<f4").tobytes()


def _answer(make: Callable[[Request], answers.Answer | bytes]) -> App:
    """An address that answers with JSON or bytes, and with `{"error": …}` whatever goes wrong."""

    @Request.application
    def app(request: Request) -> wrappers.Response:
        code = 200
        try:
            made = make(request)
            if isinstance(made, bytes):
                return http_util.Respond(request, made, "application/octet-stream")
            body = json.dumps(made, allow_nan=False)
        except BpkitError as error:
            body, code = json.dumps({"error": str(error)}), 404
        except Exception as error:
            logger.exception("bpkit: %s was not answered", request.path)
            body, code = json.dumps({"error": f"{type(error).__name__}: {error}"}), 500
        return http_util.Respond(request, body, "application/json", code=code)

    return app


def _file(path: Path) -> App:
    @Request.application
    def app(request: Request) -> wrappers.Response:
        return http_util.Respond(request, path.read_bytes(), TYPES[path.suffix])

    return app


def _asked(request: Request) -> tuple[Any, str]:
    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)


def _text(request: Request, name: str) -> str:
    value = request.args.get(name)
    if value is None:
        raise BpkitError(f"{request.path} was asked without {name!r}")
    return value


def _size(request: Request, name: str) -> int:
    value = request.args.get(name, str(answers.MOST))
    if not (value.isascii() and value.isdecimal() and int(value) > 0):
        raise BpkitError(f"{name!r} must be a whole number above 0, not {value!r}")
    return int(value)
