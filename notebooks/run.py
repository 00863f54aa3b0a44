"""Run notebooks and keep small outputs: every figure in few colours, as PNG with a palette.

python notebooks/run.py [--only-shrink] [NOTEBOOK ...]; all notebooks in this folder and below where none is named.
"""

import argparse
import base64
import io
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
COLOURS = 48  # lines, markers and bands of a figure, with the shades at their edges
TIMEOUT = 3600  # s, of a cell


def shrunk(png: bytes) -> bytes:
    """Return a PNG in few colours; as it is where that is no smaller."""
    image = Image.open(io.BytesIO(png))
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    found = io.BytesIO()
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
    return min(found.getvalue(), png, key=len)


def shrink_figures(notebook: nbformat.NotebookNode) -> None:
    """Shrink all figures of a notebook in place."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                png = shrunk(base64.b64decode(data["image/png"]))
                data["image/png"] = base64.b64encode(png).decode()


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--only-shrink", action="store_true", help="leave the outputs as they are, but smaller")
    options = parser.parse_args()
    for path in options.notebooks or sorted(p for p in HERE.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        notebook = nbformat.read(path, as_version=4)
        before = path.stat().st_size
        if not options.only_shrink:
            folder = {"metadata": {"path": str(path.parent)}}
            client = NotebookClient(
                notebook, timeout=TIMEOUT, kernel_name="python3", resources=folder, record_timing=False
            )
            client.execute()
        shrink_figures(notebook)
        nbformat.write(notebook, path)
        print(f"{path}: {before / 1e3:.0f} kB before, {path.stat().st_size / 1e3:.0f} kB now", flush=True)


if __name__ == "__main__":
    main()
