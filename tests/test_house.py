"""The rules of the house, held: which way imports point, how long things are, what docs name."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping

import ml_collections
import pytest

from tests import conftest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What a package may import of ours besides itself, and what its entry points may import on top.
# tests and benchmarks stand outside the house: they may import anything, and nothing imports them.
MAY_IMPORT = {
  "configs": set(),
  "vsr_jax": set(),
  "data_prep": {"vsr_jax"},
  "fmanet_jax": {"vsr_jax"},
  "keep_jax": {"vsr_jax"},
}
ENTRY_POINTS_MAY_IMPORT = {
  "fmanet_jax": {"configs", "data_prep"},
  "keep_jax": {"configs", "data_prep"},
}
OUTSIDE = {"tests", "benchmarks"}
OURS = MAY_IMPORT.keys() | OUTSIDE
TORCH = {"torch", "torchvision"}
# Folders that are imported as parts of vsr_jax: a wheel has no such names of its own.
LINKED = {"configs", "data_prep"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def house_files(pattern: str) -> dict[str, str]:
  """Path from the root -> text, of every file git tracks or would."""
  if not (ROOT / ".git").exists():
    pytest.skip("needs the git checkout")
  command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern]
  names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
  paths = [name for name in names.split("\0") if name and (ROOT / name).is_file()]
  return {path: (ROOT / path).read_text(encoding="utf-8") for path in paths}


def imported(path: str, source: str) -> set[str]:
  """The full name of every module that a file imports, or names to importlib or pytest."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    match node:
      case ast.Import(names=names):
        found |= {alias.name for alias in names}
      case ast.ImportFrom(module=module, names=names, level=0):
        found |= {f"{module}.{alias.name}" for alias in names}
      case ast.ImportFrom(module=module, names=names, level=level):
        folder = path.split("/")[:-1]
        if folder[:1] and folder[0] in LINKED:
          folder.insert(0, "vsr_jax")
        package = folder[: len(folder) + 1 - level]
        base = [*package, module] if module else package
        found |= {".".join([*base, alias.name]) for alias in names}
      case ast.Call(
        func=ast.Name(id=name) | ast.Attribute(attr=name),
        args=[ast.Constant(value=str(module)), *_],
      ) if name in ("import_module", "__import__", "importorskip"):
        found.add(module)
  return found


def package_of(module: str) -> str:
  """The top-level folder that a module lies in."""
  first, *rest = module.split(".")
  return rest[0] if first == "vsr_jax" and rest and rest[0] in LINKED else first


def is_entry_point(source: str) -> bool:
  """Whether a module runs as a command: it has `if __name__ == "__main__":`."""
  return any(
    isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
    for node in ast.parse(source).body
  )


def wrong_imports(path: str, source: str) -> list[str]:
  """The imports of a file that the house forbids."""
  package = path.split("/")[0]
  modules = {name: package_of(name) for name in imported(path, source)}
  wrong = {name for name in modules if name.split(".")[0] in LINKED}
  if package == "benchmarks":
    return [f"{path} imports {name}" for name in sorted(wrong)]
  wrong |= {name for name, top in modules.items() if top in TORCH}
  if package != "tests":
    allowed = {package} | MAY_IMPORT.get(package, set())
    if is_entry_point(source):
      allowed |= ENTRY_POINTS_MAY_IMPORT.get(package, set())
    wrong |= {name for name, top in modules.items() if top in OURS - allowed}
  return [f"{path} imports {name}" for name in sorted(wrong)]


def too_long(path: str, source: str) -> list[str]:
  """The file itself and each of its functions that is longer than the house allows."""
  lines = len(source.splitlines())
  found = [f"{path}: {lines} lines"] if lines > MAX_FILE_LINES else []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      if lines > MAX_FUNCTION_LINES:
        found.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
  return found


def unannotated(path: str, source: str) -> list[str]:
  """The parameters of public functions and methods, *args and **kwargs aside, without a type."""
  found = []

  def look(body: list[ast.stmt]) -> None:
    for node in body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        look(node.body)
      special = ("__init__", "__call__")
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
        not node.name.startswith("_") or node.name in special
      ):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        found.extend(
          f"{path}:{node.lineno} {node.name}: {a.arg}"
          for a in arguments
          if a.annotation is None and a.arg not in ("self", "cls")
        )

  look(ast.parse(source).body)
  return found


def missing_commands(text: str) -> list[str]:
  """The modules of ours that a text runs with `python -m` and that do not exist."""
  named = set(re.findall(r"python3? -m ([a-z_]\w*(?:\.\w+)*)", text))
  return sorted(
    name
    for name in named
    if name.split(".")[0] in OURS
    and not (ROOT / f"{name.replace('.', '/')}.py").is_file()
    and not (ROOT / name.replace(".", "/") / "__main__.py").is_file()
  )


def needed(path: str) -> set[str]:
  """Every file of ours, and every module of others, that a file imports, by whatever way."""
  todo, found = [path], {path}
  while todo:
    file = todo.pop()
    for name in imported(file, (ROOT / file).read_text(encoding="utf-8")):
      parts = name.split(".")
      bases = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
      places = {f"{base}{end}" for base in bases for end in (".py", "/__init__.py")}
      ours = {place for place in places if (ROOT / place).is_file()}
      todo += ours - found
      found |= ours or {parts[0]}
  return found


def unlocked(configs: Mapping[str, ml_collections.ConfigDict]) -> list[str]:
  """The names of the configs in which a misspelt key would go unnoticed."""
  return [name for name, config in configs.items() if not config.is_locked]


def test_imports_point_one_way():
  files = house_files("*.py")
  assert {"vsr_jax/errors.py", "tests/test_house.py"} <= files.keys()
  assert [line for path, source in files.items() for line in wrong_imports(path, source)] == []


def test_files_and_functions_are_short():
  files = house_files("*.py")
  assert [line for path, source in files.items() for line in too_long(path, source)] == []


def test_public_functions_state_what_they_take():
  files = house_files("*.py")
  ours = {path: source for path, source in files.items() if path.split("/")[0] in MAY_IMPORT}
  assert [line for path, source in ours.items() for line in unannotated(path, source)] == []


def test_only_operations_choose_by_platform():
  """How something runs best is said in vsr_jax/ops, next to what it computes."""
  chosen = {p for p, source in house_files("*.py").items() if "platform_dependent" in source}
  assert {path for path in chosen if not path.startswith(("vsr_jax/ops/", "tests/"))} == set()
  assert "vsr_jax/ops/convolution.py" in chosen


def test_exported_files_run_without_models():
  """With JAX and what it brings along, codecs, pictures and a progress bar alone."""
  found = needed("vsr_jax/run_exported.py")
  assert {"vsr_jax/exported/streams.py", "vsr_jax/video/decode.py"} <= found
  ours = {name for name in found if name.endswith(".py")}
  models = ("fmanet_jax/", "keep_jax/", "vsr_jax/flow/", "vsr_jax/enlarge/", "vsr_jax/layers.py")
  assert {name for name in ours if name.startswith((*models, "vsr_jax/ops/"))} == set()
  brought = {"jax", "jaxlib", "numpy", "scipy", "av", "cv2", "tqdm"}
  # imported for gs:// paths, and for a shell's completion
  on_request = {"aiohttp", "argcomplete", "etils", "fsspec"}
  assert found - ours - sys.stdlib_module_names - on_request == brought
  assert "flax" in needed("keep_jax/model.py")  # that it can fail


def test_the_definition_of_fma_net_stays_plain():
  """What orders, materialises or tiles its work stands in window.py and streaming.py."""
  files = house_files("fmanet_jax/*.py")
  parts = {path: files[f"fmanet_jax/{path}.py"] for path in ("model", "networks", "frma", "blocks")}
  assert sum(len(source.splitlines()) for source in parts.values()) <= 900
  for path, source in parts.items():
    execution = r"ops\.(devices|strips)|\bdelay_until\(|\bmaterialise\(|\.ndim\b"
    assert not re.search(execution, source), path
    assert "window" not in {name.split(".")[-1] for name in imported(path, source)}


def test_commands_in_the_docs_exist():
  for path, text in house_files("*.md").items():
    assert missing_commands(text) == [], path


def test_the_longest_test_files_exist():
  assert [path for path in conftest.LONGEST if not (ROOT / path).is_file()] == []


def test_the_version_is_the_same_everywhere():
  packages = [importlib.import_module(name) for name in ("vsr_jax", "fmanet_jax", "keep_jax")]
  versions = {package.__version__ for package in packages}
  assert len(versions) == 1
  (version,) = versions
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
  assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_configs_are_locked():
  names = [path.removesuffix(".py").replace("/", ".") for path in house_files("configs/*.py")]
  modules = {name: importlib.import_module(f"vsr_jax.{name}") for name in names}
  configs = {name: m.get_config() for name, m in modules.items() if hasattr(m, "get_config")}
  assert configs
  assert unlocked(configs) == []


COMMAND = 'if __name__ == "__main__":\n  main()\n'


@pytest.mark.parametrize(
  ("path", "source", "wrong"),
  [
    ("configs/fmanet/demo.py", "import fmanet_jax.model", "fmanet_jax.model"),
    ("vsr_jax/ops/warp.py", "from vsr_jax.configs import demo", "vsr_jax.configs.demo"),
    ("vsr_jax/train/loop.py", "def f():\n  import fmanet_jax", "fmanet_jax"),
    ("data_prep/clips.py", "from fmanet_jax import model", "fmanet_jax.model"),
    ("fmanet_jax/model.py", "import jax, keep_jax.model", "keep_jax.model"),
    ("fmanet_jax/model.py", "from vsr_jax.data_prep import clips", "vsr_jax.data_prep.clips"),
    ("tests/test_x.py", "from data_prep import clips", "data_prep.clips"),
    ("data_prep/clips.py", "from data_prep import pairs", "data_prep.pairs"),
    ("fmanet_jax/train.py", f"import keep_jax.train\n{COMMAND}", "keep_jax.train"),
    ("keep_jax/model.py", "from .. import fmanet_jax", "fmanet_jax"),
    ("keep_jax/model.py", "from ..configs.keep import demo", "configs.keep.demo"),
    ("data_prep/labels.py", f"import vsr_jax.configs\n{COMMAND}", "vsr_jax.configs"),
    ("vsr_jax/ops/warp.py", "from tests import conftest", "tests.conftest"),
    ("vsr_jax/conversion.py", "import torch", "torch"),
    ("vsr_jax/conversion.py", "from torch.nn import functional", "torch.nn.functional"),
    ("vsr_jax/conversion.py", "importlib.import_module('torch')", "torch"),
    ("tests/test_x.py", "torch = pytest.importorskip('torch')", "torch"),
    ("setup.py", "import vsr_jax", "vsr_jax"),
  ],
)
def test_a_wrong_import_is_found(path, source, wrong):
  assert wrong_imports(path, source) == [f"{path} imports {wrong}"]


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("configs/ablations/n.py", "from vsr_jax.configs.fmanet import joint"),
    ("vsr_jax/train/loop.py", "from . import step\nfrom ..errors import UserError\nimport jax"),
    ("data_prep/clips.py", "from . import pairs\nfrom vsr_jax import video"),
    ("fmanet_jax/model.py", "from vsr_jax import warp\nfrom . import blocks"),
    (
      "fmanet_jax/train.py",
      f"import vsr_jax.data_prep.pipeline\nfrom vsr_jax.configs import x\n{COMMAND}",
    ),
    ("benchmarks/reference.py", "import torch\nimport fmanet_jax.model"),
    ("tests/keep_jax/test_x.py", "import keep_jax\nimport fmanet_jax\nimport vsr_jax.configs"),
  ],
)
def test_a_right_import_passes(path, source):
  assert wrong_imports(path, source) == []


def test_length_is_counted():
  def function(lines):
    return "def f():\n" + "  g()\n" * (lines - 1)

  assert too_long("a.py", function(60)) == []
  assert too_long("a.py", function(61)) == ["a.py:1 f: 61 lines"]
  assert too_long("a.py", "class C:\n  async def f(self):\n" + "    g()\n" * 60) == [
    "a.py:2 f: 61 lines"
  ]
  assert too_long("a.py", "x = 1\n" * 400) == []
  assert too_long("a.py", "x = 1\n" * 401) == ["a.py: 401 lines"]


def test_a_missing_annotation_is_found():
  source = "class A:\n  def f(self, x, y: int, *z): ...\n  def _g(self, x): ...\n"
  assert unannotated("a.py", source) == ["a.py:2 f: x"]
  assert unannotated("a.py", "def f(*, x, y=1):\n  def g(z): ...\n") == [
    "a.py:1 f: x",
    "a.py:1 f: y",
  ]


def test_a_missing_command_is_found():
  text = "`python -m vsr_jax.nothing --x`, python3 -m tests.test_house, python -m pip"
  assert missing_commands(text) == ["vsr_jax.nothing"]


def test_an_unlocked_config_is_found():
  locked, left_open = ml_collections.ConfigDict({"a": 1}).lock(), ml_collections.ConfigDict()
  assert unlocked({"locked": locked, "open": left_open}) == ["open"]
