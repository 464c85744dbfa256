"""What a configuration must be before its values are looked at."""

from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_nobp.cli.recipes import UsageError

_MOST_VALUES = 100_000


def check_readable(path: Path) -> None:
    """Refuse a file of which no configuration can be made.

    Parsers take the last of two keys of one name in silence, and unfold anchors that refer to each other to more
    values than any memory holds.

    Args:
        path: The file.

    Raises:
        UsageError: It is no YAML, holds no options, a key twice, or values without end.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    if not isinstance(root, MappingNode):
        raise UsageError(f"{path} holds no options: write 'model:', 'data:' and 'trainer:', as nobp show RECIPE does")
    if _count(root, {}, path) > _MOST_VALUES:
        raise UsageError(f"{path} unfolds to more than {_MOST_VALUES:,} values: write fewer anchors (&name, *name)")


def _count(node: Node, known: dict[int, int], path: Path) -> int:
    """How many values a node unfolds to."""
    if id(node) in known:
        return known[id(node)]
    # Whoever meets a node again inside of itself finds values without end.
    known[id(node)] = _MOST_VALUES + 1
    parts: list[Node] = []
    if isinstance(node, MappingNode):
        _refuse_twice(node, path)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, SequenceNode):
        parts = node.value
    known[id(node)] = 1 + sum(_count(part, known, path) for part in parts)
    return known[id(node)]


def _refuse_twice(node: MappingNode, path: Path) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.value in seen:
            raise UsageError(f"{path}, line {key.start_mark.line + 1}: {key.value!r} stands there twice; keep one")
        seen.add(key.value if isinstance(key, ScalarNode) else id(key))
