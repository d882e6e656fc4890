"""The web tier over a ScriptedEngine: in this process under Flask's test client, or in a real gunicorn."""

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from flask.testing import FlaskClient

from container.app import create_app
from container.config import ServerConfig
from container.engine_client import EngineClient
from engine.api import ModelInfo
from engine.text import Tokenizer
from tests.http import tiny_model
from tests.http.scripted_engine import ScriptedEngine, scripted_logprob

REPLY = "Hello, wörld! One two three."


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tiny_model.write(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(model_dir)


@pytest.fixture(scope="session")
def model_info(model_dir: Path, tokenizer: Tokenizer) -> ModelInfo:
    return ModelInfo(
        served_name="tiny",
        model_dir=str(model_dir),
        created_s=1_700_000_000,
        vocab_size=tokenizer.vocab_size,
        max_model_len=tiny_model.MAX_MODEL_LEN,
        eos_token_ids=(tokenizer.encode(tiny_model.EOS)[0],),
        default_temperature=0.7,
    )


@pytest.fixture(scope="module")
def shared_engine(
    tmp_path_factory: pytest.TempPathFactory, model_info: ModelInfo, tokenizer: Tokenizer
) -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine(tmp_path_factory.mktemp("run") / "engine.sock", model_info, tokenizer.encode(REPLY))
    engine.start()
    yield engine
    engine.die()


@pytest.fixture
def engine(shared_engine: ScriptedEngine) -> Iterator[ScriptedEngine]:
    """A healthy engine with no memory of the test before."""
    shared_engine.generated.clear()
    shared_engine.aborted.clear()
    yield shared_engine
    shared_engine.failure = None
    shared_engine.num_cached_tokens = 0
    shared_engine.echoes = False
    shared_engine.max_num_seqs = 0
    shared_engine.max_running = None
    shared_engine.most_running = 0
    shared_engine.sessions.clear()
    shared_engine.logprob = scripted_logprob
    shared_engine.step_s = 0.0
    shared_engine.held.clear()
    shared_engine.stalled.clear()
    shared_engine.state = "ready"


@pytest.fixture(scope="module")
def engine_client(shared_engine: ScriptedEngine) -> Iterator[EngineClient]:
    # Long: a test that computes (hypothesis does) never yields to the hub, and the client reads no stamps meanwhile.
    client = EngineClient(str(shared_engine.path), stall_limit_s=60.0)
    client.start()
    with gevent.Timeout(10):
        while not client.health().is_ready:
            gevent.sleep(0.01)
    yield client
    client.stop()


@pytest.fixture(scope="module")
def http(engine_client: EngineClient) -> Iterator[FlaskClient]:
    yield create_app(engine_client, ServerConfig(max_body_mb=1, request_timeout_s=20)).test_client()
    assert engine_client._generations == {}, "a request was never closed"
