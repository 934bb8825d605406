"""Losses, a family a page: derivation, Function, Module and the spec that proves it."""
