"""The program ``hear-eval``: its commands, each in a file of its own.

The files import their libraries when a command runs, so that no help text waits for torch.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from gram_hear.commands.hear_eval.check import check
from gram_hear.commands.hear_eval.embed import embed
from gram_hear.commands.hear_eval.evaluate import evaluate
from gram_hear.commands.hear_eval.fetch import fetch
from gram_hear.commands.hear_eval.make_task import make_task
from gram_hear.commands.hear_eval.options import SEVERAL_TASKS
from gram_hear.commands.hear_eval.predict import predict
from gram_hear.commands.hear_eval.report import report
from gram_hear.commands.hear_eval.tasks import tasks
from gram_hear.console import HELP, run


class _Commands(TyperGroup):
    """The commands. A word that is none of them may have been meant for ``--task``."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; a usage error where ``--task`` was given before a word that is none."""
        command = super().get_command(ctx, cmd_name)
        if command is None and ctx.params.get("task"):
            raise typer.BadParameter(f"there is no command {cmd_name!r}; {SEVERAL_TASKS}.")
        return command


app = typer.Typer(
    name="hear-eval",
    cls=_Commands,
    context_settings=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.callback(invoke_without_command=True)(evaluate)
# Surplus words are let through so that embed can say what was wrong with them.
app.command(context_settings={"allow_extra_args": True})(embed)
for command in (predict, check, tasks, fetch, make_task, report):
    app.command()(command)


def main() -> None:
    """Run ``hear-eval``."""
    run(app)
