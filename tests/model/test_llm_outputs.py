"""What LLM asks of the core and makes of its outputs, over a core that only repeats a reply."""

import math
from pathlib import Path
from typing import Any

import pytest

import engine.llm
from engine import LLM, SamplingParams
from engine.api import GenerateRequest, InvalidRequest, ModelInfo, RequestOutput, TokenLogprobs, Usage
from engine.core import ClientOutputs
from engine.text import Tokenizer

MODEL = Path(__file__).parents[2] / "models/galley-tiny"
TOKENIZER = Tokenizer.from_dir(MODEL)
REPLY = TOKENIZER.encode("Hello é there")


class RepeatingCore:
    """One token of REPLY per sequence and step; the log-probability of the i-th is -i, of a prompt's -i too."""

    def __init__(self, *_: Any) -> None:
        self.requests: list[GenerateRequest] = []
        self.running: dict[tuple[int, int], GenerateRequest] = {}
        self.place = 0

    def add_request(self, client_id: int, request: GenerateRequest) -> None:
        self.place = 0
        self.requests.append(request)
        self.running.update({(request.request_id, i): request for i in range(request.params.n)})

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> ClientOutputs:
        place, self.place = self.place, self.place + 1
        return {0: [self._output(key, request, place) for key, request in list(self.running.items())]}

    def abort(self, client_id: int, request_id: int, index: int | None = None) -> None:
        for key in [key for key in self.running if key[0] == request_id and index in (None, key[1])]:
            del self.running[key]

    def abort_client(self, client_id: int) -> None:
        self.running.clear()

    def _output(self, key: tuple[int, int], request: GenerateRequest, place: int) -> RequestOutput:
        params, ids = request.params, request.prompt_token_ids
        is_last = place + 1 == len(REPLY)
        if is_last:
            del self.running[key]
        return RequestOutput(
            request_id=key[0],
            index=key[1],
            new_token_ids=[REPLY[place]],
            finish_reason="length" if is_last else None,
            logprobs=None if params.logprobs is None else [_entry(REPLY[place], -place, params.logprobs)],
            prompt_logprobs=None
            if params.prompt_logprobs is None or place
            else [_entry(ids[i], -i, params.prompt_logprobs) for i in range(1, len(ids))],
            usage=Usage(num_prompt_tokens=len(ids), num_output_tokens=place + 1, num_cached_tokens=32 + key[1])
            if is_last or not place
            else None,
        )


def _entry(token_id: int, logprob: float, num_top: int) -> TokenLogprobs:
    """The token is the second most likely one: token 0 is better."""
    return TokenLogprobs(logprob, 2, [0, token_id, 1][:num_top], [logprob + 0.5, logprob, logprob - 0.5][:num_top])


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    info = ModelInfo(
        served_name="tiny",
        model_dir=str(MODEL),
        created_s=0,
        vocab_size=TOKENIZER.vocab_size,
        max_model_len=1024,
        eos_token_ids=(2,),
    )
    monkeypatch.setattr(engine.llm, "load_runner", lambda config, on_stage: (None, info))
    monkeypatch.setattr(engine.llm, "EngineCore", RepeatingCore)
    return LLM(str(MODEL))


def requests(llm: LLM) -> list[GenerateRequest]:
    core: Any = llm._core
    return list(core.requests)


def test_logprobs_are_vllms_maps(llm: LLM) -> None:
    params = SamplingParams(logprobs=1, prompt_logprobs=2, max_tokens=99)
    prompt = TOKENIZER.encode("Hi there é")
    [result] = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    [output] = result.outputs
    assert output.token_ids == REPLY
    assert output.logprobs is not None
    for place, (token_id, entry) in enumerate(zip(REPLY, output.logprobs, strict=True)):
        assert list(entry) == [token_id, 0]
        assert (entry[token_id].logprob, entry[token_id].rank) == (-place, 2)
        assert (entry[0].logprob, entry[0].rank) == (-place + 0.5, 1)
        assert entry[token_id].decoded_token == TOKENIZER.token_text(token_id)
    assert output.cumulative_logprob == -sum(range(len(REPLY)))
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    for place, token_id in enumerate(prompt[1:], start=1):
        entry = result.prompt_logprobs[place] or {}
        assert set(entry) == {token_id, 0}
        assert entry[token_id].logprob == -place
    decoded = "".join(entry[i].decoded_token for i, entry in zip(REPLY, output.logprobs, strict=True))
    assert decoded == "Hello bytes:\\xc3bytes:\\xa9 there"


def test_nothing_is_there_that_nobody_asked_for(llm: LLM) -> None:
    [result] = llm.generate("Hello", SamplingParams(max_tokens=99), use_tqdm=False)
    assert (result.prompt_logprobs, result.outputs[0].logprobs, result.outputs[0].cumulative_logprob) == (None,) * 3


def test_minus_infinity_stays(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "_entry", lambda token_id, logprob, num_top: TokenLogprobs(-math.inf, 9, [], []))
    [result] = llm.generate("Hello", SamplingParams(max_tokens=99, logprobs=0), use_tqdm=False)
    assert result.outputs[0].cumulative_logprob == -math.inf


def test_cached_tokens_finished_and_ids(llm: LLM) -> None:
    first, second = llm.generate(["Hello", "there"], SamplingParams(max_tokens=99, n=2), use_tqdm=False)
    assert (first.num_cached_tokens, first.finished, first.outputs[1].finished) == (32, True, True)
    [third] = llm.generate("Hello", SamplingParams(max_tokens=99, stop="lo"), use_tqdm=False)
    assert third.num_cached_tokens == 32, "a stop string ends the text before the engine's last output"
    assert len({first.request_id, second.request_id, third.request_id}) == 3
    assert {type(result.request_id) for result in (first, second, third)} == {str}


def test_stop_strings_mind_min_tokens_and_may_stay(llm: LLM) -> None:
    texts = {
        (min_tokens, keep): llm.generate(
            "x",
            SamplingParams(stop="Hello", min_tokens=min_tokens, include_stop_str_in_output=keep, max_tokens=99),
            use_tqdm=False,
        )[0]
        .outputs[0]
        .text
        for min_tokens in (0, len(REPLY))
        for keep in (False, True)
    }
    assert texts[0, False] == ""
    assert texts[0, True] == "Hello"
    assert texts[len(REPLY), False] == texts[len(REPLY), True] == "Hello é there"


def test_what_the_core_is_told(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=99, bad_words=("Hello",)), SamplingParams(max_tokens=99)]
    llm.generate(["a", "b"], params, use_tqdm=False, priority=[5, -1])
    first, second = requests(llm)
    assert (first.priority, second.priority) == (5, -1)
    assert tuple(TOKENIZER.encode("Hello")) in first.bad_words_ids
    assert second.bad_words_ids == ()


@pytest.mark.parametrize("priority", [[1], [1, 2, 3], 1, "12", [1, "2"], [1, 2**31], [1, True]])
def test_a_bad_priority_is_named(llm: LLM, priority: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.generate(["a", "b"], use_tqdm=False, priority=priority)
    assert refused.value.param == "priority"
    assert requests(llm) == []


def test_the_bar_tells_the_rates(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["Hello", "there"], SamplingParams(max_tokens=99, n=2))
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "input " in shown
    assert "output " in shown
    llm.generate("Hello", SamplingParams(max_tokens=99), use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_chat_renders_with_the_models_template(llm: LLM) -> None:
    hi = [{"role": "user", "content": "Hi"}]
    [result] = llm.chat(hi, SamplingParams(max_tokens=99), use_tqdm=False)
    assert result.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert result.prompt_token_ids == TOKENIZER.encode(result.prompt, add_special_tokens=False)
    assert result.outputs[0].text == "Hello é there"
    ho = [*hi, {"role": "assistant", "content": "Ho"}]
    results = llm.chat([hi, ho], use_tqdm=False, add_generation_prompt=False)
    assert [result.prompt for result in results] == [
        "<|im_start|>user\nHi<|im_end|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n",
    ]
    assert llm.chat([], use_tqdm=False) == []


def test_chat_with_a_template_tools_and_variables_of_the_callers(llm: LLM) -> None:
    template = "{{ greeting }}{% for t in tools %}[{{ t.function.name }}]{% endfor %}{{ messages[0].content }}"
    tools = [{"type": "function", "function": {"name": "f"}}]
    [result] = llm.chat(
        [{"role": "user", "content": "Hi"}],
        use_tqdm=False,
        chat_template=template,
        tools=tools,
        chat_template_kwargs={"greeting": "Yo "},
    )
    assert result.prompt == "Yo [f]Hi"


@pytest.mark.parametrize(
    ("messages", "settings", "param"),
    [
        ("Hi", {}, "messages"),
        (5, {}, "messages"),
        (["Hi"], {}, "messages"),
        ([[]], {}, "messages"),
        ([["Hi"]], {}, "messages"),
        ([{"role": "user", "content": 5}], {"chat_template": "{{ messages[0].content.x.y }}"}, "messages"),
        ([{"role": "user", "content": "Hi"}], {"chat_template": "{% if %}"}, "chat_template"),
        ([{"role": "user", "content": "Hi"}], {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ([{"role": "user", "content": "Hi"}], {"sampling_params": [SamplingParams()] * 2}, "sampling_params"),
    ],
)
def test_a_bad_chat_is_refused_by_name(llm: LLM, messages: Any, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.chat(messages, use_tqdm=False, **settings)
    assert refused.value.param == param


def test_the_tokenizer_is_the_models(llm: LLM) -> None:
    assert llm.get_tokenizer().decode(llm.get_tokenizer().encode("Hello é")) == "Hello é"
