"""Models from the hub, by huggingface_hub against a server of one repository."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.model_source.conftest import contents
from tests.model_source.hub_server import COMMIT, OTHER_COMMIT, REPO, HubServer

ROOT = Path(__file__).parents[2]
# The library reads its environment when it is imported: each download is a process, as it is in `serve`.
SCRIPT = """
import json, sys
from pathlib import Path
from container.model_source import hub
from container.model_source.progress import Progress
from container.model_source.source import HubModel, ModelSourceError
lines = []
model = HubModel(sys.argv[1], sys.argv[3] or None, sys.argv[4] or None)
try:
    place = hub.download(model, [Path(sys.argv[2])], Progress(lines.append))
    print(json.dumps({"directory": str(place.directory), "lines": lines}))
except ModelSourceError as error:
    print(json.dumps({"error": str(error)}))
"""


def download(
    hub: HubServer | str, base: Path, repo: str = REPO, revision: str = "", token: str = "", **more: str
) -> dict[str, Any]:
    endpoint = hub if isinstance(hub, str) else hub.url
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(base / "hf"),
        "HF_HUB_ETAG_TIMEOUT": "2",
        **more,
    }
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", SCRIPT, repo, str(base), revision, token]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, timeout=120, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_only_what_a_model_needs_is_fetched(hub: HubServer, tmp_path: Path, model_files: dict[str, bytes]) -> None:
    hub.files |= {
        "pytorch_model.bin": b"never",
        "modeling.py": b"never",
        "README.md": b"never",
        "consolidated.safetensors": b"never",
        "original/config.json": b"never",
        "onnx/model.onnx": b"never",
    }
    found = download(hub, tmp_path)
    assert contents(Path(found["directory"])) == model_files
    assert found["lines"][:2] == ["looking for the model on the hub", "downloading the model: 0 of 3 MB"]
    assert sorted(set(hub.fetched)) == sorted(model_files)


def test_a_second_start_fetches_nothing_and_needs_no_network(hub: HubServer, tmp_path: Path) -> None:
    first = download(hub, tmp_path)
    hub.fetched.clear()
    assert download(hub, tmp_path)["directory"] == first["directory"]
    assert hub.fetched == []
    assert download("http://127.0.0.1:1", tmp_path)["directory"] == first["directory"]


def test_a_moved_branch_is_a_new_model(hub: HubServer, tmp_path: Path) -> None:
    first = Path(download(hub, tmp_path)["directory"])
    hub.commit = OTHER_COMMIT
    hub.files["config.json"] = b'{"new": 1}'
    second = Path(download(hub, tmp_path)["directory"])
    assert (first.name, second.name) == (COMMIT, OTHER_COMMIT)
    assert (second / "config.json").read_bytes() == b'{"new": 1}'


def test_a_file_that_breaks_off_is_fetched_to_its_end(
    hub: HubServer, tmp_path: Path, model_files: dict[str, bytes]
) -> None:
    hub.broken = 1
    assert contents(Path(download(hub, tmp_path)["directory"])) == model_files


def test_a_token_opens_a_private_repository(hub: HubServer, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    assert "no such repository on the hub; if it is private, set hf_token" in download(hub, tmp_path)["error"]
    assert "the token given has no access" in download(hub, tmp_path, token="hf_wrong")["error"]
    assert "directory" in download(hub, tmp_path, token="hf_secret")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((403, "GatedRepo"), "the repository is gated; accept its terms on the hub and set hf_token"),
        ((404, "RepoNotFound"), "no such repository on the hub"),
        ((403, ""), "the hub refuses the download (403)"),
        ((500, ""), "the hub answered 500"),
    ],
)
def test_refusals_in_one_line(hub: HubServer, tmp_path: Path, error: tuple[int, str], words: str) -> None:
    hub.error = error
    told = download(hub, tmp_path)["error"]
    assert words in told
    assert "\n" not in told
    assert told.startswith("owner/model: ")


def test_an_unknown_revision(hub: HubServer, tmp_path: Path) -> None:
    found = download(hub, tmp_path, revision="no-such-branch")
    assert found["error"] == "owner/model (revision no-such-branch): the repository has no such revision"


def test_a_revision_by_its_commit(hub: HubServer, tmp_path: Path) -> None:
    assert Path(download(hub, tmp_path, revision=COMMIT)["directory"]).name == COMMIT


def test_no_route(tmp_path: Path) -> None:
    told = download("http://127.0.0.1:1", tmp_path)["error"]
    assert told.startswith("owner/model: the container has no network route to the hub (")
    assert told.endswith("under network isolation let SageMaker bring the model (ModelDataSource), or name a directory")


def test_offline_says_so_unless_the_model_is_here(hub: HubServer, tmp_path: Path) -> None:
    told = download(hub, tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert told.startswith("owner/model: HF_HUB_OFFLINE is set, and it was not downloaded earlier")
    directory = download(hub, tmp_path)["directory"]
    assert download(hub, tmp_path, HF_HUB_OFFLINE="1")["directory"] == directory


def test_pickled_weights_alone_are_refused(hub: HubServer, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    hub.files["pytorch_model.bin"] = b"x"
    assert "pickled weights (.bin, .pt) are never loaded" in download(hub, tmp_path)["error"]
