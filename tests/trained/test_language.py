"""The generated language: every document's answers follow from its statements, read here word by word."""

import pytest
import torch

from gdn_lab.trained import language
from gdn_lab.trained.vocabulary import FIRST_NAME, NAMES, NUMBERS, WORDS

SIGNS = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
NUMBER = {word: value for value, word in enumerate(WORDS[9 : 9 + NUMBERS])}


def text_of(tokens) -> str:
    """The words of tokens, a space between them."""
    return " ".join(WORDS[token] for token in tokens)


def read(words: list[str], known: dict[str, int]) -> list[tuple[int, int]]:
    """(place of an answer's word, the right value) of a document's words; `known` takes what names are worth."""
    found, place = [], 0
    while words[place] == "_":
        place += 1
    while place < len(words):
        rest = words[place:]
        if rest[0] == "calc" and len(rest) >= 9:
            left, right, third = (known.get(word, NUMBER.get(word)) for word in rest[1:6:2])
            first = SIGNS[rest[2]](left, right) % 10
            found += [(place + 7, first), (place + 8, SIGNS[rest[4]](first, third) % 10)]
            place += 9
            continue
        if len(rest) < 3 or rest[0] == "calc":
            break
        if rest[0] == "ask":
            found.append((place + 2, known[rest[1]]))
        else:
            known[rest[0]] = NUMBER[rest[2]] if rest[1] == "is" else known[rest[2]]
        place += 3
    return found


def test_every_answer_of_a_document_is_right_and_marked():
    made = language.documents(60, 40, 12, seed=1)
    answers = 0
    for tokens, predicted in zip(made.tokens, made.predicted, strict=True):
        words = text_of(tokens.tolist()).split()
        expected = read(words, {})
        assert [(place, NUMBER[words[place]]) for place in predicted.nonzero()[:, 0].tolist()] == expected
        answers += len(expected)
    assert answers > 300


@pytest.mark.parametrize("tokens", [128, 129, 130, 192])
def test_a_question_has_the_answer_that_its_document_gives(tokens):
    asked = language.questions(30, tokens, 10, seed=2)
    assert asked.prompts.shape == (30, tokens) and asked.kinds[:3] == ["recall", "tracking", "arithmetic"]
    for prompt, answer, length in zip(asked.prompts, asked.answers, asked.lengths, strict=True):
        words = text_of([*prompt.tolist(), *answer[:length].tolist()]).split()
        assert words[0] == "_"
        expected = read(words, {})[-int(length) :]
        assert [(place, NUMBER[words[place]]) for place, _ in expected] == expected
        assert expected[-1][0] == len(words) - 1


def test_kinds_differ_as_they_say():
    asked = language.questions(30, 300, 10, seed=0)
    texts = [text_of(prompt.tolist()) for prompt in asked.prompts]
    assert all(("takes" in text) == (kind == "tracking") for text, kind in zip(texts, asked.kinds, strict=True))
    assert all(("calc" in text) == (kind == "arithmetic") for text, kind in zip(texts, asked.kinds, strict=True))
    assert all(text.count("ask") <= 1 for text in texts)


def test_a_seed_repeats_and_another_does_not():
    first, same, other = (language.documents(4, 20, 8, seed=seed).tokens for seed in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_words_are_all_different():
    assert len(set(WORDS)) == len(WORDS) == FIRST_NAME + NAMES
    assert WORDS[9 + 42] == "forty-two"
