"""The engine as a worker uses it: hand over, step, publish, release."""

import threading
from dataclasses import replace

import pytest
import torch

from engine.batch import Batch
from engine.sequence import Sequence
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from tests.unit.engine.conftest import MakeEngine, greedy, random_prompt


def assert_balanced(under_test: object) -> None:
    cache = under_test.engine.kv_cache  # type: ignore[attr-defined]
    cache.check_integrity()
    assert cache.num_held == 0
    assert cache.num_free + cache.num_cached == cache.num_blocks


def test_tokens_do_not_depend_on_chunk_size_or_batch(make_engine: MakeEngine) -> None:
    prompts = [random_prompt(length, seed) for seed, length in enumerate((1, 15, 16, 17, 64, 150, 211))]
    reference = make_engine(max_batch_tokens=1024)
    expected = [reference.answer(prompt) for prompt in prompts]
    for chunk in (16, 37, 64, 1024):
        together = make_engine(max_batch_tokens=chunk)
        sequences = [greedy(str(i), prompt) for i, prompt in enumerate(prompts)]
        together.finish(*sequences)
        assert [sequence.output for sequence in sequences] == expected
        assert_balanced(together)


def test_random_tokens_do_not_depend_on_chunk_size_or_batch(make_engine: MakeEngine) -> None:
    def sequences() -> list[Sequence]:
        return [greedy(str(i), random_prompt(30 + i, i), temperature=1.0, seed=i, top_p=0.9) for i in range(6)]

    alone, together = sequences(), sequences()
    for sequence in alone:
        make_engine().finish(sequence)
    make_engine(max_batch_tokens=17).finish(*together)
    assert [s.output for s in together] == [s.output for s in alone]


def test_a_continued_request_goes_on_as_it_would_have(make_engine: MakeEngine) -> None:
    prompt = random_prompt(40)
    for settings in ({"temperature": 0.0}, {"temperature": 1.2, "seed": 3, "top_p": 0.95}):
        whole = make_engine().answer(prompt, max_tokens=20, **settings)
        rest = make_engine().answer(prompt + whole[:8], max_tokens=12, **settings)
        assert whole[8:] == rest


def test_prefix_cache_changes_no_token(make_engine: MakeEngine) -> None:
    shared = random_prompt(100)
    engine, cold = make_engine(), make_engine(prefix_cache=False)
    for tail in ([1, 2, 3], [9] * 30, []):
        warm = greedy("warm", shared + tail)
        engine.finish(warm)
        assert warm.output == cold.answer(shared + tail)
    assert engine.metrics.value("serval_prefix_cache_hits_total") > 0
    assert cold.metrics.value("serval_prefix_cache_hits_total") == 0
    assert_balanced(engine)
    assert_balanced(cold)


def test_an_answer_is_in_the_prefix_cache_too(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = random_prompt(20)
    answer = engine.answer(prompt, max_tokens=40)
    follow_up = greedy("next", [*prompt, *answer, 5])
    engine.finish(follow_up)
    assert follow_up.cached_tokens == 48  # of 61: the last answer token's KV was never computed


def test_decode_of_a_transferred_prompt(make_engine: MakeEngine) -> None:
    prompt = random_prompt(50)
    prefill, decode = make_engine(), make_engine(blocks=64)
    expected = make_engine().answer(prompt, max_tokens=10)

    first = greedy("r", prompt, max_tokens=1)
    prefill.engine.submit(first)
    (update,) = prefill.engine.step()
    assert (update.token_ids, update.finish) == ((expected[0],), "length")
    reserved = decode.engine.kv_cache.allocate(4)
    decode.engine.pool.data[:, reserved] = prefill.engine.pool.data[:, first.blocks]
    prefill.engine.release(first)

    second = Sequence("r", prompt, greedy("r", prompt, max_tokens=10).params, reserved, num_computed=50, output=[expected[0]])
    decode.finish(second)
    assert second.output == expected
    assert decode.engine.steps == 9, "the prompt was not computed again"
    assert_balanced(decode)
    assert_balanced(prefill)


def test_local_prefill_with_reserved_blocks_and_a_cached_beginning(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = random_prompt(60)
    expected = engine.answer(prompt)
    cache = engine.engine.kv_cache
    blocks, cached = cache.match_prefix(prompt)
    blocks += cache.allocate(cache.blocks_for(60) - len(blocks))
    sequence = Sequence("local", prompt, greedy("local", prompt).params, blocks, num_computed=cached)
    engine.finish(sequence)
    assert (sequence.output, sequence.cached_tokens) == (expected, 48)

    again = Sequence("again", prompt, sequence.params, cache.allocate(5), output=expected[:5])
    engine.finish(again)
    assert again.output == expected
    assert_balanced(engine)


def test_preempted_sequences_answer_as_if_never_preempted(make_engine: MakeEngine) -> None:
    prompts = [random_prompt(30, seed) for seed in range(6)]
    roomy, tight = make_engine(), make_engine(blocks=14)
    expected = [roomy.answer(prompt, max_tokens=60) for prompt in prompts]
    sequences = [greedy(str(i), prompt, max_tokens=60) for i, prompt in enumerate(prompts)]
    finals = tight.finish(*sequences)
    assert [sequence.output for sequence in sequences] == expected
    assert {update.finish for update in finals.values()} == {"length"}
    assert tight.metrics.value("serval_num_preemptions_total") > 0
    assert_balanced(tight)


def test_each_token_is_published_once_even_after_preemption(make_engine: MakeEngine) -> None:
    tight = make_engine(blocks=6)
    sequences = [greedy(str(i), random_prompt(20, i), max_tokens=40) for i in range(3)]
    tight.finish(*sequences)
    for sequence in sequences:
        published = [t for update in tight.updates if update.sequence is sequence for t in update.token_ids]
        assert published == sequence.output
        assert len(published) == 40


def test_stop_reasons(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = random_prompt(25)
    free = engine.answer(prompt, max_tokens=30)
    third = free[2]
    stopped = greedy("stop", prompt, max_tokens=30, stop_token_ids=(third,))
    assert engine.finish(stopped)["stop"].finish == "stop"
    assert stopped.output == free[: free.index(third) + 1]

    later = greedy("later", prompt, max_tokens=30, stop_token_ids=(third,), min_tokens=10)
    engine.finish(later)
    assert len(later.output) >= 10
    assert third not in later.output[:10]

    forced = {258: 100.0}  # the model's own end-of-sequence
    assert engine.answer(prompt, ignore_eos=False, logit_bias=forced) == [258]
    assert engine.answer(prompt, ignore_eos=True, logit_bias=forced, max_tokens=3) == [258] * 3


def test_the_context_is_a_limit(make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_len=40)
    sequence = greedy("r", random_prompt(30), max_tokens=100)
    assert engine.finish(sequence)["r"].finish == "length"
    assert len(sequence.tokens) == 40
    with pytest.raises(InvalidRequest, match="40"):
        engine.engine.submit(greedy("too long", random_prompt(40)))
    with pytest.raises(InvalidRequest, match="empty"):
        engine.engine.submit(greedy("empty", []))


def test_a_submission_must_hold_what_it_says(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for wrong in (
        Sequence("no blocks", [1, 2, 3], SamplingParams(), num_computed=2),
        Sequence("nothing left", [1, 2], SamplingParams(), engine.engine.kv_cache.allocate(1), num_computed=2),
    ):
        with pytest.raises(InvalidRequest):
            engine.engine.submit(wrong)


def test_a_sequence_that_is_complete_already_ends_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    blocks = engine.engine.kv_cache.allocate(1)
    done = Sequence("done", [1, 2, 3], SamplingParams(max_tokens=1), blocks, num_computed=3, output=[4])
    final = engine.finish(done)["done"]
    assert (final.finish, final.token_ids, done.output) == ("length", (), [4])
    assert_balanced(engine)


def test_abort_ends_waiting_running_and_prefilling_sequences(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=2, max_batch_tokens=32)
    sequences = [
        greedy(name, random_prompt(length, i), max_tokens=500)
        for i, (name, length) in enumerate((("a", 8), ("b", 90), ("c", 5)))
    ]
    for sequence in sequences:
        engine.engine.submit(sequence)
    engine.step()
    for sequence in sequences:
        engine.engine.abort(sequence.request_id)
    engine.engine.abort("unknown")
    updates = engine.step()
    assert {(update.request_id, update.finish) for update in updates} == {("a", "aborted"), ("b", "aborted"), ("c", "aborted")}
    assert engine.engine.is_idle
    engine.engine.abort("a")
    assert engine.step() == []
    assert_balanced(engine)


def test_blocks_stay_with_an_ended_sequence_until_it_is_released(make_engine: MakeEngine) -> None:
    engine = make_engine()
    sequence = greedy("r", random_prompt(33), max_tokens=1)
    engine.engine.submit(sequence)
    engine.engine.step()
    assert len(sequence.blocks) == 3
    assert engine.engine.kv_cache.num_held == 3
    engine.engine.release(sequence)
    assert_balanced(engine)
    with pytest.raises(AssertionError, match="twice"):
        engine.engine.release(sequence)


def test_the_hook_sees_every_layer_of_every_token_with_its_kv_in_the_pool(make_engine: MakeEngine) -> None:
    seen: list[tuple[int, str, int, int]] = []
    copies: dict[tuple[int, str], list[torch.Tensor]] = {}

    def on_layer(layer: int, batch: Batch) -> None:
        for span in batch.spans:
            seen.append((layer, span.sequence.request_id, span.start, span.end))
            slots = [span.sequence.blocks[p // 16] * 16 + p % 16 for p in range(span.start, span.end)]
            copies.setdefault((layer, span.sequence.request_id), []).append(
                engine.engine.pool.layer_tokens[layer][slots].clone()
            )

    engine = make_engine(on_layer=on_layer, max_batch_tokens=32)
    first, second = greedy("a", random_prompt(50, 1), max_tokens=1), greedy("b", random_prompt(20, 2), max_tokens=1)
    engine.engine.submit(first)
    engine.engine.submit(second)
    while not engine.engine.is_idle:
        engine.engine.step()
    assert seen == [
        *((layer, "a", 0, 32) for layer in range(4)),
        *(entry for layer in range(4) for entry in ((layer, "a", 32, 50), (layer, "b", 0, 14))),
        *((layer, "b", 14, 20) for layer in range(4)),
    ]
    for (layer, name), parts in copies.items():
        sequence = first if name == "a" else second
        final = engine.engine.pool.data[layer, sequence.blocks].flatten(0, 1)[: len(sequence.prompt)]
        assert torch.equal(torch.cat(parts), final)
        assert bool((final != 0).any(dim=1).all())


def test_a_failing_step_ends_only_its_sequences(make_engine: MakeEngine) -> None:
    def on_layer(layer: int, batch: Batch) -> None:
        if any(span.sequence.request_id == "bad" for span in batch.spans):
            raise RuntimeError("no such device")

    engine = make_engine(on_layer=on_layer, max_batch_tokens=16, max_sequences=1)
    bad, good = greedy("bad", random_prompt(20)), greedy("good", random_prompt(20))
    engine.engine.submit(bad)
    engine.engine.submit(good)
    with pytest.raises(RuntimeError) as raised:
        engine.engine.step()
    (update,) = engine.engine.fail(raised.value)
    assert (update.request_id, update.finish) == ("bad", "error")
    assert "no such device" in str(update.error)
    engine.engine.release(bad)
    assert engine.finish()["good"].finish == "length"
    assert good.output == make_engine().answer(random_prompt(20))
    assert_balanced(engine)


def test_submit_abort_and_release_from_many_threads(make_engine: MakeEngine) -> None:
    engine = make_engine(blocks=24)
    inner = engine.engine
    ended: list[Sequence] = []

    def submit(worker: int) -> None:
        for turn in range(8):
            name = f"{worker}.{turn}"
            inner.submit(greedy(name, random_prompt(10 + 7 * turn, worker), max_tokens=5))
            if turn % 3 == 0:
                inner.abort(name)

    threads = [threading.Thread(target=submit, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        for update in inner.step():
            if update.finish:
                ended.append(update.sequence)
                releaser = threading.Thread(target=inner.release, args=(update.sequence,))
                releaser.start()
                releaser.join(10)
        if len(ended) == 32:
            break
    assert len({sequence.request_id for sequence in ended}) == len(ended) == 32
    assert_balanced(engine)


def test_gauges_follow_the_state(make_engine: MakeEngine) -> None:
    engine = make_engine(max_sequences=1, max_batch_tokens=16)
    for i in range(2):
        engine.engine.submit(greedy(str(i), random_prompt(40, i)))
    engine.step()
    value = engine.metrics.value
    assert (value("serval_num_requests_running"), value("serval_num_requests_waiting")) == (1, 1)
    assert value("serval_kv_blocks", state="held") == 3
    assert value("serval_kv_cache_usage_perc") == pytest.approx(3 / 256)
    engine.finish()
    engine.step()
    assert value("serval_kv_blocks", state="held") == 0
    assert value("serval_engine_steps_total") == engine.engine.steps > 0


def test_logprobs_come_with_each_token(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.finish(greedy("r", random_prompt(9), logprobs=2, max_tokens=3))
    for update in engine.updates:
        (entry,) = update.logprobs
        assert entry.token_id == update.token_ids[0] == entry.top[0][0]
        assert entry.logprob == entry.top[0][1] >= entry.top[1][1]
    plain = replace(SamplingParams(), temperature=0.0)
    engine.updates.clear()
    engine.finish(Sequence("plain", [1, 2], plain))
    assert all(update.logprobs == () for update in engine.updates)


def test_shares_of_busy_time_add_up(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=32)
    sequences = [greedy(str(i), random_prompt(length, i), max_tokens=6) for i, length in enumerate((3, 40, 90))]
    engine.finish(*sequences)
    busy_s = engine.metrics.value("serval_engine_busy_seconds_total")
    assert sum(sequence.busy_s for sequence in sequences) == pytest.approx(busy_s)
    assert engine.metrics.value("serval_engine_step_seconds_count") == engine.engine.steps
    assert all(0 < sequence.prefill_busy_s < sequence.busy_s for sequence in sequences)
    assert sequences[0].prefill_busy_s < sequences[1].prefill_busy_s < sequences[2].prefill_busy_s


def test_siblings_share_the_prompt_as_soon_as_it_is_computed(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=256)
    prompt = random_prompt(100)
    siblings = [greedy(str(i), prompt, temperature=1.0, seed=i, max_tokens=20) for i in range(4)]
    engine.engine.submit(siblings[0])
    while len(siblings[0].output) < 2:
        engine.step()
    held = engine.engine.kv_cache.num_held
    for sibling in siblings[1:]:
        engine.engine.submit(sibling)
    engine.step()
    assert [sibling.cached_tokens for sibling in siblings] == [0, 96, 96, 96]
    assert engine.engine.kv_cache.num_held == held + 3, "only the tail is anybody's own"
    engine.finish()
    alone = make_engine()
    for seed, sibling in enumerate(siblings):
        assert sibling.output == alone.answer(prompt, temperature=1.0, seed=seed, max_tokens=20)
    assert_balanced(engine)
