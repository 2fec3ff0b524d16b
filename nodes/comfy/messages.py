"""Warnings of the pack and of the library, shown on the node that runs: a browser does not see the console."""

from __future__ import annotations

import logging

from comfy_execution.utils import get_executing_context

from ...unifusion_core import errors


class NodeMessages(logging.Handler):
    """Shows every warning as text on the node during whose run it is logged, in one place with the node's earlier warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        # (prompt id, node id) of the node that runs, and its warnings so far
        self.node: tuple[str, str] | None = None
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        from server import PromptServer

        running, server = get_executing_context(), getattr(PromptServer, "instance", None)
        if running is None or server is None:
            return
        node = (running.prompt_id, running.node_id)
        if node != self.node:
            self.node, self.sentences = node, []
        sentence = record.getMessage().removeprefix("UniFusion: ")
        if sentence not in self.sentences:
            self.sentences.append(sentence)
            server.send_progress_text("\n".join(self.sentences), running.node_id)


def show_on_nodes() -> None:
    """Installs the handler for all loggers of the pack, once."""
    logger = logging.getLogger(__name__.removesuffix(".nodes.comfy.messages"))
    if not any(isinstance(handler, NodeMessages) for handler in logger.handlers):
        logger.addHandler(NodeMessages())


def show_errors_by_name() -> None:
    """Has ComfyUI show errors as "ConfigError: sentence". It puts the module before the name, which for a pack is the path of its
    folder, except for types of `builtins`."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.UniFusionError):
            kind.__module__ = "builtins"


_said: set[tuple[str, str]] = set()


def say_once(logger: logging.Logger, sentence: str) -> None:
    """Logs a warning the first time it is given in a run of a workflow."""
    running = get_executing_context()
    run = "" if running is None else running.prompt_id
    _said.difference_update({each for each in _said if each[0] != run})
    if (run, sentence) not in _said:
        _said.add((run, sentence))
        logger.warning("UniFusion: %s", sentence)
