"""A configuration that cannot be one is refused in a line."""

import pytest

BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), "unfolds to more than 100,000 values"),
        (b"a: &a [*a]\n", "unfolds to more than 100,000 values"),
        (b"trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "line 3: 'max_epochs' stands there twice"),
        (b"\xff\xfe", "is no YAML"),
        (b"a: [", "is no YAML"),
        (b"- 1\n", "holds no options"),
        (b"", "holds no options"),
    ],
)
def test_a_file_of_which_no_configuration_can_be_made_is_refused(nobp, tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    run = nobp("fit", "--config", "mine.yaml")
    assert run.status == 2
    assert run.err.startswith("nobp: mine.yaml")
    assert message in run.err
