"""What speculation is measured on: answers that copy much of their prompt, and ordinary ones. Plain text for a small model."""

from dataclasses import dataclass

COPY, ORDINARY = "copy", "ordinary"

NOTICE = """The library on Mill Street will be closed from Monday 3 March until Friday 14 March while the heating is replaced. \
Books that are due in this time may be returned until Saturday 22 March without a fee. Reserved books can be fetched at the side \
door on Wednesday and Thursday between two and six in the afternoon. The reading room for newspapers moves to the town hall, \
first floor, room 112, and opens there at nine. Please bring your library card, as the desk there has no register."""

RECIPE = """Put 500 grams of flour, 10 grams of salt and 7 grams of dry yeast into a large bowl. Add 320 millilitres of warm \
water and two spoons of olive oil, and knead for ten minutes until the dough is smooth. Cover the bowl with a wet cloth and let \
it rest for an hour in a warm place. Form two loaves, cut each of them three times with a sharp knife, and bake them at 220 \
degrees for 35 minutes. Let them cool on a rack before you cut them."""

CODE = """def total_price(items, tax_rate):
    subtotal = 0
    for item in items:
        if item.quantity < 1:
            raise ValueError("quantity must be at least 1")
        subtotal = subtotal + item.price * item.quantity
    tax = subtotal * tax_rate
    return subtotal + tax


def average_price(items):
    if not items:
        return 0
    return sum(item.price for item in items) / len(items)
"""

RECORDS = """{"name": "Anna Berg", "city": "Oslo", "born": 1984, "member": true}
{"name": "Luis Prado", "city": "Lima", "born": 1990, "member": false}
{"name": "Mei Tanaka", "city": "Kyoto", "born": 1978, "member": true}
{"name": "Omar Haddad", "city": "Tunis", "born": 1969, "member": true}
{"name": "Eva Novak", "city": "Brno", "born": 2001, "member": false}
"""


@dataclass(frozen=True)
class Task:
    """One prompt; its answer has exactly so many tokens."""

    name: str
    kind: str
    prompt: str
    max_tokens: int
    temperature: float = 0.0


def _repeat(text: str) -> str:
    """The form of a document that says the same thing twice, which needs no instruction to be understood."""
    return f"Original text:\n\n{text}\n\nExact copy of the original text:\n\n{text}\n\nAnother exact copy of the original text:\n\n"


def _ask(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


TASKS = (
    Task("notice, repeated", COPY, _repeat(NOTICE), 112),
    Task("recipe, repeated", COPY, _repeat(RECIPE), 112),
    Task("code, repeated", COPY, _repeat(CODE), 112),
    Task("records, repeated", COPY, _repeat(RECORDS), 112),
    Task("explanation", ORDINARY, _ask("Why is the sky blue during the day and red in the evening?"), 112),
    Task("story", ORDINARY, _ask("Write a short story about a girl who finds an old map."), 112, 0.8),
    Task("advice", ORDINARY, _ask("How should I prepare for a long walk in the mountains?"), 112, 0.8),
    Task("letter", ORDINARY, _ask("Write a friendly letter to a neighbour who has moved away."), 112, 0.8),
)
"""Of 135 million parameters one cannot ask for obedience: what is to be copied stands in its prompt twice."""
