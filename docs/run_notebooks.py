"""Hook of MkDocs: runs the notebooks of docs/notebooks, and makes pages of them and their outputs.

One kernel runs all, each with no names of the others and in an empty folder of its own: to import
torch takes longer than a notebook does. An error in a cell ends the build.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

FOLDER = Path(__file__).parent / "notebooks"
START = """\
%reset -f
%config InlineBackend.figure_formats = ["retina"]
import os, tempfile, textwrap, warnings
os.chdir(tempfile.mkdtemp(dir={folder!r}))
def text_of(text, kind, *_, fill=textwrap.fill):
    return fill(f"{{kind.__name__}}: {{text}}", 95) + chr(10)
warnings.formatwarning = text_of
%reset -f"""
SECONDS = 300  # for one cell, on a busy machine
running = True  # not while pages are written with `mkdocs serve`, which builds at each change


def on_startup(command: str, dirty: bool) -> None:
    global running
    running = command != "serve"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page of each notebook, and its figures."""
    notebooks = {path.stem: jupytext.read(path) for path in sorted(FOLDER.glob("*.py"))}
    if running:
        run(notebooks.values())
    for name, notebook in notebooks.items():
        for file, content in page(name, notebook).items():
            files.append(File.generated(config, f"notebooks/{file}", content=content))
    return files


def run(notebooks: Iterable[NotebookNode]) -> None:
    """Fill in the outputs."""
    client = NotebookClient(new_notebook(), timeout=SECONDS)
    client.create_kernel_manager().transport = "ipc" if os.name == "posix" else "tcp"
    with TemporaryDirectory() as folder, client.setup_kernel():
        start = new_code_cell(START.format(folder=folder))
        for notebook in notebooks:
            for client.nb in (new_notebook(cells=[start]), notebook):
                for i, cell in enumerate(client.nb.cells):
                    client.execute_cell(cell, i)
                    for output in cell.get("outputs", []):
                        if output.output_type == "error":  # also of a figure that is not drawn
                            raise RuntimeError(f"{cell.source}\n{output.ename}: {output.evalue}")


def page(name: str, notebook: NotebookNode) -> dict[str, str | bytes]:
    """Contents of files by their name: the page in Markdown, and its figures."""
    notebook.metadata.language_info = {"name": "python"}
    markdown, extracted = MarkdownExporter().from_notebook_node(
        notebook, resources={"unique_key": name}
    )
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    figures = extracted.get("outputs", {})
    for figure in figures:  # a tap shows it in full
        markdown = markdown.replace(f"![png]({figure})", f"[![{title}]({figure})]({figure})")
    markdown = markdown.replace("  # fmt: skip", "")
    markdown = markdown.replace("](../../", "](../")  # where site.py puts checkpoints
    end = f"\n\nThis page is a script, which Jupyter opens by jupytext: [{name}.py]({name}.py)\n"
    return {f"{name}.md": f"---\nhide: [toc]\n---\n\n{markdown}{end}", **figures}
