"""Packages for a GPU machine without a network: downloaded here as wheels, unpacked there beside what it has.

    make gpu-wheels                                     # here: build/gpu-wheels, for CPython 3.12 on x86-64

`benchmarks/gpu_check.py` unpacks them there into a folder that it puts before the machine's own packages; nothing of
the machine is changed. torch, triton, numpy, transformers, safetensors, tokenizers and pytest are the machine's.
Versions are those of constraints.txt. Must not know what the packages are for beyond the three lists.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu-wheels"
SITE = ROOT / "build" / "gpu-site"
# Each with all that it needs, since none is looked for: distributions as constraints.txt spells them.
ENGINE_AND_TESTS = (
    "msgspec", "Jinja2", "MarkupSafe", "tqdm", "PyYAML", "hypothesis", "sortedcontainers", "pytest-timeout",
)  # fmt: skip
WEB = (
    "Flask", "Werkzeug", "click", "blinker", "itsdangerous", "gunicorn", "packaging", "gevent", "greenlet",
    "zope.event", "zope.interface",
)  # fmt: skip
LOAD = (
    "aiohttp", "aiohappyeyeballs", "aiosignal", "attrs", "frozenlist", "multidict", "propcache", "yarl", "idna",
    "typing_extensions",
)  # fmt: skip
# What must be importable for the engine and its tests, and for serving on top.
ENGINE_MODULES = ("msgspec", "jinja2", "tqdm", "yaml", "hypothesis", "pytest_timeout", "transformers", "tokenizers")
SERVING_MODULES = ("flask", "gunicorn", "gevent", "aiohttp")
MAX_BYTES = 50 * 2**20
# pip takes each of these names for exactly itself.
_PLATFORMS = (
    "manylinux_2_34_x86_64", "manylinux_2_31_x86_64", "manylinux_2_28_x86_64", "manylinux_2_27_x86_64",
    "manylinux_2_26_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
    "manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64",
)  # fmt: skip
HOW = "run `make gpu-wheels` on a machine with a network and bring build/gpu-wheels along"


def requirements() -> list[str]:
    """`name==version` of every package. Raises KeyError for one that constraints.txt does not pin."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    return [f"{name}=={pins[name]}" for name in (*ENGINE_AND_TESTS, *WEB, *LOAD)]


def download(python_version: str, folder: Path) -> int:
    """Fill `folder` anew; bytes of all wheels. Raises ValueError where that is more than may travel."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python_version}"]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    subprocess.run([*command, "--dest", str(folder), *requirements()], check=True)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.whl"))
    if num_bytes > MAX_BYTES:
        raise ValueError(f"the wheels take {num_bytes} bytes, more than {MAX_BYTES}")
    return num_bytes


def install(folder: Path, site: Path) -> str | None:
    """Unpack all wheels of `folder` into `site`; why that failed, in one line."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        return f"no wheels in {folder}"
    shutil.rmtree(site, ignore_errors=True)
    # A folder and not a virtual environment: made from a Python that is one itself, it would not see that one's torch.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    command += ["--no-deps", "--no-compile", "--no-cache-dir", "--target", str(site), *wheels]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return None if ran.returncode == 0 else ran.stderr.strip().splitlines()[-1][:300]


def missing(modules: tuple[str, ...], site: Path | None = None) -> list[str]:
    """Those that cannot be found, neither in this Python nor in `site`."""
    return [
        name
        for name in modules
        if importlib.util.find_spec(name) is None
        and not (site is not None and ((site / name).exists() or (site / f"{name}.py").exists()))
    ]


def prepare() -> Path | None:
    """A folder to put before the machine's packages; None where nothing is missing, or nothing can be done about it."""
    if not missing((*ENGINE_MODULES, *SERVING_MODULES)):
        return None
    if install(FOLDER, SITE) is not None:
        return None
    return SITE


def main() -> None:
    """Download and say how much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python-version", default="3.12", help="of the GPU machine (default: 3.12)")
    args = parser.parse_args()
    num_bytes = download(args.python_version, FOLDER)
    print(f"{len(list(FOLDER.glob('*.whl')))} wheels, {num_bytes / 2**20:.1f} MiB in {FOLDER}")


if __name__ == "__main__":
    main()
