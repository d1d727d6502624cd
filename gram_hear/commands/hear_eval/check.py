"""``hear-eval check``: whether a module offers the HEAR API."""

import typer

from gram_hear.commands.hear_eval.options import (
    LOG,
    Model,
    ModelOptions,
    Module,
    log_traceback,
    parse_options,
)
from gram_hear.console import Device, say
from gram_hear.start import importing


def check(
    module: Module, model: Model = "", model_options: ModelOptions = "{}", device: Device = "cpu"
) -> None:
    """Check that a module offers the HEAR API.

    Each fault is explained. The exit code is 1 if there is an error.

    \b
    Examples:
      hear-eval check gram_hear --model gram-tiny
      hear-eval check my_module --model weights.pt
    """
    options = parse_options(model_options)
    with importing():
        from gram_hear.evaluation.check import check_module
    findings = check_module(module, model, options, device)
    for finding in findings:
        typer.echo(f"{finding.level}: {finding.text}")
    tracebacks = dict.fromkeys(finding.traceback for finding in findings if finding.traceback)
    if logged := log_traceback("\n".join(tracebacks), LOG):
        say(logged.strip())
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
