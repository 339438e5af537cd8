"""Hooks of MkDocs: pages from outside docs/, and equations without a script or a server."""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = ("CONTRIBUTING.md", "checkpoints/*.md", "benchmarks/*.csv", "benchmarks/*.md",
           "figures/gallery/*.png")  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to as ``../<path>``, which is where GitHub looks for them."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Links to those files, as seen from the site."""
    if page.file.generated_by:  # CONTRIBUTING.md and the model cards, which lie where they lay
        return markdown.replace("](docs/", "](")
    markdown = re.sub(r"\]\(notebooks/(\w+)\.py\)", r"](notebooks/\1.md)", markdown)
    return markdown.replace("](../", "](")


def on_page_content(content: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Equations as MathML, which browsers show by themselves."""
    inline = r'<span class="arithmatex">\\\((.*?)\\\)</span>'
    block = r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>'
    content = re.sub(inline, lambda m: convert(html.unescape(m[1])), content, flags=re.S)
    return re.sub(
        block,
        lambda m: f'<div class="equation">{convert(html.unescape(m[1]), display="block")}</div>',
        content,
        flags=re.S,
    )
