"""`build_host_code`: the C that Triton compiles when a kernel is first launched, compiled where there is no GPU.

Triton 3.7 has one module that loads and launches kernels, 3.6 one more for each signature. They lie in Triton's cache
beside the kernels, under a name that follows from their source, so a machine that finds them there needs no C compiler.
They are linked with the driver's library. One of the same name, whose functions do nothing, stands in for it: a module
is built and loaded with it, and on a GPU's machine finds the real one, in which the functions have the same names.
"""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton
from triton.backends.nvidia import driver as nvidia

_FUNCTION = re.compile(r"\bcu[A-Z]\w+")
_NAME = "libcuda.so.1"


def build_host_code(kernels: Iterable[Any]) -> None:
    """Build what launching these compiled kernels takes, into Triton's cache, where it is not there yet.

    For a process that launches nothing. Raises OSError, subprocess.CalledProcessError or RuntimeError where there is no
    C compiler or no header of Python.
    """
    with tempfile.TemporaryDirectory() as directory:
        library = _stand_in(Path(directory))
        triton.knobs.nvidia.libcuda_path = directory
        nvidia.libcuda_dirs.cache_clear()
        nvidia.library_dirs.cache_clear()
        # Whoever asks for a library of this name gets the one that is loaded.
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        nvidia.CudaUtils()
        if hasattr(nvidia, "make_launcher"):
            for kernel in kernels:
                nvidia.CudaLauncher(kernel.src, kernel.metadata)


def _stand_in(directory: Path) -> Path:
    """A library with all functions of the driver that Triton's sources name, or the linker would leave it out."""
    sources = Path(nvidia.__file__), Path(nvidia.__file__).with_name("driver.c")
    names = sorted({name for source in sources for name in _FUNCTION.findall(source.read_text())})
    code, library = directory / "stand_in.c", directory / _NAME
    code.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "cc")
    command = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{_NAME}", "-o", str(library), str(code)]
    subprocess.run(command, check=True, capture_output=True)
    return library
