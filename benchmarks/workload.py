"""What a benchmark asks for: seeded synthetic prompts and arrival times. Pure."""

from random import Random

from benchmarks.completions import Prompt

COMMON_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part place case
week company system program question work number night point home water room mother area money story fact month lot right study
book eye job word business issue side kind head house service friend father power hour game line end member law car city name
president team minute idea kid body information back parent face level office door health person art war history party result
change morning reason research girl guy moment air teacher force education
"""


def token_prompt(random: Random, tokens: int, vocabulary: int) -> list[int]:
    """`tokens` ids, uniform over the middle half of the vocabulary: special tokens and single bytes, which models keep at
    either end, stay out. Two prompts practically never share a prefix, so no prefix cache answers for the engine."""
    return [random.randrange(vocabulary // 4, vocabulary * 3 // 4) for _ in range(tokens)]


def text_prompt(random: Random, words: int) -> str:
    """`words` common English words; most are one token each, so the prompt's length is near, not equal to, `words`."""
    return " ".join(random.choices(COMMON_WORDS.split(), k=words))


def prompts(seed: int, count: int, tokens: int, vocabulary: int | None) -> list[Prompt]:
    """`count` prompts of `tokens` tokens: ids below `vocabulary`, or words of text when it is None."""
    random = Random(seed)
    if vocabulary is None:
        return [text_prompt(random, tokens) for _ in range(count)]
    return [token_prompt(random, tokens, vocabulary) for _ in range(count)]


def poisson_arrivals_s(seed: int, count: int, rate: float) -> list[float]:
    """Seconds from the start at which each of `count` requests arrives, `rate` per second on average; the first at 0."""
    if rate <= 0:
        raise ValueError(f"rate must be positive, not {rate}")
    random = Random(seed)
    arrivals = [0.0]
    while len(arrivals) < count:
        arrivals.append(arrivals[-1] + random.expovariate(rate))
    return arrivals[:count]
