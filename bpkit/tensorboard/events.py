"""The events of an event file, one after another, as fast as they come off the disk.

TensorBoard's own loader checks the checksum of every byte in Python, at 4 MB a second: three minutes for
10,000 samples of 2,000 layers. Here only that of each record's length is checked, which is what tells a
torn or foreign file; such a run is read in a second.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # type: ignore[import-untyped]

_HEADER = struct.Struct("<QI")
_CHECKSUM = 4


def is_events(path: Path) -> bool:
    """Whether TensorBoard would take a file of this name for an event file."""
    return "tfevents" in path.name


def events(path: Path) -> Iterator[Event]:
    """Every whole record of the file.

    One that is half written, by a run that goes on or was killed, ends it; one that cannot be decoded is
    left out.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                return  # where the next record begins is not known
            body = file.read(length + _CHECKSUM)
            if len(body) < length + _CHECKSUM:
                return
            try:
                event = Event.FromString(body[:length])
            except DecodeError:
                continue
            yield event
