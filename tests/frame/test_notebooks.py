"""The hook that runs the notebooks of the docs; what is in them: test_docs.py."""

import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT

if not find_spec("nbclient"):
    pytest.skip("nbclient is not installed: pip install .[docs]", allow_module_level=True)
sys.path.insert(0, str(ROOT / "docs"))

import run_notebooks
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DRAWN = """\
import warnings
import matplotlib.pyplot as plt
warnings.warn("a warning of many words " * 9)
plt.plot([1, 2])
plt.show()"""
NOT_DRAWN = (
    "import matplotlib.pyplot as plt\nplt.plot([-1, -2])\nplt.gca().set(title='$x^^y$')\nplt.show()"
)
APART = "import os\nassert 'plt' not in globals() and not os.listdir()\nopen('file', 'w').close()"


def notebook(*codes):
    return new_notebook(cells=[new_markdown_cell("# A star"), *map(new_code_cell, codes)])


def test_notebooks_are_kept_apart_and_their_outputs_are_in_the_page():
    first, second, third = notebook(DRAWN), notebook(APART), notebook(APART)
    run_notebooks.run([first, second, third])
    page = run_notebooks.page("star", first)
    assert page["star_1_1.png"].startswith(b"\x89PNG")
    assert "[![A star](star_1_1.png)](star_1_1.png)" in page["star.md"]
    assert "UserWarning: a warning" in page["star.md"] and "/" not in first.cells[1].outputs[0].text
    assert max(map(len, first.cells[1].outputs[0].text.splitlines())) <= 95


def test_a_figure_that_cannot_be_drawn_ends_the_build():
    with pytest.raises(RuntimeError, match="ParseSyntaxException"):
        run_notebooks.run([notebook(NOT_DRAWN)])
