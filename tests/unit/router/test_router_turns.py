"""Writers take turns: nobody is delayed on an idle loop, nobody is forgotten on a busy one, and what waits gathers."""

import asyncio

from router.turns import FEWEST_PER_ROUND, ROUNDS, ROUNDS_TO_READ, News, Turns

WAIT_S = 5.0


class Writer:
    """Counts what came between two of its turns, as a front that sends one event for it does."""

    def __init__(self, turns: Turns, log: list[str], name: str) -> None:
        self.news = News(turns)
        self.name = name
        self.gathered = 0
        self.events: list[int] = []
        self._log = log
        self.task = asyncio.create_task(self._run())

    def give(self) -> None:
        self.gathered += 1
        self.news.set()

    async def _run(self) -> None:
        while True:
            await self.news.wait()
            self.news.clear()
            self._log.append(self.name)
            self.events.append(self.gathered)
            self.gathered = 0


async def writers(count: int) -> tuple[list[Writer], list[str]]:
    """Waiting for their first news."""
    turns, log = Turns(), list[str]()
    made = [Writer(turns, log, str(number)) for number in range(count)]
    await asyncio.sleep(0)
    return made, log


async def until_all_wrote(all_writers: list[Writer]) -> None:
    async with asyncio.timeout(WAIT_S):
        while any(writer.gathered for writer in all_writers):  # noqa: ASYNC110 - rounds of the loop are what is waited for
            await asyncio.sleep(0)


async def test_on_an_idle_loop_news_are_written_in_the_next_round() -> None:
    [writer], _ = await writers(1)
    for _ in range(5):
        writer.give()
        await asyncio.sleep(0)
        assert writer.gathered == 0
    assert writer.events == [1, 1, 1, 1, 1]


async def test_everybody_writes_once_and_in_the_order_of_their_news() -> None:
    made, log = await writers(100)
    for writer in made:
        writer.give()
    await until_all_wrote(made)
    assert log == [writer.name for writer in made]


async def test_what_comes_while_a_writer_waits_goes_out_in_one_event() -> None:
    made, _ = await writers(64)
    for _ in range(3):
        for writer in made:
            writer.give()
    await until_all_wrote(made)
    assert all(writer.events == [3] for writer in made)


async def test_a_round_serves_a_few_and_a_long_line_takes_a_bounded_number_of_rounds() -> None:
    made, log = await writers(320)
    for writer in made:
        writer.give()
    await asyncio.sleep(0)
    assert len(log) == FEWEST_PER_ROUND
    for _ in range(ROUNDS_TO_READ):
        await asyncio.sleep(0)
    assert len(log) <= FEWEST_PER_ROUND + 320 // ROUNDS, "between writers there is room for reading"
    served_by_round = []
    for _ in range(3 * ROUNDS):
        for _ in range(1 + ROUNDS_TO_READ):
            await asyncio.sleep(0)
        served_by_round.append(len(log))
    assert served_by_round[ROUNDS] > 320 / 2
    await until_all_wrote(made)


async def test_first_news_go_before_those_of_writers_that_have_begun() -> None:
    made, log = await writers(40)
    begun, fresh = made[:-1], made[-1]
    for writer in begun:
        writer.give()
    await until_all_wrote(begun)
    log.clear()
    for writer in [*begun, fresh]:
        writer.give()
    await until_all_wrote(made)
    assert log.index(fresh.name) <= FEWEST_PER_ROUND, "it went before all who were not awake already"


async def test_a_writer_that_went_away_takes_no_turn_from_others() -> None:
    made, log = await writers(20)
    for writer in made:
        writer.give()
    for writer in made[::2]:
        writer.task.cancel()
    await until_all_wrote(made[1::2])
    assert log == [writer.name for writer in made[1::2]], "each once, in the order of their news"


async def test_news_that_were_set_before_the_wait_are_not_waited_for() -> None:
    news = News(Turns())
    news.set()
    await asyncio.wait_for(news.wait(), WAIT_S)
    assert news.is_set()
