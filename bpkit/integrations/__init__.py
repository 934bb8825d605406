"""`watch` as a callback of Lightning, Hugging Face's Trainer or Ignite, whichever is installed."""

from __future__ import annotations

from bpkit.core.errors import BpkitError


class MissingLibraryError(BpkitError, ImportError):
    """An integration without its library."""


def missing(library: str) -> MissingLibraryError:
    """The error for `import bpkit.integrations.LIBRARY` where there is no such library."""
    return MissingLibraryError(
        f"bpkit.integrations.{library} needs a library that is not here: pip install 'bpkit[{library}]'"
    )
