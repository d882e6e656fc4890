"""Reading a model directory: its numbers, its sampling defaults, its weights.

Knows file formats. Must not know model families, which take what they expect, or sequences. Never unpickles anything.
"""

from engine.loading.checkpoint import Checkpoint
from engine.loading.generation import GenerationDefaults, read_generation_defaults
from engine.loading.model_config import read_model_config

__all__ = ["Checkpoint", "GenerationDefaults", "read_generation_defaults", "read_model_config"]
