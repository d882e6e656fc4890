"""What `--model` names: a local directory, a hub repository or an S3 prefix; and how a local directory is looked at.

Knows names and directories. Must not know how anything is downloaded.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from engine.text import ChatTemplate, Tokenizer

# The hub's own rule, without names that are a single word: those would hide a mistyped directory.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")
# S3's rule for bucket names, and access points' ARNs are refused with it.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CODE_DIRECTORY = "code"
# What a served model is made of. Nothing here is ever unpickled: .bin, .pt, .ckpt and their like are not even fetched.
_MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken")
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class ModelSourceError(Exception):
    """The model cannot be had. One line for the operator, that says what to do."""


@dataclasses.dataclass(frozen=True)
class HubModel:
    """A repository of the hub. revision: branch, tag or commit; None is the default branch."""

    repo_id: str
    revision: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What the model is called where the operator says nothing."""
        return self.repo_id

    def __str__(self) -> str:
        return self.repo_id + (f" (revision {self.revision})" if self.revision else "")


@dataclasses.dataclass(frozen=True)
class S3Model:
    """The objects below a prefix. prefix: without slashes at its ends; empty for a whole bucket."""

    bucket: str
    prefix: str

    @property
    def name(self) -> str:
        """What the model is called where the operator says nothing."""
        return PurePosixPath(self.prefix).name or self.bucket

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


RemoteModel = HubModel | S3Model


def parse_remote(model: str, revision: str | None = None, token: str | None = None) -> RemoteModel | None:
    """What must be downloaded; None for a local path. Raises ModelSourceError for what no model can be."""
    scheme, separator, rest = model.partition("://")
    if separator:
        if scheme != "s3":
            raise ModelSourceError(f"{model}: a model is a directory, a hub id (OWNER/NAME) or an s3:// prefix")
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ModelSourceError(f"{model}: {bucket!r} is no name of an S3 bucket")
        if prefix.endswith((".tar.gz", ".tgz", ".tar")):
            raise ModelSourceError(
                f"{model}: an archive cannot be served from S3; give it to SageMaker as ModelDataUrl, or give the "
                "prefix of its unpacked files"
            )
        return S3Model(bucket, prefix.strip("/"))
    # A directory that exists wins, as it does in transformers and vLLM.
    if Path(model).expanduser().exists() or not _HUB_ID.fullmatch(model):
        return None
    return HubModel(model, revision or None, token or None)


def local_model(source: str) -> Path:
    """The directory to serve for a local path. Raises ModelSourceError when there is none that can be served."""
    path = Path(source).expanduser()
    if not path.is_dir():
        raise ModelSourceError(f"{source}: no such directory, and no hub id (OWNER/NAME) or s3:// prefix either")
    # Not resolved: the name of a link is the name that its maker wants to see served.
    directory = find_model_dir(path.absolute())
    check_servable(directory)
    return directory


def find_model_dir(directory: Path) -> Path:
    """`directory`, or the one directory in it that holds a model: so does an archive that was packed from outside.

    Raises ModelSourceError when several do, or when only a packed archive is there. Where none does, `directory` is
    returned: what reads it says best what it misses.
    """
    names = (path.relative_to(directory).as_posix() for path in directory.glob("*/config.json") if path.is_file())
    if (directory / "config.json").is_file():
        return directory
    root = _model_root(names, str(directory))
    if root is None and (packed := sorted(path.name for path in directory.glob("*.tar*") if path.is_file())):
        raise ModelSourceError(f"{directory}: {packed[0]} is still packed; unpack it, or let SageMaker (ModelDataUrl)")
    return directory / root if root else directory


def check_servable(directory: Path) -> None:
    """Find out early what the web workers would only when the engine has loaded its weights.

    Raises ModelSourceError when tokenizer or chat template cannot be read.
    """
    try:
        ChatTemplate.from_dir(directory, Tokenizer.from_dir(directory))
    except ValueError as error:
        raise ModelSourceError(f"{directory} cannot be served: {' '.join(str(error).split())}") from None


def choose_files(names: Iterable[str], where: str, *, with_code: bool) -> list[str]:
    """Of the files of a repository or prefix, by relative name, those that are served. Raises ModelSourceError.

    The model's own directory only: checkpoints of a training run and weights in other formats often lie below it.
    with_code: also `code/` and the scripts beside the model; not for the hub, whose code is a stranger's.
    """
    all_names = sorted(names)
    root = _model_root((name for name in all_names if PurePosixPath(name).name == "config.json"), where)
    if root is None:
        raise ModelSourceError(f"{where}: there is no config.json, so it is no model")
    chosen = [name for name in all_names if _parent(name) == root and name.endswith(_MODEL_SUFFIXES)]
    weights = [name for name in chosen if name.endswith(".safetensors")]
    if not weights:
        pickled = any(name.endswith(_PICKLED_SUFFIXES) for name in all_names)
        why = "; pickled weights (.bin, .pt) are never loaded: convert them" if pickled else ""
        raise ModelSourceError(f"{where}: there are no .safetensors weights{why}")
    # The same weights a second time, in the form of another library.
    doubled = {name for name in weights if PurePosixPath(name).name.startswith("consolidated")}
    if doubled != set(weights):
        chosen = [name for name in chosen if name not in doubled]
    if with_code:
        folders = tuple(f"{folder}{_CODE_DIRECTORY}/" for folder in {"", f"{root}/" if root else ""})
        chosen += [n for n in all_names if n.startswith(folders) or (n.endswith(".py") and _parent(n) in ("", root))]
    return sorted(set(chosen))


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _model_root(config_names: Iterable[str], where: str) -> str | None:
    """The directory of the model among the given config.json files: "" at the top, or the only one a level deeper."""
    roots = sorted({_parent(name) for name in config_names if name.count("/") <= 1})
    if "" in roots:
        return ""
    roots = [root for root in roots if root != _CODE_DIRECTORY and not root.startswith(".")]
    if len(roots) > 1:
        raise ModelSourceError(f"{where}: several models are in it ({', '.join(roots[:5])}); name one of them")
    return roots[0] if roots else None
