"""Models from S3: what is fetched, what is checked, what an interrupted download leaves, and each error in one line."""

import os
from pathlib import Path

import boto3
import moto
import pytest

from container.model_source import s3 as s3_source
from container.model_source import s3_parts
from container.model_source.s3 import download
from container.model_source.source import ModelSourceError, S3Model
from container.model_source.store import Place
from tests.model_source.conftest import Lines, aws_environment, contents
from tests.model_source.s3_server import S3Server

MODEL = S3Model("bucket", "models/tiny")
PART = 256 * 1024


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_parts, "PART_BYTES", PART)
    # What is tested here is our own client; `test_common_runtime` tests the other.
    monkeypatch.setattr(s3_source.importlib.util, "find_spec", lambda name: None)


def test_a_prefix_is_fetched_in_parts_without_what_no_model_needs(
    s3: S3Server, tmp_path: Path, told: Lines, model_files: dict[str, bytes]
) -> None:
    s3.objects |= {
        "models/tiny/": b"",
        "models/tiny/code/": b"",
        "models/tiny/code/inference.py": b"x = 1",
        "models/tiny/code/empty.py": b"",
        "models/tiny/pytorch_model.bin": b"never",
        "models/tiny/checkpoint-5/model.safetensors": b"never",
        "models/tiny-2/config.json": b"another model",
    }
    place = download(MODEL, [tmp_path], told.progress)
    code = {"code/inference.py": b"x = 1", "code/empty.py": b""}
    assert contents(place.directory) == {**model_files, **code}
    reads = [start for key, start in s3.reads if key.endswith(".safetensors")]
    assert sorted(reads) == list(range(0, 3_000_000, PART))
    assert told.lines[1] == "downloading the model: 0 of 3 MB"


def test_moto_agrees(
    tmp_path: Path, told: Lines, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        for i in range(1200):  # more than one page of a listing
            client.put_object(Bucket="bucket", Key=f"models/tiny/a/{i}.txt", Body=b"")
        for name, content in model_files.items():
            client.put_object(Bucket="bucket", Key=f"models/tiny/{name}", Body=content)
        place = download(MODEL, [tmp_path], told.progress)
        assert contents(place.directory) == model_files
        with pytest.raises(ModelSourceError, match="there is no such bucket"):
            download(S3Model("nowhere", ""), [tmp_path], told.progress)


def test_a_second_start_fetches_nothing_until_an_object_changes(s3: S3Server, tmp_path: Path, told: Lines) -> None:
    first = download(MODEL, [tmp_path], told.progress)
    s3.reads.clear()
    assert download(MODEL, [tmp_path], told.progress).directory == first.directory
    assert s3.reads == []
    s3.objects["models/tiny/config.json"] = b'{"new": 1}'
    place = download(MODEL, [tmp_path], told.progress)
    assert s3.reads == [("models/tiny/config.json", 0)]
    assert (place.directory / "config.json").read_bytes() == b'{"new": 1}'


def test_a_read_that_breaks_off_is_read_again(
    s3: S3Server, tmp_path: Path, told: Lines, model_files: dict[str, bytes]
) -> None:
    s3.broken = 3
    place = download(MODEL, [tmp_path], told.progress)
    assert contents(place.directory) == model_files
    assert told.progress.line() == "downloading the model: 3 of 3 MB"


def test_an_interrupted_download_leaves_no_half_file_and_goes_on_with_its_parts(
    s3: S3Server, tmp_path: Path, told: Lines, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_parts, "NUM_THREADS", 1)
    monkeypatch.setattr(s3_parts, "_FIRST_PAUSE_S", 0.001)
    num_good = 5
    whole = s3_parts._File._fetch_once

    def fail_later(self: s3_parts._File, start: int, end: int, num_read: list[int]) -> None:
        if start >= num_good * PART:
            raise OSError(28, "No space left on device")
        whole(self, start, end, num_read)

    monkeypatch.setattr(s3_parts._File, "_fetch_once", fail_later)
    with pytest.raises(ModelSourceError, match="the disk is full while downloading; set download_dir"):
        download(MODEL, [tmp_path], told.progress)
    directory = Place(tmp_path, "s3/bucket/models/tiny").directory
    assert not (directory / "model.safetensors").exists()
    monkeypatch.setattr(s3_parts._File, "_fetch_once", whole)
    s3.reads.clear()
    assert contents(download(MODEL, [tmp_path], told.progress).directory) == model_files
    reads = sorted(start for key, start in s3.reads if key.endswith(".safetensors"))
    assert reads == list(range(num_good * PART, 3_000_000, PART))


def test_parts_of_an_older_version_are_not_kept(
    s3: S3Server, tmp_path: Path, told: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: s3_parts._File, *args: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(s3_parts._File, "_finish", fail)
        with pytest.raises(ModelSourceError):
            download(MODEL, [tmp_path], told.progress)
    fresh = os.urandom(3_000_000)
    s3.objects["models/tiny/model.safetensors"] = fresh
    place = download(MODEL, [tmp_path], told.progress)
    assert (place.directory / "model.safetensors").read_bytes() == fresh


def test_an_object_that_changes_meanwhile_is_noticed(
    s3: S3Server, tmp_path: Path, told: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = s3_parts.fetch

    def change_first(*args: object) -> None:
        s3.objects["models/tiny/model.safetensors"] = os.urandom(3_000_000)
        original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(s3_parts, "fetch", change_first)
    with pytest.raises(ModelSourceError, match="was changed or removed while it was downloaded"):
        download(MODEL, [tmp_path], told.progress)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ((403, "AccessDenied"), "access denied; the container's role needs s3:ListBucket and s3:GetObject; under netw"),
        ((400, "ExpiredToken"), "S3 does not take the container's credentials (ExpiredToken)"),
        ((404, "NoSuchBucket"), "there is no such bucket"),
    ],
)
def test_refusals_in_one_line(s3: S3Server, tmp_path: Path, told: Lines, refused: tuple[int, str], words: str) -> None:
    s3.refused = refused
    with pytest.raises(ModelSourceError) as caught:
        download(MODEL, [tmp_path], told.progress)
    assert words in str(caught.value)
    assert str(caught.value).startswith("s3://bucket/models/tiny: ")
    assert "\n" not in str(caught.value)


def test_no_credentials(s3: S3Server, tmp_path: Path, told: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(ModelSourceError, match=r"no AWS credentials; under network isolation.*ModelDataSource"):
        download(MODEL, [tmp_path], told.progress)


def test_no_route_says_so_unless_the_model_is_here(
    s3: S3Server, tmp_path: Path, told: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = download(MODEL, [tmp_path], told.progress)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert download(MODEL, [tmp_path], told.progress).directory == place.directory
    with pytest.raises(ModelSourceError, match=r"no network route to S3 .*ModelDataSource"):
        download(S3Model("bucket", "other"), [tmp_path], told.progress)


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({}, "there are no objects below this prefix"),
        ({"m/readme.txt": b"x"}, "there is no config.json"),
        ({"m/config.json": b"{}", "m/pytorch_model.bin": b"x"}, r"no .safetensors weights; pickled weights"),
        ({"m/a/config.json": b"{}", "m/b/config.json": b"{}"}, r"several models are in it \(a, b\)"),
        ({"m/config.json": b"{}", "m/a.safetensors": b"", "m/code/../../x": b"x"}, "is no name of a file"),
    ],
)
def test_what_is_no_model(s3: S3Server, tmp_path: Path, told: Lines, objects: dict[str, bytes], words: str) -> None:
    s3.objects = objects
    with pytest.raises(ModelSourceError, match=words):
        download(S3Model("bucket", "m"), [tmp_path], told.progress)


def test_common_runtime(
    s3: S3Server, tmp_path: Path, told: Lines, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same download by the AWS Common Runtime, where it is installed: `make setup` does."""
    pytest.importorskip("awscrt")
    monkeypatch.undo()
    for name, value in aws_environment(s3.url).items():
        monkeypatch.setenv(name, value)
    given: list[object] = []
    monkeypatch.setattr(s3_parts, "fetch", lambda client, bucket, wanted, progress: given.extend(wanted))
    place = download(MODEL, [tmp_path], told.progress)
    assert contents(place.directory) == model_files
    assert given == []
    assert told.progress.line() == "downloading the model: 3 of 3 MB"
    s3.refused = (403, "AccessDenied")
    with pytest.raises(ModelSourceError, match="access denied"):
        download(S3Model("bucket", "other"), [tmp_path], told.progress)


def test_threads_go_on_where_the_common_runtime_fails(
    s3: S3Server, tmp_path: Path, told: Lines, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("awscrt")
    from container.model_source import s3_crt

    def fail(*args: object) -> None:
        raise s3_crt.CommonRuntimeFailed("AWS_IO_DNS_QUERY_FAILED")

    monkeypatch.undo()
    for name, value in aws_environment(s3.url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_crt, "fetch", fail)
    assert contents(download(MODEL, [tmp_path], told.progress).directory) == model_files
