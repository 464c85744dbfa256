"""The tutorials run, and print what their pages say."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
make_tutorials = runpy.run_path(str(ROOT / "docs" / "make_tutorials.py"))


def check(page, *options):
    command = [sys.executable, str(ROOT / "docs" / "make_tutorials.py"), str(page), *options]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
    # The process of W&B that an earlier test has left writes files when it likes.
    environment.pop("WANDB_SERVICE", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# Twenty-five seconds of a processor, which a busy machine may not give at once.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "index"], ids=lambda page: page.stem)
def test_a_tutorial_prints_what_it_says(page):
    run = check(page, "--check")
    assert run.returncode == 0, run.stdout + run.stderr[-5000:]


PAGE = """
```python
# greeting.py
WORD = "hello"
```

```python
from greeting import WORD

print(WORD, 1.001)
```

```text
{}
```

```sh
echo "$(python -c 'import greeting; print(greeting.WORD)') 3"
```

```text
hello 3
```
"""


@pytest.mark.parametrize(("said", "status"), [("hello 1.0", 0), ("hello 1.2", 1), ("goodbye 1.0", 1), ("a\nb", 1)])
def test_a_page_that_says_something_else_is_noticed(tmp_path, said, status):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(said))
    run = check(page, "--check")
    assert run.returncode == status, run.stderr
    assert page.read_text() == PAGE.format(said)


def test_a_page_is_written_with_what_its_blocks_print(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format("nothing yet"))
    assert check(page).returncode == 0
    assert page.read_text() == PAGE.format("hello 1.001")


def test_a_block_that_fails_fails_the_page(tmp_path):
    page = tmp_path / "page.md"
    for block in ("```python\nraise ValueError\n```\n", "```sh\nfalse | cat\n```\n"):
        page.write_text(block)
        assert check(page, "--check").returncode != 0


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("accuracy 0.950, cosine -0.2", "accuracy   0.93, cosine -0.21", True),
        ("accuracy 0.950", "accuracy 0.85", False),
        ("3,870 weights", "3,870 weights", True),
        ("3,870 weights", "3,200 weights", False),
        ("equal: True", "equal: False", False),
        ("error 1e-12", "error 3e-13", True),
    ],
)
def test_words_must_be_the_same_and_numbers_nearly(old, new, same):
    assert make_tutorials["agree"](old, new) == same
