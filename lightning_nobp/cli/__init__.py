"""The ``nobp`` command.

Only what trains imports torch; ``list``, ``show``, ``copy``, ``new``, ``--help`` and ``--version`` answer at once.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import lightning_nobp

HELP = """\
usage: nobp COMMAND ...

  list [PATTERN]             the rules and the recipes, with what they reached
  show RECIPE                a recipe as it is shipped
  copy RECIPE DEST           the same as a file of your own

  fit      --config RECIPE   train                  (nobp fit --help: every option)
  fit      --config RECIPE --ckpt_path last-good    go on from the newest checkpoint that can be read
  validate --config RECIPE --ckpt_path best|last|FILE
  test     --config RECIPE --ckpt_path best|last|FILE
  predict  --config RECIPE --ckpt_path best|last|FILE [--predictions.path FILE.csv|.parquet|.pt]

  compare RECIPE...          train several, one table and picture     (nobp compare --help)
  export CHECKPOINT FILE     the trained network for plain torch (.pt2) or ONNX (.onnx)
  new FOLDER                 a project of your own: a rule, an experiment, a test

RECIPE is a shipped name (digits/backprop) or a YAML file; several --config merge, later ones win; options override.
"""


_MODULES = {
    **dict.fromkeys(("list", "show", "copy"), "listing"),
    **dict.fromkeys(("fit", "validate", "test", "predict"), "lightning"),
    "compare": "compare",
    "export": "export",
    "new": "new_project",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        The exit status: 0, 1 if something failed, 2 if the arguments are wrong, 130 or 143 if it was stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"lightning-nobp {lightning_nobp.__version__}")
        return 0
    from lightning_nobp.cli.recipes import UsageError

    try:
        return _run(command)(arguments)
    except UsageError as error:
        print(f"nobp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nobp: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # Of a file, which it names: where in the code it arose tells a user nothing.
        print(f"nobp: {error}", file=sys.stderr)
        return 1


def _run(command: str) -> Callable[[list[str]], int]:
    """What carries out a command; imported only now."""
    if command not in _MODULES:
        from lightning_nobp.cli.recipes import UsageError, nearest

        raise UsageError(f"unknown command {command!r}{nearest(command, _MODULES)}; nobp --help lists them")
    run: Callable[[list[str]], int] = import_module(f"lightning_nobp.cli.{_MODULES[command]}").main
    return run
