"""What `--model` may name, the directories that SageMaker leaves, and the store's choice of a place."""

import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from container.model_source import store
from container.model_source.source import (
    HubModel,
    ModelSourceError,
    S3Model,
    choose_files,
    find_model_dir,
    local_model,
    parse_remote,
)
from container.model_source.store import Place, RemoteFile, bases, choose_place, find_complete


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Qwen/Qwen3-0.6B", HubModel("Qwen/Qwen3-0.6B", "v1", "hf_x")),
        ("s3://bucket/a/b/", S3Model("bucket", "a/b")),
        ("s3://bucket", S3Model("bucket", "")),
        ("/opt/ml/model", None),
        ("/opt/ml/additional-model-data-sources/base", None),
        ("./model", None),
        ("model", None),
        ("a/b/c", None),
        ("~/model", None),
    ],
)
def test_what_a_name_means(model: str, expected: object) -> None:
    assert parse_remote(model, "v1", "hf_x") == expected


def test_a_directory_hides_a_repository_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner/model").mkdir(parents=True)
    assert parse_remote("owner/model") is not None
    monkeypatch.chdir(tmp_path)
    assert parse_remote("owner/model") is None


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gs://bucket/x", r"a directory, a hub id \(OWNER/NAME\) or an s3:// prefix"),
        ("s3://Bad_Bucket/x", "'Bad_Bucket' is no name of an S3 bucket"),
        ("s3://bucket/model.tar.gz", "give it to SageMaker as ModelDataUrl"),
    ],
)
def test_names_that_can_be_nothing(model: str, words: str) -> None:
    with pytest.raises(ModelSourceError, match=words):
        parse_remote(model)


def test_secrets_and_names() -> None:
    model = HubModel("a/b", "main", "hf_secret")
    assert "hf_secret" not in f"{model!r} {model}"
    assert (model.name, S3Model("b", "x/y").name, S3Model("b", "").name) == ("a/b", "y", "b")


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def test_a_model_in_the_only_directory_of_opt_ml_model(tmp_path: Path, model_files: dict[str, bytes]) -> None:
    """An archive packed from outside; beside it an S3 console's empty "folder", code, and something hidden."""
    files = {f"my-model/{name}": content for name, content in model_files.items()}
    write(
        tmp_path, {**files, "folder": b"", "code/inference.py": b"", "code/config.json": b"{}", ".x/config.json": b""}
    )
    for path in (tmp_path, tmp_path / "my-model"):
        path.chmod(0o555)
    try:
        assert local_model(str(tmp_path)) == tmp_path / "my-model"
    finally:
        for path in (tmp_path, tmp_path / "my-model"):
            path.chmod(0o755)


def test_two_models_and_a_packed_one(tmp_path: Path) -> None:
    write(tmp_path, {"a/config.json": b"", "b/config.json": b""})
    with pytest.raises(ModelSourceError, match=r"several models are in it \(a, b\); name one"):
        find_model_dir(tmp_path)
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    write(tmp_path, {"model.tar.gz": b""})
    with pytest.raises(ModelSourceError, match=r"model.tar.gz is still packed"):
        find_model_dir(tmp_path)


def test_one_set_of_weights_is_chosen() -> None:
    names = ["config.json", "consolidated.safetensors", "model.safetensors", "tokenizer.json", "x.py", "code/a.bin"]
    assert choose_files(names, "m", with_code=False) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert choose_files(names, "m", with_code=True) == [
        "code/a.bin",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "x.py",
    ]
    only = ["config.json", "consolidated.safetensors"]
    assert choose_files(only, "m", with_code=False) == only


MANIFEST = {"config.json": RemoteFile(2, "a"), "model.safetensors": RemoteFile(1000, "b")}


def test_nothing_is_downloaded_below_the_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="nothing may be written below /opt/ml/model"):
        bases("/opt/ml/model/cache")
    with pytest.raises(ModelSourceError, match="nothing may be written"):
        bases("/opt/ml/../ml/model")
    monkeypatch.setattr(Path, "home", lambda: Path("/opt/ml/model/home"))
    assert bases(None) == [Path("/tmp/galley")]
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert bases(None) == [tmp_path / ".cache/galley", Path("/tmp/galley")]


def test_the_place_with_room_is_chosen_and_an_unfinished_download_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large, third = (tmp_path / name for name in ("small", "large", "third"))
    free = {small: 100 * 2**20, large: 2**40, third: 2**40}
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    assert choose_place([small, large, third], "key", MANIFEST).base == large
    Place(third, "key").prepare(MANIFEST)
    write(third / "key", {"config.json": b"{}"})
    assert choose_place([small, large, third], "key", MANIFEST).base == third
    with pytest.raises(ModelSourceError, match=r"no room for the model: .*small: 0.0 GB to download, 0.1 GB free"):
        choose_place([small], "key", MANIFEST)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root finds no directory that it may not write")
def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelSourceError, match=r"file/x: Not a directory; set download_dir"):
        choose_place([tmp_path / "file/x"], "key", MANIFEST)


def test_a_place_is_complete_only_with_every_file_at_its_length(tmp_path: Path) -> None:
    place = Place(tmp_path, "key")
    place.prepare(MANIFEST)
    write(place.directory, {"config.json": b"{}", "model.safetensors": b"x" * 999})
    with pytest.raises(ModelSourceError, match=r"model.safetensors has 999 bytes after its download instead of 1000"):
        place.finish(MANIFEST)
    assert find_complete([tmp_path], "key") is None
    write(place.directory, {"model.safetensors": b"x" * 1000})
    place.finish(MANIFEST)
    assert find_complete([tmp_path], "key", MANIFEST) is not None
    assert not place.is_complete({**MANIFEST, "config.json": RemoteFile(2, "other")})
    (place.directory / "config.json").unlink()
    assert not place.is_complete()


def test_two_processes_do_not_download_the_same(tmp_path: Path) -> None:
    waited = threading.Event()
    order: list[str] = []

    def second() -> None:
        with Place(tmp_path, "key").locked(waited.set):
            order.append("second")

    with Place(tmp_path, "key").locked(lambda: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(5)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
