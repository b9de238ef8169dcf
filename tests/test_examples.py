"""The notebooks of examples/ are clean as committed, and run."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pathlib

import pytest

from tests.test_house import ROOT

SMOKE = {  # instead of what the notebook's cell of parameters says
  "ablation": "STEPS, FRAMES, ROWS, SEEDS = 2, '0:8', ('fma_net', 'sft'), (0,)",
  "restore": "FRAMES = 3",
  "train_small": "STEPS, FRAMES = 4, '0:8'",
}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path: pathlib.Path) -> list[str]:
  """A notebook's cells of code, without IPython's own commands."""
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  lines = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
  return ["".join(line for line in source if not line.startswith("%")) for source in lines]


def test_every_notebook_runs_at_smoke_size():
  assert [path.stem for path in NOTEBOOKS] == sorted(SMOKE)


@names
def test_a_notebook_has_no_outputs_and_its_imports_exist(path):
  cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
  kept = [cell for cell in cells if cell["cell_type"] == "code"]
  assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in kept)
  tagged = [cell for cell in kept if "parameters" in cell["metadata"].get("tags", ())]
  assigned = {name for cell in tagged for name in names_assigned("".join(cell["source"]))}
  assert assigned == names_assigned(SMOKE[path.stem])
  for node in ast.walk(ast.parse("\n".join(code(path)))):
    if isinstance(node, ast.ImportFrom) and node.module.startswith(("fmanet", "keep", "vsr")):
      module = importlib.import_module(node.module)
      for alias in node.names:
        if not hasattr(module, alias.name):
          importlib.import_module(f"{node.module}.{alias.name}")


def names_assigned(source: str) -> set[str]:
  stored = [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Name)]
  return {x.id for x in stored if isinstance(x.ctx, ast.Store)}


@pytest.mark.slow
@names
def test_a_notebook_runs(path, tmp_path):
  nbclient = pytest.importorskip("nbclient", reason="needs the extra [test]")
  pytest.importorskip("ipykernel", reason="needs the extra [test]")
  nbformat = importlib.import_module("nbformat")
  notebook = nbformat.read(path, as_version=4)
  (place,) = [
    i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
  ]
  notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMOKE[path.stem]))
  client = nbclient.NotebookClient(
    notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
  shown = [
    output
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
    if "image/png" in output.get("data", {})
  ]
  assert len(shown) >= {"ablation": 1}.get(path.stem, 2)
