"""Tables of figures that are Markdown and can be read as they stand."""

from collections.abc import Sequence

Cell = str | int | float | None


def rounded(value: Cell) -> Cell:
    """Four digits are more than timings hold."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def text(value: Cell) -> str:
    """Words as they are, counts in full, what was measured with three digits."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:#.3g}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Lines of a table: words to the left, numbers to the right."""
    cells = [list(columns), *([text(value) for value in row] for row in rows)]
    widths = [max(3, *(len(line[k]) for line in cells)) for k in range(len(columns))]
    words = [all(isinstance(row[k], str) for row in rows) for k in range(len(columns))]
    aligned = [
        [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, words, strict=True)
        ]
        for line in cells
    ]
    rule = ["-" * width if left else "-" * (width - 1) + ":" for width, left in zip(widths, words, strict=True)]
    return ["| " + " | ".join(line) + " |" for line in (aligned[0], rule, *aligned[1:])]
