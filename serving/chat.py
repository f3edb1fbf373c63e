"""`serval chat`: a conversation in the terminal, or one question from the command line."""

import dataclasses
import sys

from rich.console import Console

from protocol.errors import ServalError
from serving.chat_client import ChatOptions, Cluster, Conversation, connect, served_model

HELP = "/reset forgets the conversation, /exit ends it, Ctrl-C stops an answer."


def chat(cluster: Cluster, question: str | None, options: ChatOptions) -> int:
    """Answers `question`, or talks until /exit. The exit status."""
    with connect(cluster) as client:
        model = options.model or served_model(client)
        terminal = _Terminal(Conversation(client, dataclasses.replace(options, model=model)))
        if question is not None:
            terminal.answer(question)
            return 0
        return terminal.talk(model, cluster.url)


class _Terminal:
    """Answers go to stdout as they come, everything else to stderr: `serval chat "…" > file` holds the answer alone."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._side = Console(stderr=True, highlight=False)

    def talk(self, model: str, url: str) -> int:
        self._say(f"{model} at {url}. {HELP}")
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._side.print()
                return 0
            match line:
                case "":
                    continue
                case "/exit" | "/quit":
                    return 0
                case "/reset":
                    self._conversation.reset()
                    self._say("forgotten")
                case _ if line.startswith("/"):
                    self._say(HELP)
                case _:
                    self._answer_or_say_why(line)

    def answer(self, question: str) -> None:
        """Prints the answer and its figures. Raises what the conversation raises."""
        for piece in self._conversation.ask(question):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self._conversation.figures:
            self._say(str(self._conversation.figures))

    def _answer_or_say_why(self, question: str) -> None:
        try:
            self.answer(question)
        except KeyboardInterrupt:
            self._say("\nstopped")
        except ServalError as error:
            self._say(f"\nerror: {error}")

    def _say(self, text: str) -> None:
        self._side.print(text, style="dim", markup=False, soft_wrap=True)
