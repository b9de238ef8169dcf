"""What a report of sweeps says: numbers by their definitions, the papers', and what it refuses."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import shutil
import statistics

import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.vsr_jax import reporting as made
from tests.vsr_jax.reporting import ROWS, VALUES, change, run, sweep, without_curves
from vsr_jax import report
from vsr_jax.configs.fmanet import ablations as fmanet
from vsr_jax.configs.keep import ablations as keep
from vsr_jax.images import read_image
from vsr_jax.metrics.magnitude import RANGES
from vsr_jax.reporting import comparison, papers
from vsr_jax.reporting.papers import RECONSTRUCTION, RESTORED, Quantity

__all__ = ["run", "sweep", "without_curves"]  # fixtures


def shown_table(header, text):
  """The numbers of the rows of a table in a docstring, by row and column."""
  lines = [line for line in text.splitlines() if line.startswith("|")]
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  assert cells[0][0] == "NAME"
  found = {}
  for name, *row in cells[2:]:
    values = dict(zip(cells[0][1:], row, strict=True))
    found[name] = {metric: float(values[column] or "nan") for metric, column in header.items()}
  return found


@pytest.mark.parametrize(
  ("system", "module", "header"),
  [
    ("fmanet", fmanet, {"psnr": "PSNR", "ssim": "SSIM", "tof": "tOF"}),
    ("keep", keep, {"lpips": "LPIPS", "ids": "IDS", "akd": "AKD"}),
  ],
)
def test_the_papers_numbers_are_those_beside_the_overrides(system, module, header):
  table = shown_table(header, module.__doc__)
  assert table.keys() == module.OVERRIDES.keys()
  for row, values in table.items():
    ours = {metric: papers.number(system, row, Quantity(metric)) for metric in header}
    want = {metric: None if x != x else x for metric, x in values.items()}
    assert ours == want, row


def test_every_row_of_the_papers_is_one_of_the_ablations():
  rows = {*papers.TABLE_3_ROWS, *papers.TABLE_4_ROWS, *papers.COSTS}
  assert rows <= fmanet.OVERRIDES.keys()
  assert {x for pair in papers.TABLE_3_PAIRS for x in pair} == {*papers.TABLE_3_ROWS}
  for flow, conventional in papers.TABLE_3_PAIRS:
    changed = {**fmanet.OVERRIDES[flow], "model.filtering": "conventional"}
    assert fmanet.OVERRIDES[conventional] == changed


def test_table_3_is_read_by_motion():
  def of(row, frames):
    return [
      papers.number("fmanet", row, Quantity(metric, frames, motion))
      for motion in (*RANGES, None)
      for metric in ("psnr", "tof")
    ]

  assert of("k10", RECONSTRUCTION) == [45.38, 0.049, 42.18, 0.165, 37.72, 0.474, 44.25, 0.092]
  assert of("fma_net", RESTORED) == [28.91, 1.289, 28.91, 3.057, 26.17, 5.841, 28.83, 1.918]
  assert papers.number("fmanet", "n1", Quantity("psnr", RECONSTRUCTION)) is None
  assert papers.number("keep", "keep", Quantity("lpips", motion="≥ 40")) is None
  assert papers.number("keep", "keep", Quantity("sigma_ids")) == 0.036866


def test_cells_are_computed_as_defined(sweep):
  (part,) = report.read([sweep])
  for row in ROWS:
    metrics = [
      json.loads((sweep / row / str(seed) / "evaluation" / "metrics.json").read_text())
      for seed in (0, 1)
    ]
    for metric in ("psnr", "ssim", "tof"):
      cell = part.cells[row][Quantity(metric)]
      values = [x["total"]["scores"]["FMA-Net"][metric] for x in metrics]
      assert cell.values == tuple(values)
      assert cell.mean == statistics.mean(values)
      assert cell.spread == pytest.approx(statistics.stdev(values))
      assert cell.paper == papers.number("fmanet", row, Quantity(metric))
  base, n1 = part.cells["fma_net"], part.cells["n1"]
  assert base[Quantity("psnr")][4:] == (None, None, 0, None)
  assert n1[Quantity("psnr")].difference == pytest.approx(0.4 + 0.03 / 3 * 5)
  assert n1[Quantity("psnr")].agrees is False  # in the paper it loses
  assert n1[Quantity("tof")].agrees is True
  by_clip = [
    [
      statistics.mean(26 + x + 0.1 * seed + 0.01 * i + uneven * i**2 for seed in (0, 1))
      for i in range(3)
    ]
    for x, uneven in ((0.4, 0.03), (0, 0))
  ]
  want = stats.ttest_rel(*by_clip).pvalue
  assert n1[Quantity("psnr")].p == pytest.approx(want, rel=1e-6)
  assert n1[Quantity("psnr")].clips == 3
  reconstructed = part.cells["k10"][Quantity("psnr", RECONSTRUCTION, "[0, 20)")]
  assert reconstructed.mean == pytest.approx(part.cells["k10"][Quantity("psnr")].mean + 10)
  assert reconstructed.paper == 45.38
  assert Quantity("psnr", RESTORED, "≥ 40") not in part.cells["k10"]


def test_what_cannot_be_tested_has_no_p():
  assert comparison.paired_test({"a": 1.0}, {"a": 2.0}) == (None, 1)
  assert comparison.paired_test({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 3.0}) == (None, 2)
  assert comparison.paired_test({"a": 1.0, "b": 2.0}, {"c": 2.0}) == (None, 0)
  p, clips = comparison.paired_test({"a": 1.0, "b": 2.0, "x": 9.0}, {"a": 2.0, "b": 3.5})
  assert clips == 2
  assert p == pytest.approx(stats.ttest_rel([1, 2], [2, 3.5]).pvalue)


class Page(html.parser.HTMLParser):
  """What is in a page: its text, tags that were not closed, and what it would fetch."""

  def __init__(self, text):
    super().__init__()
    self.open, self.fetched, self.text = [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.fetched += [x for name, x in attrs if name in ("src", "href", "srcset", "data")]
    if tag not in ("meta", "br", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_needs_nothing_beside_it_and_shows_the_tables(sweep, run, monkeypatch):
  monkeypatch.undo()  # with curves
  folder, said = run(sweep, "--seeds", "0")
  text = (folder / "report.html").read_text()
  page = Page(text)
  assert page.open == []
  assert len(page.fetched) == 2  # a picture for each stage
  assert all(x.startswith("data:image/png;base64,") for x in page.fetched)
  assert not re.search(r"@import|url\(|<script|<link", text)
  markdown = (folder / "report.md").read_text()
  for wanted in ("Design (Table 4)", "(Table 3): Net^D's reconstruction", "paper 28.24", "Further"):
    assert (wanted in page.text) == (wanted != "Further")
    assert (wanted in markdown.replace("\\", "")) == (wanted != "Further")
  pictures = re.findall(r"\]\((figures/\w+\.png)\)", markdown)
  assert pictures == ["figures/fmanet_degradation.png", "figures/fmanet_joint.png"]
  assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
  assert "report.html" in said.out


def test_json_and_csv_hold_what_the_tables_show(sweep, run):
  folder, _ = run(sweep)
  (system,) = json.loads((folder / "report.json").read_text())["systems"]
  assert list(system["rows"]) == list(ROWS)
  assert system["rows"]["n1"]["overrides"] == {"model.flows": 1}
  assert system["rows"]["n1"]["parameters"] == 3 * 3 * 8 * 16 + 16
  with (folder / "report.csv").open() as file:
    lines = list(csv.DictReader(file))
  cells = [(row, cell) for row, found in system["rows"].items() for cell in found["cells"]]
  assert len(lines) == len(cells)
  for line, (row, cell) in zip(lines, cells, strict=True):
    assert (line["row"], line["metric"], line["frames"]) == (row, cell["metric"], cell["frames"])
    assert float(line["mean"]) == cell["mean"]
    assert line["motion"] == (cell["motion"] or "")
    assert [float(x) for x in line["values"].split()] == cell["values"]
  markdown = (folder / "report.md").read_text().replace("\\", "")
  assert "| n1 | 0.00<br>paper 9.15 | 26.51 ± 0.07<br>paper 28.24<br>Δ +0.45" in markdown
  assert (
    "| n1 | 0.00<br>paper 9.15 | 12.5 | 12.5 | 60 | 60 | 9 | 1.000<br>paper 0.424 |" in markdown
  )
  assert "model.flows 0 → 3" in markdown
  assert "python -m train --note 'a b0'" in markdown
  assert "| k10 minus k10_conventional |" in markdown


def fail(sweep):
  change(sweep / "n1/1/row.json", state="failed", stage="joint", reason="out of memory")


LEFT_OUT = {
  "failed": (fail, "seed 1: failed in joint: out of memory"),
  "running": (
    lambda sweep: change(sweep / "n1/0/row.json", state="running", stage="joint"),
    "seed 0: running (joint)",
  ),
  "waiting": (lambda sweep: (sweep / "n1/1/row.json").unlink(), "seed 1: waiting"),
  "half scored": (
    lambda sweep: change(sweep / "n1/1/evaluation/metrics.json", complete=False),
    "seed 1: its evaluation is not complete",
  ),
  "not scored": (
    lambda sweep: shutil.rmtree(sweep / "n1/1/evaluation"),
    "seed 1: its evaluation is not complete",
  ),
  "steps": (
    lambda sweep: (sweep / "n1/1/joint/checkpoints/4").rename(sweep / "n1/1/joint/checkpoints/5"),
    "not made as fma_net: steps of joint is 5, not 4",
  ),
  "evaluation": (
    lambda sweep: change(sweep / "n1/1/evaluation/metrics.json", left_out_at_each_end=2),
    "not made as fma_net: left_out_at_each_end is 2, not nothing",
  ),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_rows_that_cannot_be_compared_are_named_and_not_mixed_in(sweep, run, case):
  prepare, reason = LEFT_OUT[case]
  prepare(sweep)
  if case == "steps":
    change(sweep / "n1/1/joint/checkpoints/5/meta/meta.json", step=5)
  folder, _ = run(sweep)
  (system,) = json.loads((folder / "report.json").read_text())["systems"]
  assert system["left_out"] == {"n1": reason}
  assert list(system["rows"]) == ["fma_net", "k10", "k10_conventional"]
  assert reason in Page((folder / "report.html").read_text()).text


def test_seeds_that_are_done_can_be_compared_alone(sweep, run):
  fail(sweep)
  folder, _ = run(sweep, "--seeds", "0")
  (system,) = json.loads((folder / "report.json").read_text())["systems"]
  assert system["left_out"] == {}
  assert {tuple(row["seeds"]) for row in system["rows"].values()} == {(0,)}
  assert system["rows"]["n1"]["cells"][0]["spread"] is None


def test_a_row_alone_is_shown_with_what_table_3_has(sweep, run):
  change(sweep / "sweep.json", rows={"fma_net": {}})
  folder, _ = run(sweep)
  markdown = (folder / "report.md").read_text().replace("\\", "")
  assert "(Table 3): Net^D's reconstruction" in markdown
  assert "No difference to fma_net is there" in markdown


def test_without_the_base_row_there_are_no_differences(sweep, run):
  (sweep / "fma_net/0/row.json").unlink()
  folder, _ = run(sweep)
  (system,) = json.loads((folder / "report.json").read_text())["systems"]
  cells = [cell for row in system["rows"].values() for cell in row["cells"]]
  assert cells
  assert {cell["difference"] for cell in cells} == {None}


def test_parts_of_a_sweep_are_joined_and_systems_stand_side_by_side(sweep, run, tmp_path):
  other, faces = tmp_path / "other", tmp_path / "faces"
  made.write_sweep(other, "fmanet", {"n5": {"model.flows": 5}}, (0, 1))
  for seed in (0, 1):
    made.write_trial(other, "fmanet", "n5", seed, VALUES["n1"])
  made.write_sweep(faces, "keep", {"keep": {}, "no_kfn": {"model.gain": "none"}}, (3,))
  for row in ("keep", "no_kfn"):
    made.write_trial(faces, "keep", row, 3, {"lpips": 0.2, "ids": 0.8, "sigma_ids": 0.04})
  folder, _ = run(sweep, faces, other)
  first, second = json.loads((folder / "report.json").read_text())["systems"]
  assert list(first["rows"]) == [*ROWS, "n5"]
  assert (second["system"], list(second["rows"])) == ("keep", ["keep", "no_kfn"])
  markdown = (folder / "report.md").read_text()
  assert "| row | LPIPS ↓ | IDS ↑ | σ\\_IDS ×100 ↓ |" in markdown
  assert "35.00<br>paper 3.69" in markdown  # 0.04 + 0.1 * seed + 0.01, 0.036866 in the paper


def test_a_run_that_rows_share_is_found_where_it_lies(sweep, run):
  row = sweep / "n1/0/row.json"
  change(row, runs={"degradation": "fma_net/0/degradation", "joint": "n1/0/joint"})
  shutil.rmtree(sweep / "n1/0/degradation")
  (part,) = report.read([sweep])
  assert part.rows["n1"][0].runs["degradation"] == sweep / "fma_net/0/degradation"
  assert list(part.rows["n1"][0].metas) == ["degradation", "joint"]


def test_what_comes_from_files_is_no_markup(sweep, run):
  name = "<b>|*x*"
  change(sweep / "sweep.json", rows={**ROWS, name: {}})
  for seed in (0, 1):
    config = {"</pre><script>": "<i>"}
    made.write_trial(sweep, "fmanet", name, seed, VALUES["n1"], config=config)
  folder, _ = run(sweep)
  page = Page((folder / "report.html").read_text())
  assert name in page.text
  assert "model.</pre><script> null → <i>" in page.text
  assert "\\<b\\>\\|\\*x\\*" in (folder / "report.md").read_text()


def test_strips_show_the_best_the_median_and_the_worst_frame(sweep, run):
  base = {"alley": (30.0, 30.0, 30.0), "city": (20.0, 20.0)}
  made.write_strips(sweep / "fma_net/0", "FMA-Net", base, 100)
  gains = {"k10": 140, "k10_conventional": 180, "n1": 220}
  for times, (row, grey) in enumerate(gains.items()):
    psnr = {"alley": (30.0 + times, 31.0, 29.0), "city": (20.5, 17.0 - times)}
    made.write_strips(sweep / row / "0", "FMA-Net", psnr, grey, flow=row != "k10_conventional")
  folder, _ = run(sweep)
  text = (folder / "report.md").read_text().replace("\\", "")
  assert (
    "best alley frame 0 (+1.00), median city frame 0 (+0.50), worst city frame 1 (-4.00)" in text
  )
  picture = read_image(folder / "figures" / "fmanet_strips.png")
  assert picture.shape == (3 * 256, 6 * 256, 3)
  middles = picture[128::256, 128::256, 0]
  inner = [100, *gains.values()]
  assert middles.tolist() == [[0, *inner, 5], [0, *inner, 5], [10, *inner, 15]]
  picture = read_image(folder / "figures" / "fmanet_maps.png")
  assert picture[128::256, 128::256, 0].tolist() == [[gains["k10"] + 1, gains["n1"] + 1]] * 3
  shutil.rmtree(sweep / "k10/0/evaluation/strips")
  run(sweep)
  assert "evaluations have none of the same frames" in (folder / "report.md").read_text()


def test_tensorboard_has_a_row_a_run(sweep, run):
  for _ in range(2):  # the second one in place of the first
    folder, _ = run(sweep)
  place = folder / "tensorboard" / "fmanet" / "k10_conventional" / "1"
  (file,) = place.iterdir()
  events = EventAccumulator(str(place)).Reload()
  content = events.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
  told = HParamsPluginData.FromString(content).session_start_info.hparams
  assert told["row"].string_value == "k10_conventional"
  assert told["seed"].number_value == 1
  assert told["model.filtering"].string_value == '"conventional"'
  assert told["model.flows"].string_value == ""
  (point,) = events.Scalars("restored/psnr")
  metrics = json.loads((sweep / "k10_conventional/1/evaluation/metrics.json").read_text())
  assert point.value == pytest.approx(metrics["total"]["scores"]["FMA-Net"]["psnr"])
