"""How layers, losses, optimizers, regularizers, diagnostics, rules and recipes come in by name.

from bpkit.plugins import registry
registry().layers["Linear"].saves
"""

from bpkit.plugins.catalog import Catalog, PluginInfo
from bpkit.plugins.hookspecs import hookimpl
from bpkit.plugins.manager import PluginError
from bpkit.plugins.registry import Registry, registry
from bpkit.plugins.sources import Options

__all__ = ["Catalog", "Options", "PluginError", "PluginInfo", "Registry", "hookimpl", "registry"]
