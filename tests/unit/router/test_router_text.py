"""Tokens to text: no character is split, no part of a stop string goes out, whatever the pieces."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from router.text.answer_text import AnswerText, StopStrings
from router.text.detokenizer import REPLACEMENT, Detokenizer, StreamDetokenizer
from router.text.token_bytes import TokenBytes
from router.text.tokenizer import TextTokenizer
from tests.integration.router_support import EOS, byte_level_tokenizer

BACKEND = byte_level_tokenizer()
TOKENIZER = TextTokenizer(BACKEND, None)


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """The stop string that is complete first ends the text, where it begins."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


@given(
    st.text(alphabet="ab\n", max_size=30),
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4),
    st.randoms(use_true_random=False),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(text: str, stops: list[str], draw: random.Random) -> None:
    expected, expected_stop = reference(text, stops)
    finder, out, rest, stopped = StopStrings(stops), "", text, False
    while rest and not stopped:
        size = draw.randint(1, 4)
        piece, rest = rest[:size], rest[size:]
        released, stopped = finder.feed(piece)
        out += released
        assert expected.startswith(out), "text beyond the stop string has leaked"
    if not stopped:
        out += finder.flush()
    assert (out, stopped) == (expected, expected_stop)


def test_what_may_become_a_stop_string_is_held_and_nothing_more() -> None:
    finder = StopStrings(["stop", "##"])
    assert finder.feed("a sto") == ("a ", False)
    assert finder.feed("ne #") == ("stone ", False)
    assert finder.feed("# x") == ("", True)


def both() -> list[Detokenizer]:
    """Our own, and the library's stream, which serves every other kind of vocabulary."""
    return [TOKENIZER.detokenizer(), StreamDetokenizer(BACKEND)]


@given(st.text(st.characters(exclude_characters=REPLACEMENT, exclude_categories=["Cs"]), max_size=40))
def test_pieces_join_to_the_text_and_split_no_character(text: str) -> None:
    for detokenizer in both():
        pieces = [detokenizer.push([token]) for token in BACKEND.encode(text, add_special_tokens=False).ids]
        assert "".join([*pieces, detokenizer.flush()]) == text
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(st.text("a\u00e9" + REPLACEMENT, max_size=10))
def test_bytes_tell_a_replacement_character_that_was_said_from_one_that_stands_for_broken_bytes(text: str) -> None:
    detokenizer = TOKENIZER.detokenizer()
    pieces = [detokenizer.push([token]) for token in BACKEND.encode(text, add_special_tokens=False).ids]
    assert "".join([*pieces, detokenizer.flush()]) == text


def test_an_incomplete_last_character_is_dropped_but_not_what_precedes_it() -> None:
    tokens = BACKEND.encode("stop😀").ids
    for detokenizer in both():
        text = "".join(detokenizer.push([token]) for token in tokens[:-1]) + detokenizer.flush()
        assert text == "stop"


def half_a_character() -> TextTokenizer:
    """Token 2 is " \xc3": a space and the first half of a character."""
    backend = Tokenizer(models.BPE(vocab={"Ġ": 0, "Ã": 1, "ĠÃ": 2, "a": 3}, merges=[("Ġ", "Ã")]))
    backend.decoder = decoders.ByteLevel()
    return TextTokenizer(backend, None)


def test_text_in_a_token_that_also_begins_a_character_comes_out() -> None:
    tokenizer = half_a_character()
    for detokenizer in (tokenizer.detokenizer(), StreamDetokenizer(tokenizer.backend)):
        assert detokenizer.push([2]) + detokenizer.flush() == " "


def test_bytes_that_never_become_a_character_are_not_held_for_ever() -> None:
    continuation = BACKEND.token_to_id("¡")  # byte 0xA1, which begins no character
    for detokenizer in both():
        pieces = [detokenizer.push([continuation]) for _ in range(1000)]
        assert "".join(pieces).count(REPLACEMENT) > 900
        assert detokenizer.push([BACKEND.token_to_id("a")]).endswith("a")


@given(st.lists(st.lists(st.integers(min_value=0, max_value=BACKEND.get_vocab_size() - 1), max_size=5), max_size=30))
def test_any_tokens_at_all_give_the_decoded_text_however_they_are_cut(cuts: list[list[int]]) -> None:
    expected = BACKEND.decode([token for cut in cuts for token in cut])
    for detokenizer in both():
        text = "".join([*(detokenizer.push(cut) for cut in cuts), detokenizer.flush()])
        assert text.rstrip(REPLACEMENT) == expected.rstrip(REPLACEMENT)


def test_added_tokens_of_a_byte_level_vocabulary_decode_as_the_library_has_it() -> None:
    backend = byte_level_tokenizer()
    backend.add_tokens(["ä b", "é", "日本", "x"])
    backend.add_special_tokens(["<ä>"])
    detokenizer = TextTokenizer(backend, None).detokenizer()
    for token in range(backend.get_vocab_size() + 3):
        pair = [token, backend.token_to_id("a")]
        assert detokenizer.push(pair) == backend.decode(pair)


def test_leading_spaces_of_sentencepiece_words_survive() -> None:
    pieces = ["<unk>", "▁the", "▁answer", "er"]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    detokenizer = TextTokenizer(backend, None).detokenizer()
    assert [detokenizer.push([token]) for token in (1, 2, 3, 1)] == ["the", " answer", "er", " the"]


def test_special_tokens_have_no_text() -> None:
    for detokenizer in both():
        assert detokenizer.push([BACKEND.token_to_id(EOS)]) == ""


def test_a_stop_string_counts_only_from_min_tokens_on() -> None:
    answer = AnswerText(TOKENIZER, ["x"], min_tokens=3)
    x = BACKEND.token_to_id("x")
    assert [answer.push([x]) for _ in range(3)] == [("x", False), ("x", False), ("", True)]
    assert (answer.characters, answer.released) == (3, 2)


def test_a_stop_string_in_a_token_that_also_begins_a_character_is_found() -> None:
    answer = AnswerText(half_a_character(), ["a "], min_tokens=0)
    assert answer.push([3]) == ("", False)
    assert answer.push([2]) == ("", True)


def test_a_stop_string_completed_by_the_last_held_bytes_is_found() -> None:
    alphabet = {"Ġ": 0, "Ã": 1, "ĠÃ": 2, "a": 3}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[("Ġ", "Ã")]))
    backend.decoder = decoders.Sequence([decoders.ByteLevel()])  # the same, by the library
    answer = AnswerText(TextTokenizer(backend, None), ["a "], min_tokens=0)
    assert answer.push([3]) == ("", False)
    assert answer.push([2]) == ("", False)
    assert answer.finish() == ("", True)


@pytest.mark.parametrize(
    ("token", "text", "data"),
    [("Ġthe", " the", b" the"), ("Ã¤", "ä", "ä".encode()), ("Ã", REPLACEMENT, b"\xc3"), (EOS, EOS, EOS.encode())],
)
def test_bytes_of_byte_level_tokens(token: str, text: str, data: bytes) -> None:
    assert TokenBytes(BACKEND).of(BACKEND.token_to_id(token)) == (text, data)


def test_bytes_of_every_token_of_a_text_join_to_the_text() -> None:
    text = "naïve 日本 😀\n\tthe end"
    assert b"".join(TokenBytes(BACKEND).of(token)[1] for token in BACKEND.encode(text).ids) == text.encode()


def test_bytes_of_sentencepiece_tokens() -> None:
    pieces = {"<unk>": 0, "▁the": 1, "<0xE2>": 2}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    assert [TokenBytes(backend).of(index)[1] for index in range(1, 4)] == [b" the", b"\xe2", b"<s>"]
    assert TokenBytes(backend).of(99) == ("", b"")
