"""The one error of this tool: a sentence that says what is wrong and what to do."""


class Refusal(Exception):
    """The command cannot do what it was asked; the message is for the person who asked."""
