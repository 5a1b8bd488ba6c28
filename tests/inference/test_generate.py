"""The decoding loop against transformers, against itself alone, and against misuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone.checkpoint import load_model
from inkstone.errors import UsageError
from inkstone.inference import Generator, SamplingConfig
from inkstone.models import gpt2, llama
from inkstone.nn.cache import KVCache
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

CONTEXT = 64
GREEDY = SamplingConfig(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a byte, so that characters fall apart into tokens."""
    return train(["any text"], TokenizerConfig(kind="byte"))


def _model(family: Any, seed: int = 0, **shape: Any) -> Any:
    torch.manual_seed(seed)
    shape = {"vocab_size": 270, "max_seq_len": CONTEXT, "d_model": 32, "n_layers": 2} | shape
    model = family.Model(family.Config(n_heads=4, **shape))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(8.0)  # scores far enough apart that rounding cannot swap them
    return model.eval()


@pytest.fixture(scope="module", params=["gpt2", "llama", "window", "compiled"])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param == "gpt2":
        return _model(gpt2)
    if request.param == "llama":
        return _model(llama, n_kv_heads=2, qk_norm=True)
    if request.param == "compiled":
        return _model(llama, n_kv_heads=2, qk_norm=True, d_model=64, d_ff=96)
    return _model(llama, n_kv_heads=2, sliding_window=7, tied_head=False)


class Scripted(torch.nn.Module):
    """A model that says a fixed text whatever it is asked, one token a step."""

    def __init__(self, script: list[int], vocab_size: int, max_seq_len: int = CONTEXT) -> None:
        super().__init__()
        self.config = gpt2.Config(
            vocab_size=vocab_size, max_seq_len=max_seq_len, d_model=4, n_layers=1, n_heads=1
        )
        self.head_weight = torch.nn.Parameter(torch.zeros(vocab_size, 4))
        self.compute_dtype = torch.float32
        self.script = script
        self.calls = 0

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache(1, batch, 1, 4, capacity)

    def hidden(self, input_ids: torch.Tensor, *, cache: Any, **_: Any) -> torch.Tensor:
        cache.reserve(input_ids.shape[1])
        self.calls += 1
        return torch.zeros(*input_ids.shape, 4)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(hidden), self.config.vocab_size)
        out[:, self.script[self.calls - 1]] = 9.0
        return out


def _slowly(model: Any, prompt: list[int], n: int) -> list[int]:
    """Greedy text without a cache."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


PROMPTS = [[5], [9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 11, 12], [20, 21, 22], list(range(40, 70))]


def test_equals_plain_decoding_without_a_cache(model: Any) -> None:
    for prompt, answer in zip(
        PROMPTS, Generator(model, None).generate(PROMPTS, GREEDY), strict=True
    ):
        assert answer.ids == _slowly(model, prompt, 24)
        assert answer.finish_reason == "length"


def test_a_batch_equals_one_by_one(model: Any) -> None:
    generator = Generator(model, None)
    alone = [generator.generate([p], GREEDY)[0].ids for p in PROMPTS]
    together = generator.generate(PROMPTS, GREEDY)
    assert [a.ids for a in together] == alone
    assert [a.ids for a in generator.generate(PROMPTS, GREEDY, batch_size=3)] == alone


def test_a_neighbour_does_not_shorten_the_context(model: Any) -> None:
    config = GREEDY.but(max_tokens=1000)
    prompts = [[3, 4], list(range(100, 160)), list(range(30))]
    answers = Generator(model, None).generate(prompts, config)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer.ids) == CONTEXT - len(prompt)
        assert answer.finish_reason == "length"
        assert answer.ids == _slowly(model, prompt, CONTEXT - len(prompt))


def test_samples_do_not_depend_on_neighbours(model: Any) -> None:
    generator = Generator(model, None)
    config = SamplingConfig(
        temperature=1.2, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=11, max_tokens=24
    )
    together = [a.ids for a in generator.generate(PROMPTS, config)]
    for place, prompt in enumerate(PROMPTS):
        alone = generator.generate([prompt], config.but(seed=11 + place))[0].ids
        assert together[place] == alone
    assert together == [a.ids for a in generator.generate(PROMPTS, config)]
    assert together != [a.ids for a in generator.generate(PROMPTS, config.but(seed=12))]


def test_equal_prompts_get_different_samples(model: Any) -> None:
    config = SamplingConfig(temperature=3.0, seed=0, max_tokens=12)
    answers = Generator(model, None).generate([[1, 2]] * 4, config)
    assert len({tuple(a.ids) for a in answers}) == 4
    unseeded = Generator(model, None).generate([[1, 2]] * 4, config.but(seed=None))
    assert len({tuple(a.ids) for a in unseeded}) == 4


def test_each_prompt_may_have_its_own_settings(model: Any) -> None:
    generator = Generator(model, None)
    configs = [GREEDY.but(max_tokens=3), SamplingConfig(seed=1, max_tokens=9), GREEDY]
    answers = generator.generate([[1], [2, 3], [4, 5, 6]], configs)
    assert [len(a.ids) for a in answers] == [3, 9, 24]
    assert answers[1].ids == generator.generate([[2, 3]], configs[1])[0].ids


def _hf(kind: str, folder: Path) -> Any:
    import transformers

    torch.manual_seed(3)
    shape = {"vocab_size": 300, "initializer_range": 0.3, "eos_token_id": 7, "bos_token_id": 1}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=96, **shape)
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=96, **shape,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_equals_transformers(kind: str, penalty: float, tmp_path: Path) -> None:
    theirs = _hf(kind, tmp_path)
    ours, _, _ = load_model(tmp_path)
    generator = Generator(ours, None)
    config = SamplingConfig(temperature=0.0, max_tokens=20, repetition_penalty=penalty)
    settings = {
        "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "repetition_penalty": penalty,
        "eos_token_id": 7,
    }  # fmt: skip
    prompts = [[1, 2, 3], [50, 60, 70, 80, 90], [299]]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        expected.append(out[0, len(prompt) :].tolist())
    together = generator.generate(prompts, config, end_ids={7})
    assert [a.ids for a in together] == expected

    if penalty == 1.0:  # theirs would penalize the padding, too
        padded = torch.zeros(3, 5, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, prompt in enumerate(prompts):
            padded[row, 5 - len(prompt) :] = torch.tensor(prompt)
            mask[row, 5 - len(prompt) :] = 1
        out = theirs.generate(padded, attention_mask=mask, **settings)[:, 5:]
        for row, answer in enumerate(together):
            assert out[row, : len(answer.ids)].tolist() == answer.ids


def test_streamed_text_joins_to_the_whole(tokenizer: Tokenizer) -> None:
    model = _model(llama)
    generator = Generator(model, tokenizer)
    config = SamplingConfig(temperature=1.0, seed=3, max_tokens=40)
    prompts = ["", "héllo ", "你好"]
    answers = generator.generate(prompts, config)
    text, ids, last = ["", "", ""], [[], [], []], [None, None, None]  # type: ignore[var-annotated]
    for chunk in generator.stream(prompts, config):
        assert last[chunk.index] is None, "nothing comes after the last chunk"
        text[chunk.index] += chunk.text
        ids[chunk.index] += chunk.ids
        last[chunk.index] = chunk.finish_reason  # type: ignore[call-overload]
    assert text == [a.text for a in answers]
    assert ids == [a.ids for a in answers]
    assert last == [a.finish_reason for a in answers]
    for answer in answers:
        assert answer.text == tokenizer.decode(answer.ids)


def _say(text: str, tokenizer: Tokenizer, **settings: Any) -> Any:
    script = tokenizer.encode(text) if isinstance(text, str) else text
    model = Scripted([*script, *[tokenizer.eos_id] * 5], tokenizer.vocab_size)
    config = SamplingConfig(temperature=0.0, max_tokens=60, **settings)
    return list(Generator(model, tokenizer).stream("x", config))


def test_streaming_never_splits_a_character(tokenizer: Tokenizer) -> None:
    text = "a é 你好 🙂 b"
    chunks = _say(text, tokenizer)
    assert "".join(c.text for c in chunks) == text
    assert not any("\ufffd" in c.text for c in chunks)
    assert len(chunks) > 8  # and yet it comes in pieces
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].ids[-1] == tokenizer.eos_id


def test_an_unfinished_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂")[:-1]
    assert "".join(c.text for c in _say(ids, tokenizer)) == "a\ufffd"


def test_stop_texts_end_the_answer_across_tokens(tokenizer: Tokenizer) -> None:
    chunks = _say("yes\nUse it\nUser: no", tokenizer, stop="\nUser:")
    assert "".join(c.text for c in chunks) == "yes\nUse it"
    assert chunks[-1].finish_reason == "stop"
    chunks = _say("no stop\nUse", tokenizer, stop="\nUser:")
    assert "".join(c.text for c in chunks) == "no stop\nUse"


def test_end_of_text_is_not_shown_and_ends_only_its_row(tokenizer: Tokenizer) -> None:
    model = _model(gpt2)
    generator = Generator(model, tokenizer)
    free = generator.generate(["a", "bc", "def"], GREEDY)
    stop_at = free[1].ids[4]
    ended = generator.generate(["a", "bc", "def"], GREEDY, end_ids={stop_at})
    for before, after in zip(free, ended, strict=True):
        cut = before.ids.index(stop_at) + 1 if stop_at in before.ids else len(before.ids)
        assert after.ids == before.ids[:cut]
        assert after.finish_reason == ("stop" if stop_at in before.ids else "length")
    assert ended[1].text == tokenizer.decode(free[1].ids[: free[1].ids.index(stop_at)])


def test_ids_beyond_the_tokenizer_are_never_chosen(tokenizer: Tokenizer) -> None:
    model = Scripted([265, 266, 267], 270)
    answer = Generator(model, tokenizer).generate(["x"], GREEDY.but(max_tokens=3))[0]
    assert max(answer.ids) < tokenizer.vocab_size < 265


def test_an_answer_goes_on_in_the_middle_of_a_text() -> None:
    """A word tokenizer drops the space before a text's first word, but not before the answer's."""
    words = train(["the cat sat on the mat"] * 3, TokenizerConfig(kind="word", min_frequency=1))
    model = Scripted([*words.encode("cat sat"), words.eos_id], words.vocab_size)
    chunks = Generator(model, words).stream("on the", SamplingConfig(temperature=0.0))
    assert "".join(c.text for c in chunks) == " cat sat"


def test_log_probabilities_fit_the_tokens(model: Any) -> None:
    config = SamplingConfig(temperature=0.9, seed=2, max_tokens=10, top_logprobs=4)
    answer = Generator(model, None).generate([[1, 2, 3], [4]], config)[0]
    ids = [1, 2, 3, *answer.ids]
    with torch.no_grad():
        truth = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert [s.id for s in answer.logprobs] == answer.ids
    for place, score in enumerate(answer.logprobs):
        assert score.logprob == pytest.approx(float(truth[2 + place, score.id]), abs=1e-4)
        assert len(score.top) == 4
        assert score.top[0][1] == pytest.approx(float(truth[2 + place].max()), abs=1e-4)


def test_generation_leaves_the_model_as_it_was(model: Any) -> None:
    model.train()
    list(Generator(model, None).stream([1, 2], GREEDY.but(max_tokens=2)))
    assert model.training
    half = Generator(model, None).stream([1, 2], GREEDY)
    half.close()  # type: ignore[attr-defined]
    assert model.training
    model.eval()
    model(torch.tensor([[1, 2, 3]])).sum().backward()  # and it can still be trained


def test_no_prompts_no_answers(model: Any) -> None:
    assert Generator(model, None).generate([], GREEDY) == []
    assert list(Generator(model, None).stream([], GREEDY)) == []


def test_a_prompt_as_long_as_the_context_is_an_error(model: Any) -> None:
    generator = Generator(model, None)
    with pytest.raises(UsageError, match=rf"prompt 1 has {CONTEXT} tokens.*holds {CONTEXT}"):
        generator.generate([[1], [1] * CONTEXT], GREEDY)
    with pytest.raises(UsageError, match=r"6,400 tokens.*64"):
        generator.stream([1] * 6400, GREEDY)  # at once, before the first chunk
    answer = generator.generate([[1] * (CONTEXT - 1)], GREEDY)[0]
    assert len(answer.ids) == 1 and answer.finish_reason == "length"


def test_misuse_is_named(model: Any, tokenizer: Tokenizer) -> None:
    bare = Generator(model, None)
    with pytest.raises(UsageError, match="no tokenizer"):
        bare.generate(["text"], GREEDY)
    with pytest.raises(UsageError, match="no tokens"):
        bare.generate([[]], GREEDY)
    with pytest.raises(UsageError, match="id 270"):
        bare.generate([[1, 270]], GREEDY)
    with pytest.raises(UsageError, match="id -1"):
        bare.generate([[-1]], GREEDY)
    with pytest.raises(UsageError, match="tokenizer"):
        bare.generate([[1]], GREEDY.but(stop="x"))
    with pytest.raises(UsageError, match="2 prompts came with 1"):
        bare.generate([[1], [2]], [GREEDY])


def test_control_tokens_in_a_prompt_are_text(tokenizer: Tokenizer) -> None:
    ids = Generator(_model(gpt2), tokenizer).encode("<|endoftext|>")
    assert ids.count(tokenizer.eos_id) == 1 and ids[0] == tokenizer.eos_id


def test_bf16_runs(tmp_path: Path) -> None:
    _hf("llama", tmp_path)
    ours, _, _ = load_model(tmp_path, dtype=torch.bfloat16)
    answer = Generator(ours, None).generate([[1, 2, 3], [4]], GREEDY.but(max_tokens=5))
    assert all(len(a.ids) == 5 for a in answer)
