"""Direction: whether successive gradients agree, with one another and with the momentum."""

from __future__ import annotations

from collections.abc import Mapping

from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.instruments import Direction
from bpkit.diagnostics.sample import Sample


class Directions(Diagnostic):
    """Puts cosines on the map and their mean on the board; finds nothing itself.

    Near 1 the steps go one way and could be longer; near 0 the batch is noise; below 0 they jump to and fro
    across a valley.
    """

    needs = (Direction,)

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """Cosines by layer, of its largest parameter."""
        return {
            "cosine with last gradient": _by_layer(sample, "last"),
            "cosine with momentum": _by_layer(sample, "momentum"),
        }

    def write(self, sample: Sample, board: Board) -> None:
        """`gradients/cosine with last`: the mean over layers."""
        cosines = [*_by_layer(sample, "last").values()]
        if cosines:
            board.add_scalar("gradients/cosine with last", sum(cosines) / len(cosines), sample.step)


def _by_layer(sample: Sample, name: str) -> dict[str, float]:
    values, infos = sample.column(Direction, name), sample.network.parameters
    found = {}
    for layer, indices in sample.layers.items():
        largest = max(indices, key=lambda index: infos[index].numel)
        value = values[largest]
        if value is not None and value == value:
            found[layer] = value
    return found
