"""The tokenizers of `builders`, loaded as a model directory's."""

import pytest

from engine.text import Tokenizer
from tests.unit.text.builders import build_byte_fallback, build_byte_level, build_metaspace, save


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(save(build_byte_level(), tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(save(build_byte_fallback(), tmp_path_factory.mktemp("byte_fallback")))


@pytest.fixture(scope="session")
def gemma_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(save(build_byte_fallback(strip=False), tmp_path_factory.mktemp("gemma_like")))


@pytest.fixture(scope="session")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(save(build_metaspace(), tmp_path_factory.mktemp("metaspace")))
