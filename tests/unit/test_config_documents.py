"""Settings that stand together in one file or one variable, other images' names among them; and secrets."""

import json
from pathlib import Path

import pytest

from container import config
from container.config import load
from tests.unit.test_vendors import HUB_ID, changed, mounted, refusal, values

__all__ = ["mounted"]  # a fixture


def all_as_one_document() -> dict[str, object]:
    """Every setting but the model, with a value that it may have."""
    document: dict[str, object] = {"model": HUB_ID}
    for name, one in config.all_settings().items():
        value = one.choices[-1] if one.choices else one.default
        if name != "model":
            document[name] = (
                value if value is not None else {"integer": 64, "number": 2, "true|false": True}.get(one.kind, "text")
            )
    return document


@pytest.mark.parametrize("name", ["SM_GALLEY_CONFIG", "SM_GALLEY_CONFIG_YAML"])
def test_one_variable_can_hold_all_settings(tmp_path: Path, name: str) -> None:
    # Inference components may have 16 variables.
    document = all_as_one_document()
    assert len(document) > 16
    text = json.dumps(document)
    if name == "SM_GALLEY_CONFIG":
        (tmp_path / "galley.json").write_text(text)
        text = str(tmp_path / "galley.json")
    assert values(load([], {name: text})) == document


def test_a_document_may_hold_other_images_names_too() -> None:
    document = (
        "max_num_seqs: 3\nSM_VLLM_MODEL: org/model\nSM_VLLM_ENFORCE_EAGER: true\nSM_VLLM_SERVED_MODEL_NAME: [chat]\n"
        "SM_VLLM_MAX_MODEL_LEN: 100\nSM_VLLM_DTYPE: null\nHF_MODEL_REVISION: 2024-05-01\nOPTION_TASK: auto\n"
    )
    environ = {"SM_GALLEY_CONFIG_YAML": document, "SM_VLLM_MAX_MODEL_LEN": "200", "SM_VLLM_MAX_NUM_SEQS": "4"}
    assert changed(load([], environ)) == {
        "model": HUB_ID,
        "enforce_eager": True,
        "served_model_name": "chat",
        "max_model_len": 200,
        "max_num_seqs": 4,
        "revision": "2024-05-01",
    }


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_TOKEN": "hf_secret"},
        {"SM_VLLM_HF_TOKEN": "hf_secret", "HF_TOKEN": "hf_secret2"},
        {"SM_GALLEY_HF_TOKEN": "hf_secret", "HF_API_TOKEN": "hf_secret2"},
        {"SM_GALLEY_CONFIG_YAML": "hf_token: hf_secret"},
        {"SM_GALLEY_CONFIG_YAML": "HF_TOKEN: hf_secret"},
        {"HF_TOKEN": "hf_secret", "HF_MODEL_TOKEN": "hf_secret2", "OPTION_HF_TOKENS": "hf_secret3"},
    ],
)
def test_the_hubs_token_is_never_shown(environ: dict[str, str]) -> None:
    settings = load([], {"HF_MODEL_ID": HUB_ID, **environ})
    assert settings.server.hf_token == "hf_secret"
    assert "hf_secret" not in repr(settings)
    assert not any("hf_secret" in line for line in settings.warnings)


def test_a_document_that_cannot_be_read_is_not_shown() -> None:
    line = refusal({"SM_GALLEY_CONFIG_YAML": "model: x\nhf_token: hf_secret: x"})
    assert line.startswith("cannot read SM_GALLEY_CONFIG_YAML: ")
    assert "line 2" in line
    assert "hf_secret" not in line


def test_what_libraries_scripts_and_the_platform_read_may_stand_there_too() -> None:
    document = {
        "HF_ENDPOINT": "http://hub",
        "HF_HUB_OFFLINE": 1,
        "CUSTOM_PRE_PROCESS": "model:pre",
        "SAGEMAKER_PROGRAM": "a.py",
        "SAGEMAKER_SESSIONS_EXPIRATION": 60,
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": 9,
    }
    environ = {
        "HF_MODEL_ID": HUB_ID,
        "SM_GALLEY_CONFIG_YAML": json.dumps(document),
        "SAGEMAKER_PROGRAM": "b.py",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "8",
    }
    settings = load([], environ)
    assert settings.environment == {"HF_ENDPOINT": "http://hub", "HF_HUB_OFFLINE": "1"}
    assert settings.custom_code == {"CUSTOM_PRE_PROCESS": "model:pre", "SAGEMAKER_PROGRAM": "b.py"}
    assert (settings.server.session_expiration_s, settings.server.batch_max_payload_mb) == (60, 8)
    assert config.child_environment(settings.environment)["HF_ENDPOINT"] == "http://hub"


def test_a_token_comes_without_the_end_of_its_line() -> None:
    assert load([], {"HF_MODEL_ID": HUB_ID, "HF_TOKEN": "hf_secret\n"}).server.hf_token == "hf_secret"
    line = refusal({"HF_MODEL_ID": HUB_ID, "HF_TOKEN": "hf_\u20acsecret"})
    assert line == "HF_TOKEN holds characters that no token has"
    assert refusal({"SM_GALLEY_CONFIG_YAML": "[" * 5000}).endswith("it is nested too deeply")
