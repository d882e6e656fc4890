"""The model families, by the architecture that config.json names. Knows layers; must not know files or sequences."""

from engine.models.registry import Model, build, check_architecture, supported_architectures

__all__ = ["Model", "build", "check_architecture", "supported_architectures"]
