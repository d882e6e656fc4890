"""`code/inference.py`: the toolkit's functions, in real files, under Flask's test client."""

import dataclasses
import json
import threading
import zipfile
from pathlib import Path

import pytest

from container.custom_code.requirements import wanted
from container.custom_code.scripts import CustomCodeError, Scripts
from tests.custom_code.conftest import Broken, Start
from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine, wait_until

FOUR = """
import json
def model_fn(model_dir):
    return {"dir": model_dir}
def input_fn(body, content_type):
    return json.loads(body)["x"], type(body).__name__, content_type
def predict_fn(data, model):
    return [*data, model["dir"].rpartition("/")[2]]
def output_fn(prediction, accept):
    return json.dumps([*prediction, accept])
"""


def test_the_four_functions(start: Start) -> None:
    answer = start({"code/inference.py": FOUR}).post("/invocations", json={"x": 7})
    assert answer.json == [7, "str", "application/json", "artifact-0", "application/json"]
    assert answer.content_type == "application/json"


def test_other_types_come_as_bytes_and_the_accept_header_names_the_answers(start: Start) -> None:
    script = """
def transform_fn(model, body, content_type, accept):
    return (repr((body, content_type, accept)), "text/plain") if accept == "application/x" else repr(body)
"""
    client = start({"code/inference.py": script}, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv")
    answer = client.post("/invocations", data=b"\xff", content_type="image/png", headers={"Accept": "application/x"})
    assert (answer.text, answer.content_type) == (
        repr((b"\xff", "image/png", "application/x")),
        "text/plain",
    )
    assert client.post("/invocations", data=b"a", headers={"Accept": "*/*"}).content_type == "text/csv"
    assert client.post("/invocations", data=b"\xff", content_type="text/csv").status_code == 400


def test_a_trailing_context_has_the_engine_and_the_headers(start: Start) -> None:
    script = """
def pre_model_fn(model_dir):
    global prepared
    prepared = True
def model_fn(model_dir, context):
    assert prepared
    return context.engine, context.system_properties["model_dir"] == model_dir
def model_warmup_fn(model_dir, model):
    assert model[0].generate("warm", max_tokens=1).num_output_tokens == 1
def predict_fn(data, model, context):
    text = model[0].generate([{"role": "user", "content": data["ask"]}], max_tokens=5, stop="llo")
    return {"text": text.text, "end": text.finish_reason, "who": context.get_request_header(0, "X-Who"), "ok": model[1]}
"""
    answer = start({"code/inference.py": script}).post("/invocations", json={"ask": "?"}, headers={"X-Who": "me"})
    assert answer.json == {"text": "He", "end": "stop", "who": "me", "ok": True}


def test_without_model_fn_the_model_is_the_engine(start: Start, engine: ScriptedEngine) -> None:
    client = start({"code/inference.py": "def output_fn(prediction, accept):\n    return [*prediction, 1]"})
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 3}}
    assert client.post("/invocations", json=body).json == [{"generated_text": REPLY[:3]}, 1]
    assert engine.generated[-1].params.max_tokens == 3
    refused = client.post("/invocations", json={"inputs": "Hi", "parameters": {"nonsense": 3}})
    assert refused.status_code == 400
    assert "nonsense" in refused.json["error"]["message"]  # type: ignore[index]
    assert client.post("/invocations", data=b"{", content_type="application/json").status_code == 400
    parameters = {"max_new_tokens": 2, "do_sample": True, "stop": ["x"], "return_full_text": True}
    answer = client.post("/invocations", json={"inputs": ["a", "b"], "parameters": parameters})
    assert answer.json == [{"generated_text": text + REPLY[:2]} for text in "ab"] + [1]
    assert engine.generated[-1].params.stop == ("x",)
    for field in ({"stream": True}, {"foo": 1}, {"parameters": {"details": True}}, {"parameters": {"top_p": 7}}):
        refused = client.post("/invocations", json={"inputs": "a", **field})
        assert refused.status_code == 400
        assert str(next(iter(field))) in refused.json["error"]["param"]  # type: ignore[index]


def test_a_script_may_import_the_engine_and_stream(start: Start, engine: ScriptedEngine) -> None:
    script = """
from container.custom_code import engine
import threading
def transform_fn(model, body, content_type, accept):
    return (f"[{threading.get_native_id() != MAIN}{piece}]" for piece in engine.stream(body, max_tokens=3)), "text/x"
"""
    script = f"MAIN = {threading.get_native_id()}\n" + script
    answer = start({"code/inference.py": script}).post("/invocations", data="Hi", content_type="text/plain")
    assert answer.text == "".join(f"[True{char}]" for char in REPLY[:3])
    assert engine.num_running == 0


def test_a_stream_that_is_left_ends_its_generation(start: Start, engine: ScriptedEngine) -> None:
    script = """
def transform_fn(model, body, content_type, accept):
    for piece in model.stream("Hi", max_tokens=300):
        return piece
"""
    engine.step_s = 0.05
    assert start({"code/inference.py": script}).post("/invocations", data="x").text == REPLY[0]
    wait_until(lambda: engine.aborted, what="an abort")
    assert engine.num_running == 0


def test_an_exception_is_an_error_body_here_and_a_traceback_in_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    script = "def predict_fn(data, model):\n    raise KeyError('the secret of ' + data['x'])"
    answer = start({"code/inference.py": script}).post("/invocations", json={"x": "y"})
    assert answer.status_code == 500
    assert answer.json["error"]["code"] == "internal_error"  # type: ignore[index]
    assert "secret" not in answer.text
    assert "the secret of y" in caplog.text
    assert "in predict_fn" in caplog.text


@pytest.mark.parametrize("error", ["SystemExit(0)", "KeyboardInterrupt", "BaseException('secret')"])
def test_an_error_that_ends_a_process_ends_its_request_only(
    start: Start, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    client = start({"code/inference.py": f"def predict_fn(data, model):\n    raise {error}"})
    for _ in range(2):
        answer = client.post("/invocations", json={"x": "y"})
        assert (answer.status_code, answer.json["error"]["code"]) == (500, "internal_error")  # type: ignore[index]
        assert "secret" not in answer.text
    assert f"custom code raised {error.partition('(')[0]}" in caplog.text
    assert "in predict_fn" in caplog.text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"code/inference.py": "import nonsense_of_ours"}, "No module named 'nonsense_of_ours'"),
        ({"code/inference.py": "def model_fn(model_dir):\n    return 1 / 0"}, "ZeroDivisionError"),
        ({"code/inference.py": "raise SystemExit(3)"}, "SystemExit"),
        ({"code/inference.py": "x = 1"}, "no model_fn, predict_fn or transform_fn"),
        ({"code/inference.py": "def transform_fn(): pass\ndef input_fn(): pass"}, "transform_fn excludes"),
        (
            {
                "code/inference.py": "def predict_fn(): pass",
                "code/requirements.txt": "--no-index\ngalley-has-no-such-package",
            },
            "cannot install",
        ),
    ],
)
def test_a_broken_script_ends_the_start(
    start: Start, caplog: pytest.LogCaptureFixture, files: dict[str, str], words: str
) -> None:
    with pytest.raises(Broken):
        start(files)
    assert words in caplog.text


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a package `galley_probe`, which pip installs where it does no harm to the environment of the tests."""
    path, name = tmp_path / "wheels/galley_probe-1.0-py3-none-any.whl", "galley_probe-1.0.dist-info"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("galley_probe.py", "VALUE = 7")
        archive.writestr(f"{name}/METADATA", "Metadata-Version: 2.1\nName: galley-probe\nVersion: 1.0\n")
        archive.writestr(f"{name}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}/RECORD", "")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    return path


PROBE = "import galley_probe\ndef {}(*_):\n    return str(galley_probe.VALUE)"


def test_requirements_are_installed_before_the_script_is_imported(start: Start, wheel: Path) -> None:
    files = {"code/inference.py": PROBE.format("transform_fn"), "code/requirements.txt": f"--no-index\n{wheel}\n"}
    assert start(files).post("/invocations", data="x").text == "7"


@pytest.mark.parametrize("given", ["a file", "arguments"])
def test_requirements_of_the_newer_contract(
    start: Start, wheel: Path, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    files = {"model.py": PROBE.format("custom_sagemaker_invocation_handler"), "requirements.txt": "galley-nothing"}
    environment = {"STANDARD_PIP_ARGS": f"--no-index {wheel}"}
    if given == "a file":
        files["requirements.txt"] = f"--no-index\n--find-links {wheel.parent}\ngalley-probe\n"
        environment = {}
    assert start(files, **environment).post("/invocations", data="x").text == "7"
    assert str(wheel) not in caplog.text, "arguments may hold a password"


def test_wheels_in_the_artifact_are_found(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements.txt").touch()
    scripts = Scripts(toolkit=None, standards=tmp_path / "model.py", artifact=tmp_path, root=tmp_path)
    [one] = wanted(scripts, {}, has_hooks=False)
    assert one.arguments[2:] == ["--find-links", str(tmp_path / "requirements")]
    assert wanted(scripts, {"STANDARD_AUTO_INSTALL_REQ": "False"}, has_hooks=False) == []
    assert wanted(dataclasses.replace(scripts, standards=None), {}, has_hooks=False) == []
    with pytest.raises(CustomCodeError, match="STANDARD_PIP_ARGS: No closing quotation"):
        wanted(scripts, {"STANDARD_PIP_ARGS": "'"}, has_hooks=False)


def test_requirements_that_are_there_already(start: Start) -> None:
    client = start({"code/inference.py": FOUR, "code/requirements.txt": "--no-index\nflask\n"})
    assert client.post("/invocations", json={"x": 7}).status_code == 200


def test_the_variables_name_another_script(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    files = {"code/other.py": FOUR, "code/helper.py": ""}
    assert start(files, SAGEMAKER_PROGRAM="other.py").post("/invocations", json={"x": 7}).status_code == 200
    with pytest.raises(Broken):
        start(files, SAGEMAKER_PROGRAM="missing.py")
    assert "SAGEMAKER_PROGRAM=missing.py: there is no" in caplog.text


def test_the_usual_name_may_be_given_though_there_is_no_script(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    # SageMaker's SDK does so for images that run none.
    client = start({"config.json": "{}"}, SAGEMAKER_PROGRAM="inference.py")
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}
    assert client.post("/invocations", json=body).json == [{"generated_text": REPLY[:2]}]
    assert "SAGEMAKER_PROGRAM=inference.py: there is no such script" in caplog.text


def test_without_a_script_nothing_changes(start: Start) -> None:
    client = start({"config.json": "{}"})
    body = json.dumps({"inputs": "Hi", "parameters": {"max_new_tokens": 2}})
    assert client.post("/invocations", data=body).json == [{"generated_text": REPLY[:2]}]
