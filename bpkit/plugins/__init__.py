"""How layers, losses, optimizers, regularizers, diagnostics, rules and recipes come in by name."""
