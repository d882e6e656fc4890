"""Which scripts an artifact holds, by both contracts, and importing them.

Knows file names and the contracts' environment variables, which `container.config` has read. Must not know what a
script's functions do. Imports nothing heavy: the supervisor asks here whether there is a script at all.
"""

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class CustomCodeError(Exception):
    """The artifact's code cannot be used. One line for the operator."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CustomCodeSettings:
    """What a worker is told.

    artifact_file: a file that will hold the path of the artifact as soon as the supervisor knows it.
    environment: the contracts' variables, as far as they are set.
    """

    artifact_file: str
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scripts:
    """toolkit: `code/inference.py` by the inference toolkit's contract. standards: `model.py` by the newer one.

    root: where the newer contract looks; it is the artifact unless a variable names another directory.
    """

    toolkit: Path | None
    standards: Path | None
    artifact: Path
    root: Path

    def __bool__(self) -> bool:
        return self.toolkit is not None or self.standards is not None


def find_scripts(artifact: Path, environment: Mapping[str, str]) -> Scripts:
    """The scripts of an artifact. Raises CustomCodeError when one of another name than the usual is not there."""
    submitted = environment.get("SAGEMAKER_SUBMIT_DIRECTORY", "")
    # The SDK may leave the address of an archive here, which the platform has unpacked to `code/`.
    code = Path(submitted) if submitted and Path(submitted).is_dir() else artifact / "code"
    toolkit = _script(code, environment, "SAGEMAKER_PROGRAM", "inference.py")
    root = Path(environment.get("SAGEMAKER_MODEL_PATH") or artifact)
    standards = _script(root, environment, "CUSTOM_SCRIPT_FILENAME", "model.py")
    return Scripts(toolkit, standards, artifact, root)


def _script(directory: Path, environment: Mapping[str, str], variable: str, default: str) -> Path | None:
    path = directory / (environment.get(variable) or default)
    if path.is_file():
        return path
    # SageMaker's SDK names the default whether there is one or not.
    if environment.get(variable, default) != default:
        raise CustomCodeError(f"{variable}={environment[variable]}: there is no {path}")
    return None


def import_script(path: Path) -> ModuleType:
    """The module, under its own name, with its directory importable. Raises whatever the script raises."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CustomCodeError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def resolve(spec: str, variable: str, script: ModuleType | None, directory: Path) -> Callable[..., Any]:
    """What a variable names: `model:fn`, `file.py:fn`, `/abs/file.py:fn`, `pkg.mod:fn` or `:Class.method`.

    Raises CustomCodeError when it names nothing that can be called.
    """
    place, separator, name = spec.rpartition(":")
    if not separator or not name:
        raise CustomCodeError(f"{variable}={spec}: must be MODULE:FUNCTION or FILE.py:FUNCTION")
    try:
        module = _module(place, script, directory)
        found: Any = module
        for part in name.split("."):
            # A method is one of an instance.
            found = getattr(found() if isinstance(found, type) else found, part)
    except (ImportError, AttributeError, OSError) as error:
        raise CustomCodeError(f"{variable}={spec}: {error}") from error
    if not callable(found):
        raise CustomCodeError(f"{variable}={spec}: it is no function")
    return found  # type: ignore[no-any-return]


def _module(place: str, script: ModuleType | None, directory: Path) -> ModuleType:
    if script is not None and place in ("", "model", script.__name__):
        return script
    if place.endswith(".py"):
        return import_script(directory / place)
    if not place:
        raise ImportError("there is no script")
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return importlib.import_module(place)
