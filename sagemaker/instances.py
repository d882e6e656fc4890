"""Which instance a model needs, as far as its name tells.

Knows instance types and the sizes of models. Must not know requests.
"""

import re

from sagemaker.calls import ToolError

# A GPU instance that is quick to get in most regions and holds a model of 8 billion parameters in 16 bits. The 2xlarge
# rather than the xlarge: its 8 CPUs and 32 GiB leave room for loading, tokenising and HTTP beside the engine.
DEFAULT_INSTANCE_TYPE = "ml.g6.2xlarge"
# The smallest type of each kind with one GPU, and that GPU's memory in GB (10^9 bytes), from the cheapest up.
SINGLE_GPU_TYPES: tuple[tuple[str, int], ...] = (
    (DEFAULT_INSTANCE_TYPE, 24),
    ("ml.g6e.2xlarge", 48),
    ("ml.p5.4xlarge", 80),
)
# The rest is the KV cache's and the activations'.
_WEIGHTS_SHARE = 0.75
_GPU_FAMILY = re.compile(r"ml\.(g\d+[a-z]*|p\d+[a-z]*(-[a-z]+\d+)?)\.")
_BILLIONS = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)b(?![a-z0-9])")
_BYTES_BY_WORD = (
    ("int4", 0.55),
    ("4bit", 0.55),
    ("awq", 0.55),
    ("gptq", 0.55),
    ("int8", 1.0),
    ("fp8", 1.0),
    ("8bit", 1.0),
)
_BYTES_PER_PARAMETER = 2.0


def has_gpu(instance_type: str) -> bool:
    """Whether instances of this type have NVIDIA GPUs."""
    return _GPU_FAMILY.match(instance_type) is not None


def weights_gb(name: str) -> float | None:
    """The size of the weights in GB (10^9 bytes), from a name like "Qwen/Qwen3-8B"; None where it does not say.

    Of several sizes in a name the largest counts ("30B-A3B" needs room for 30).
    """
    lower = name.lower()
    billions = [float(found) for found in _BILLIONS.findall(lower)]
    if not billions:
        return None
    per_parameter = next((size for word, size in _BYTES_BY_WORD if word in lower), _BYTES_PER_PARAMETER)
    return max(billions) * per_parameter


def instance_type_for(size_gb: float | None) -> str:
    """The cheapest type whose one GPU holds weights of that many GB; the default type for an unknown size.

    Raises ToolError where no single GPU does.
    """
    if size_gb is None:
        return DEFAULT_INSTANCE_TYPE
    for instance_type, memory_gb in SINGLE_GPU_TYPES:
        if size_gb <= memory_gb * _WEIGHTS_SHARE:
            return instance_type
    largest = SINGLE_GPU_TYPES[-1][0]
    raise ToolError(
        f"weights of {size_gb:g} GB leave no room for a cache on the one GPU of {largest}: "
        "take a quantized model, or name an --instance-type"
    )
