"""Scoring: order, batches, shared beginnings, the head in float32, refusals; pairs and win rates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import CONTEXT_TOKENS, END, make_questions

from calib_core.data.preferences import Preference
from calib_core.data.questions import Question
from calib_core.errors import DataFormatError, NotEnoughDataError
from calib_core.models.loading import adapter_digest, load_model
from calib_core.scoring import forward
from calib_core.scoring.forward import (
    answer_logits,
    evaluating,
    logits_at,
    sequence_logits,
    shared_prefix,
    token_batches,
)
from calib_core.scoring.pairs import (
    PreferenceLogprobs,
    encode_preference,
    encode_preferences,
    sequence_logprobs,
    win_rate,
)
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import encode_questions, score, score_encoded
from calib_core.version import __version__

QUESTIONS = make_questions(12, seed=3, options=(2, 3, 4, 7, 26))


@pytest.fixture(scope="module")
def loaded(tiny_llama):
    return load_model(tiny_llama, dtype="float32")


@pytest.fixture(scope="module")
def encoder(loaded):
    return PromptEncoder(loaded.tokenizer, PromptForm())


def with_lora(loaded):
    """A copy of the model with an adapter that does something."""
    model = load_model(loaded.base, dtype="float32").model
    torch.manual_seed(5)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return replace(loaded, model=model)


def test_predictions_hold_what_the_questions_say(loaded, encoder) -> None:
    found = score(loaded, QUESTIONS, encoder)
    assert found.ids == tuple(q.id for q in QUESTIONS)
    assert found.labels.tolist() == [q.answer for q in QUESTIONS]
    assert found.n_options.tolist() == [len(q.choices) for q in QUESTIONS]
    assert found.subjects == tuple(q.subject for q in QUESTIONS)
    assert found.logits.dtype == np.float32
    assert found.protocol == {
        "model": loaded.base,
        "revision": "",
        "base_digest": loaded.base_digest,
        "adapter": None,
        "tokenizer": encode_questions(QUESTIONS[:1], encoder, context_tokens=9999).tokenizer,
        "prompt": encoder.describe(),
        "shots": 0,
        "dtype": "float32",
        "library_version": __version__,
    }


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_batches_of_any_size_give_the_same_scores(rows, loaded, encoder) -> None:
    alone = [score(loaded, [question], encoder) for question in QUESTIONS]
    longest = max(len(encoder.encode(q)) for q in QUESTIONS)
    together = score(loaded, QUESTIONS, encoder, batch_tokens=rows * longest)
    for row, one in enumerate(alone):
        k = int(one.n_options[0])
        np.testing.assert_allclose(together.logits[row, :k], one.logits[0], rtol=0, atol=1e-5)
        assert np.isneginf(together.logits[row, k:]).all()
        assert together.letter_mass[row] == pytest.approx(one.letter_mass[0], abs=1e-6)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    batches = token_batches(lengths, 100)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 100 for batch in batches)
    assert len(batches) < 1.5 * sum(lengths) / 100
    assert token_batches([10] * 700 + [19] * 60, 10**6) == [list(range(700, 760)), list(range(700))]
    assert token_batches([50, 150], 100) == [[1], [0]]
    assert token_batches([10] * 20, 100, prefix_tokens=190) == [[2 * i, 2 * i + 1] for i in range(10)]
    assert token_batches([], 100) == []


def test_model_comes_back_in_the_mode_it_was_in(loaded, encoder) -> None:
    trained = with_lora(loaded)
    trained.model.train()
    trained.model.get_input_embeddings().eval()  # a part that someone froze
    modes = [module.training for module in trained.model.modules()]
    first, second = (score(trained, QUESTIONS, encoder) for _ in range(2))
    assert (first.logits == second.logits).all()  # dropout was off
    assert [module.training for module in trained.model.modules()] == modes
    assert answer_logits(trained.model, [[1, 2, 3]]).requires_grad
    with pytest.raises(ZeroDivisionError), evaluating(trained.model):
        raise ZeroDivisionError
    assert [module.training for module in trained.model.modules()] == modes


def test_protocol_has_the_adapter_as_it_is_now(loaded, encoder) -> None:
    trained = with_lora(loaded)
    before = score(trained, QUESTIONS[:2], encoder).protocol["adapter"]
    with torch.no_grad():
        next(p for p in trained.model.parameters() if p.requires_grad).add_(1.0)
    after = score(trained, QUESTIONS[:2], encoder).protocol["adapter"]
    assert before != after == adapter_digest(trained.model)


def test_every_question_longer_than_the_context_is_named_before_anything_is_computed(
    loaded, encoder, monkeypatch
) -> None:
    monkeypatch.setattr(
        "calib_core.scoring.questions.answer_logits", lambda *_, **__: pytest.fail("a forward ran")
    )
    long = [
        Question(id=name, question="word " * CONTEXT_TOKENS, choices=("a", "b"), answer=0)
        for name in ("x", "y")
    ]
    tokens = len(encoder.encode(long[0]))
    with pytest.raises(
        DataFormatError, match=rf"2 of 14 .*context of 1024 tokens: 'x' \({tokens} tokens\), 'y'"
    ):
        score(loaded, [*QUESTIONS, *long], encoder)


def test_a_question_as_long_as_the_context_is_scored(loaded, encoder) -> None:
    tokens = len(encoder.encode(QUESTIONS[0]))
    assert len(encode_questions(QUESTIONS[:1], encoder, context_tokens=tokens)) == 1
    with pytest.raises(DataFormatError, match="q0"):
        encode_questions(QUESTIONS[:1], encoder, context_tokens=tokens - 1)


def test_logits_that_are_not_finite_name_their_questions(tiny_llama) -> None:
    broken = load_model(tiny_llama, dtype="float32")
    encoder = PromptEncoder(broken.tokenizer, PromptForm())
    odd = Question(id="odd", question="~ what?", choices=("one", "two"), answer=0)
    token = broken.tokenizer.convert_tokens_to_ids("Ġ~") or 0
    token = next(t for t in encoder.encode(odd) if all(t not in encoder.encode(q) for q in QUESTIONS))
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(DataFormatError, match=r"not finite for 1 of 13 questions: 'odd'"):
        score(broken, [*QUESTIONS, odd], encoder)


def test_no_questions_give_empty_predictions(loaded, encoder) -> None:
    assert len(score(loaded, [], encoder)) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "phi"])
def test_shared_beginning_changes_no_score(family, tiny_model, monkeypatch) -> None:
    loaded = load_model(tiny_model(family), dtype="float32")
    encoder = PromptEncoder(loaded.tokenizer, PromptForm(shots=tuple(make_questions(3, seed=8))))
    encoded = encode_questions(QUESTIONS, encoder, context_tokens=loaded.context_tokens)
    with evaluating(loaded.model):
        prefix = shared_prefix(loaded.model, encoded.input_ids)
    assert prefix is not None
    assert prefix.n_tokens > 64
    assert len({ids[: prefix.n_tokens] for ids in encoded.input_ids}) == 1
    assert len({ids[: prefix.n_tokens + 1] for ids in encoded.input_ids}) > 1
    shared = score_encoded(loaded, encoded, batch_tokens=600)
    monkeypatch.setattr("calib_core.scoring.questions.shared_prefix", lambda *_: None)
    apart = score_encoded(loaded, encoded, batch_tokens=600)
    np.testing.assert_allclose(shared.logits, apart.logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(shared.letter_mass, apart.letter_mass, rtol=0, atol=1e-6)


def test_beginning_is_shared_only_where_it_pays_and_is_safe(loaded, tiny_model) -> None:
    with evaluating(loaded.model):
        long = list(range(2, 102))
        assert shared_prefix(loaded.model, [[*long, 5], [*long, 6]]).n_tokens == 100
        # One token must be left to compute, even if one prompt is the beginning of another.
        assert shared_prefix(loaded.model, [long, [*long, 6]]).n_tokens == 99
        assert shared_prefix(loaded.model, [long, long]).n_tokens == 99
        assert shared_prefix(loaded.model, [long]) is None
        short = long[: forward.MIN_PREFIX_TOKENS]
        assert shared_prefix(loaded.model, [[*short, 5], [*short, 6]]).n_tokens == 64
        assert shared_prefix(loaded.model, [[*short[1:], 5], [*short[1:], 6]]) is None
    sliding = load_model(tiny_model("mistral-sliding"), dtype="float32").model
    with evaluating(sliding):
        assert shared_prefix(sliding, [[*long, 5], [*long, 6]]) is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_head_is_multiplied_in_float32_at_one_position(family, tiny_model) -> None:
    model = load_model(tiny_model(family), dtype="bfloat16").model
    ids = [5, 9, 30, 31]
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: shapes.append(args[0].shape))
    with torch.no_grad():
        found = answer_logits(model, [ids, ids[:2]])
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].double()
        head = model.get_output_embeddings()
        expected = head.weight.double() @ hidden + (0 if head.bias is None else head.bias.double())
        if family == "gemma2":
            expected = 4.0 * torch.tanh(expected / 4.0)
    assert shapes == [(1, 2, 32)]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0].numpy(), expected.numpy(), rtol=0, atol=2e-5)


def test_only_the_named_positions_are_multiplied_in_float32(tiny_model) -> None:
    model = load_model(tiny_model("llama"), dtype="bfloat16").model
    ids, rows, columns = torch.tensor([[5, 9, 30, 31]]), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    in_float32 = logits_at(model, ids, rows, columns).detach()
    mixed = logits_at(model, ids, rows, columns, exact=torch.tensor([3])).detach()
    torch.testing.assert_close(mixed[3], in_float32[3], rtol=0, atol=2e-6)
    assert torch.equal(mixed[:3], mixed[:3].bfloat16().float())
    assert (mixed[:3] - in_float32[:3]).abs().max() > 1e-4
    torch.testing.assert_close(mixed, in_float32, rtol=2**-7, atol=1e-3)
    weight = model.model.layers[0].mlp.up_proj.weight.requires_grad_()
    found, expected = (
        torch.autograd.grad(logits_at(model, ids, rows, columns, exact=exact).logsumexp(dim=1).sum(), weight)
        for exact in (torch.tensor([3]), None)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0.05 * float(expected[0].abs().max()))


class Bypass(torch.nn.Module):
    """A model that multiplies by its head's weight without calling the head."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.head = model, torch.nn.Linear(2, 2)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, **inputs):
        return self.inner(**inputs)


def test_head_that_is_never_called_gives_the_same_logits(loaded) -> None:
    rows = [[5, 9, 30], [7, 8, 9, 10, 11], [6]]
    with evaluating(loaded.model):
        expected = answer_logits(loaded.model, rows)
        torch.testing.assert_close(answer_logits(Bypass(loaded.model), rows), expected, rtol=0, atol=1e-5)


def test_answer_logits_has_the_gradients_of_the_whole_forward(loaded) -> None:
    model = with_lora(loaded).model.eval()
    rows = [[5, 9, 30], [7, 8, 9, 10, 11]]
    gradients = []
    for logits in (
        answer_logits(model, rows),
        torch.stack([sequence_logits(model, [row])[0, -1] for row in rows]),
    ):
        model.zero_grad()
        logits.log_softmax(1)[:, 7].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_sequence_logits_are_those_of_each_sequence_alone(loaded) -> None:
    rows = [[5, 9, 30], [7, 8, 9, 10, 11]]
    with evaluating(loaded.model):
        together = sequence_logits(loaded.model, rows)
        alone = sequence_logits(loaded.model, rows[:1])
    torch.testing.assert_close(together[0, :3], alone[0], rtol=0, atol=1e-5)


PAIRS = [
    Preference(
        id=q.id, prompt=f"{q.question}\nAnswer:", chosen=f" {q.choices[0]}", rejected=f" {q.choices[1]} east"
    )
    for q in make_questions(6, seed=4)
]


def test_pairs_in_any_batches_give_the_same_log_probabilities(loaded) -> None:
    one, many = (sequence_logprobs(loaded, PAIRS, batch_tokens=tokens) for tokens in (1, 10**6))
    for name in ("chosen_nats", "rejected_nats"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=0, atol=1e-4)
        assert (getattr(one, name) < 0).all()
    assert many.ids == tuple(pair.id for pair in PAIRS)
    assert (many.rejected_tokens > many.chosen_tokens).all()


def test_pairs_are_tokenised_as_prompt_then_continuation_and_as_plain_text(loaded) -> None:
    tokenizer = loaded.tokenizer
    pair = Preference(id="p", prompt=f"what is {END}", chosen=" A", rejected=f" B{END}")
    row = encode_preference(loaded, pair)
    assert tokenizer.decode(row.prompt) == f"<s>what is {END}"
    assert [tokenizer.decode(ids) for ids in (row.chosen, row.rejected)] == [" A", f" B{END}"]
    assert not set(tokenizer.all_special_ids) & {*row.prompt[1:], *row.chosen, *row.rejected}
    # "capi" and "tal" make one token together; apart, the prompt keeps its own tokens on both sides.
    assert len(tokenizer(" capital", add_special_tokens=False)["input_ids"]) == 1
    torn = encode_preference(loaded, Preference(id="t", prompt="the capi", chosen="tal", rejected=" A"))
    assert tokenizer.decode(torn.prompt) == "<s>the capi"
    assert tokenizer.decode(torn.chosen) == "tal"


def test_unusable_pairs_are_named_together(loaded) -> None:
    bad = [
        Preference(id="long", prompt="word " * CONTEXT_TOKENS, chosen=" A", rejected=" B"),
        Preference(id="empty", prompt="what", chosen="", rejected=" B"),
    ]
    with pytest.raises(DataFormatError, match=r"2 of 8 .*'long' \(\d+ tokens.*1024\), 'empty' \(an empty"):
        encode_preferences(loaded, [*PAIRS, *bad])


def test_log_probabilities_that_are_not_finite_name_their_pairs(tiny_llama) -> None:
    broken = load_model(tiny_llama, dtype="float32")
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[7] = torch.inf
    with pytest.raises(DataFormatError, match=r"6 of 6 preference pairs: 'q0', 'q1'"):
        sequence_logprobs(broken, PAIRS)


def logprobs(chosen, rejected, chosen_tokens, rejected_tokens) -> PreferenceLogprobs:
    return PreferenceLogprobs(
        ids=tuple(map(str, range(len(chosen)))),
        chosen_nats=np.array(chosen, float),
        rejected_nats=np.array(rejected, float),
        chosen_tokens=np.array(chosen_tokens),
        rejected_tokens=np.array(rejected_tokens),
    )


def test_win_rate_by_hand() -> None:
    # Sums: win, loss, tie, win. Per token: -1 to -2, -1 to -1, -1 to -2, -3 to -2.
    found = win_rate(logprobs([-2, -4, -2, -3], [-4, -3, -2, -4], [2, 4, 2, 1], [2, 3, 1, 2]))
    assert found["n"] == 4
    assert found["sum"]["value"] == pytest.approx(2.5 / 4)
    assert found["per_token"]["value"] == pytest.approx(2.5 / 4)
    # Wilson's interval of 5 of 10, as tabled: 0.2366 to 0.7634.
    half = win_rate(logprobs([-1] * 5 + [-3] * 5, [-2] * 10, [1] * 10, [1] * 10))
    assert half["sum"]["low"] == pytest.approx(0.2366, abs=5e-5)
    assert half["sum"]["high"] == pytest.approx(0.7634, abs=5e-5)
    always = win_rate(logprobs([-1] * 10, [-2] * 10, [1] * 10, [1] * 10))
    assert always["sum"]["low"] == pytest.approx(0.7225, abs=5e-5)
    assert always["sum"]["high"] == pytest.approx(1.0, abs=1e-12)


def test_win_rate_of_nothing_is_refused() -> None:
    with pytest.raises(NotEnoughDataError, match="no preference pairs"):
        win_rate(logprobs([], [], [], []))
