"""What the launchers must know of a GPU: its architecture, and how much of what it has. Must not know kernels."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU.

    capability: 10 * major + minor of the compute capability: 80 for sm_80. num_multiprocessors: SMs of the whole GPU.
    shared_memory_bytes: the most that one thread block may use.
    """

    name: str
    capability: int
    num_multiprocessors: int
    shared_memory_bytes: int

    @property
    def has_float8(self) -> bool:
        """Whether e4m3 is a type of the hardware (Ada, Hopper and later)."""
        return self.capability >= 89

    @property
    def has_wgmma(self) -> bool:
        """Whether the matrix units take operands from shared memory by warp groups (Hopper)."""
        return self.capability == 90


# One GPU of each architecture that is compiled ahead of time. Shared memory per block: CUDA C Programming Guide,
# "Technical Specifications per Compute Capability"; multiprocessors: the vendor's data sheets.
KNOWN = {
    80: Hardware("NVIDIA A100", 80, 108, 163 * 1024),
    86: Hardware("NVIDIA A10G", 86, 80, 99 * 1024),
    89: Hardware("NVIDIA L4", 89, 58, 99 * 1024),
    90: Hardware("NVIDIA H200", 90, 132, 227 * 1024),
}


def hardware_of(device: torch.device) -> Hardware:
    """The GPU behind a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return Hardware(
        name=properties.name,
        capability=10 * properties.major + properties.minor,
        num_multiprocessors=properties.multi_processor_count,
        shared_memory_bytes=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )
