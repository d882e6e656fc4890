"""What a model directory may hold, and the one line that each refusal is."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import models
from engine.api import EngineConfig
from engine.loading import read_generation_defaults, read_model_config
from engine.runner import load_runner
from tests.model.tiny_models import make_llama, make_qwen3


@pytest.fixture
def llama(tmp_path):
    make_llama(tmp_path)
    return tmp_path


def edit(path, **changes):
    fields = json.loads(path.read_text()) if path.exists() else {}
    fields.update(changes)
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


def load(path):
    return load_runner(EngineConfig(model=str(path), max_model_len=64, max_num_seqs=1), lambda stage: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 128}, "'sliding_window' is set"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' holds 'sliding_attention'"),
        ({"attn_logit_softcapping": 30.0}, "'attn_logit_softcapping' is set to 30.0"),
        ({"num_experts": 8}, "'num_experts' is set to 8"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
        ({"hidden_act": "gelu"}, "'hidden_act' 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "mscale": 2.0}}, "rotary setting 'mscale'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'low_freq_factor' must be a number"),
        ({"num_key_value_heads": 3}, "'num_key_value_heads' 3 does not divide"),
        ({"hidden_size": "48"}, "'hidden_size' must be an integer"),
        ({"vocab_size": ...}, "'vocab_size' must be an integer"),
        ({"architectures": []}, "'architectures' must be a list"),
        (
            {"architectures": ["MambaForCausalLM"]},
            "'MambaForCausalLM' is not supported; supported are LlamaForCausalLM",
        ),
        ({"dtype": "float8_e4m3fn"}, "'dtype' must be"),
        ({"attention_bias": "yes"}, "'attention_bias' must be true or false"),
        ({"head_dim": 15}, "'head_dim' 15 is odd"),
        ({"intermediate_size": 81}, "'model.layers.0.mlp.gate_proj.weight' has the shape"),
        ({"attention_bias": True}, "no weight 'model.layers.0.self_attn.q_proj.bias'"),
        ({"num_hidden_layers": 3}, "no weight 'model.layers.2.input_layernorm.weight'"),
        ({"num_hidden_layers": 1}, "'model.layers.1"),
    ],
)
def test_refusals_name_what_is_wrong(llama, changes, message):
    edit(llama / "config.json", **changes)
    with pytest.raises(ValueError) as caught:
        load(llama)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_changes_nothing_is_accepted(llama):
    edit(
        llama / "config.json",
        sliding_window=4096,
        use_sliding_window=False,
        layer_types=["full_attention"] * 2,
        attn_logit_softcapping=None,
        _name_or_path="somewhere",
        initializer_range=0.5,
        unsloth_version="1",
        partial_rotary_factor=None,
        rope_parameters={"rope_type": "default", "partial_rotary_factor": None, "factor": None},
        is_llama_config=True,
        rope_interleaved=False,
    )
    load(llama)


def test_older_spellings_of_the_config_mean_the_same(llama):
    edit(llama / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5}, dtype="bfloat16")
    new = read_model_config(llama)
    edit(
        llama / "config.json",
        rope_parameters=...,
        rope_theta=500000,
        rope_scaling=None,
        dtype=...,
        torch_dtype="bfloat16",
    )
    assert read_model_config(llama) == new
    scaling = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}
    edit(llama / "config.json", rope_scaling={**scaling, "type": "llama3"})
    older = read_model_config(llama)
    edit(
        llama / "config.json",
        rope_scaling=...,
        rope_theta=...,
        rope_parameters={**scaling, "rope_type": "llama3", "rope_theta": 5e5},
    )
    assert read_model_config(llama) == older
    assert older.rope.llama3 is not None and older.rope.theta == 5e5


def test_defaults_of_missing_keys(llama):
    edit(llama / "config.json", num_key_value_heads=..., head_dim=..., tie_word_embeddings=None)
    config = read_model_config(llama)
    assert (config.num_kv_heads, config.head_dim, config.tie_word_embeddings) == (4, 12, False)
    edit(llama / "config.json", architectures=["Qwen3ForCausalLM"])
    assert read_model_config(llama).head_dim == 128


def test_the_registry_names_its_families():
    assert models.supported_architectures() == ("LlamaForCausalLM", "Qwen3ForCausalLM")


def test_weights_too_many_or_of_no_float_type(llama):
    file = llama / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, file)
    load(llama)
    save_file({**weights, "model.layers.0.self_attn.q_norm.weight": torch.ones(16)}, file)
    with pytest.raises(
        ValueError, match=r"'model.layers.0.self_attn.q_norm.weight' that its architecture does not know"
    ):
        load(llama)
    save_file({**weights, "model.norm.weight": torch.ones(48, dtype=torch.int8)}, file)
    with pytest.raises(ValueError, match=r"'model.norm.weight' is of type I8"):
        load(llama)


def test_a_tied_model_may_repeat_its_head(tmp_path):
    make_qwen3(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file)
    load(tmp_path)


@pytest.fixture
def sharded(tmp_path):
    make_llama(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def test_damaged_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    kept = load_file(first)
    save_file({**kept, next(iter(load_file(second))): torch.ones(1)}, first)
    with pytest.raises(ValueError, match="is in two files"):
        load(sharded)
    first.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load(sharded)
    first.unlink()
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load(sharded)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "x.bin", "a\\b"]
)
def test_an_index_may_not_point_elsewhere(sharded, name):
    edit(sharded / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    with pytest.raises(ValueError, match=r"is not the name of a \.safetensors file beside it"):
        load(sharded)


def test_pickled_weights_are_not_read(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor"):
        load(llama)


def test_generation_defaults(llama):
    file = llama / "generation_config.json"
    file.unlink()
    assert read_generation_defaults(llama).eos_token_ids == (2,)
    edit(llama / "config.json", eos_token_id=[2, 5, 2])
    edit(file, temperature=0.6, top_k=20, top_p=0.95, do_sample=True)
    found = read_generation_defaults(llama)
    assert (found.eos_token_ids, found.temperature, found.top_k, found.top_p) == ((2, 5), 0.6, 20, 0.95)
    edit(file, eos_token_id=7, do_sample=False, top_k=-1)
    found = read_generation_defaults(llama)
    assert (found.eos_token_ids, found.temperature, found.top_k) == ((7,), 0.0, 0)
    edit(file, eos_token_id=..., do_sample=...)
    edit(llama / "config.json", eos_token_id=None)
    found = read_generation_defaults(llama)
    assert (found.eos_token_ids, found.temperature) == ((), 0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": "</s>"}, "'eos_token_id' must be"),
        ({"temperature": -1}, "'temperature'"),
        ({"top_p": 0}, "'top_p'"),
        ({"top_k": 1.5}, "'top_k'"),
        ({"do_sample": 1}, "'do_sample'"),
    ],
)
def test_bad_generation_defaults_are_refused(llama, changes, message):
    edit(llama / "generation_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        read_generation_defaults(llama)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_a_damaged_config_is_refused(llama, text):
    (llama / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        load(llama)
