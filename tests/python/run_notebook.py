"""Runs a notebook in a Jupyter kernel, one cell after the other, and prints what each has printed: run_notebook.py NOTEBOOK

Files are those of the folder that it is started in.
"""

import sys

import nbformat
from nbclient import NotebookClient


def show(cell, **_):
    for output in cell.get("outputs", []):
        said = output.get("text") or "\n".join(output.get("data", {})) or output.get("evalue")
        print(said, flush=True)


book = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(book)
NotebookClient(book, timeout=900, on_cell_executed=show).execute()
