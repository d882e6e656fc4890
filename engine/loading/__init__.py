"""Reading a model directory: its numbers, its sampling defaults, its weights.

Knows file formats. Must not know model families, which take what they expect, or sequences. Never unpickles anything.
"""

from engine.loading.generation import GenerationDefaults, read_generation_defaults
from engine.loading.model_config import read_model_config
from engine.loading.open_weights import open_weights
from engine.loading.source import LoadStatistics, OnProgress, WeightSource

__all__ = [
    "GenerationDefaults",
    "LoadStatistics",
    "OnProgress",
    "WeightSource",
    "open_weights",
    "read_generation_defaults",
    "read_model_config",
]
