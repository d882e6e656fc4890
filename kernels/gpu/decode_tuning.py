"""How decode attention is cut into programs and tiles: tables by architecture, head size and type, and their reasons.

Host arithmetic only. Nothing here may depend on lengths: a CUDA graph replays the grid that it was captured with.
"""

import dataclasses

import torch

from kernels.gpu.hardware import Hardware

MAX_SPLITS = 64
# Programs per multiprocessor that a launch aims at. Two to three are resident; four keep every multiprocessor busy
# while the last ones finish, and even out sequences of unlike lengths.
_PROGRAMS_PER_MULTIPROCESSOR = 4
_LEAST_WINDOW_TILES = 4
_MAX_TILE_HEADS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """One configuration of the split kernel.

    tile_heads: query heads of one KV head that one program holds, padded. tile_size: dimensions of a head, padded.
    tile_keys: keys of one step of its loop.
    """

    tile_heads: int
    tile_size: int
    tile_keys: int
    num_warps: int
    num_stages: int


def number_of_splits(hardware: Hardware, num_sequences: int, num_head_tiles: int, window_tiles: int = 0) -> int:
    """Into how many programs each (sequence, tile of heads) is split: a power of two, 1 to 64.

    The least that gives 4 programs per multiprocessor: on 132 multiprocessors and 8 KV heads 64 for one sequence, 16
    for 8, 4 for 32, 2 for 64 and 1 from 66 on. It knows the batch bucket and not the lengths. Programs past a
    sequence's end leave at once, and no split is smaller than a tile of keys, so that too many cost short sequences
    little. A window of `window_tiles` whole tiles (0: none) is split so that each part has four tiles at least, as
    joining costs a launch.
    """
    programs = max(1, num_sequences * num_head_tiles)
    wanted = -(-_PROGRAMS_PER_MULTIPROCESSOR * hardware.num_multiprocessors // programs)
    splits = min(MAX_SPLITS, _next_power_of_2(wanted))
    while window_tiles and splits > 1 and splits * _LEAST_WINDOW_TILES > window_tiles:
        splits //= 2
    return splits


def tiling(hardware: Hardware, group: int, head_dim: int, cache_dtype: torch.dtype) -> Tiling:
    """The configuration for `group` query heads per KV head.

    Bytes in flight are what counts: with num_stages = 3, two tiles each of K and V are under way (Little's law: 4.8
    TB/s times 1 us over 132 multiprocessors are 36 KiB each; an A10G, 600 GB/s over 80, needs 8 KiB). So tiles are of
    16 KiB where shared memory is large: 64 KiB in flight per program, three programs resident on an H200 and two on
    an A100, so that one's barriers hide behind another's products, and even one program per multiprocessor, at the end
    of a launch, keeps the memory busy. With 99 KiB, tiles are of 8 KiB, which lets two programs in.

    An e4m3 tile has twice the keys per byte and its codes must be converted: tiles of 8 KiB need 106 registers where
    those of 16 KiB need 187, and four programs are resident instead of two. Hopper has room for a third tile under way.

    At least 32 keys, or four warps would find less than 8 columns each; at most 128, or a short sequence would compute
    mostly padding.
    """
    tile_heads = min(_MAX_TILE_HEADS, max(16, _next_power_of_2(group)))
    is_e4m3 = cache_dtype == torch.float8_e4m3fn
    # The products sum over 16 elements at least; the codes of e4m3 come in two tiles of half the dimensions.
    tile_size = max(32 if is_e4m3 else 16, _next_power_of_2(head_dim))
    has_room = hardware.shared_memory_bytes > 128 * 1024
    tile_bytes = 16384 if has_room and not is_e4m3 else 8192
    tile_keys = min(128, max(32, tile_bytes // (tile_size * cache_dtype.itemsize)))
    # A tile of heads and values of more than 64 registers per thread goes to eight warps.
    num_warps = 8 if tile_heads * tile_size > 64 * 128 else 4
    num_stages = 4 if is_e4m3 and hardware.shared_memory_bytes > 200 * 1024 else 3
    # Beside the tiles of K and V lie the queries, the weights, and the row maxima of each warp.
    needed = 2 * (num_stages - 1) * tile_keys * tile_size * cache_dtype.itemsize
    needed += tile_heads * (tile_size + tile_keys) * max(2, cache_dtype.itemsize) + 2048
    if needed > hardware.shared_memory_bytes:
        num_stages = 2
    return Tiling(tile_heads, tile_size, tile_keys, num_warps, num_stages)


def _next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
