"""What edgerun raises when something outside its own code is wrong: one line that says what, where and what to do."""

from __future__ import annotations


class EdgerunError(Exception):
    """Base of every error that edgerun raises on purpose."""


class PackageError(EdgerunError):
    """A model package is missing, damaged, inconsistent or newer than this edgerun."""


class CheckpointError(EdgerunError):
    """A checkpoint (GGUF or safetensors) cannot be read or is of an unsupported kind."""


class VariantError(EdgerunError):
    """A variant is missing, damaged, or made for another base model."""


class ContextError(EdgerunError):
    """More tokens than the model's context, or the session's cache, can hold."""


class HubError(EdgerunError):
    """A model could not be found, fetched or stored."""


class OptionError(EdgerunError):
    """An option has a value that makes no sense."""


class CacheFullError(EdgerunError):
    """The cache of keys and values has no room for more tokens within its budget."""
