"""What a sweep has to train: which runs there are, what is shared, which host does what."""

from __future__ import annotations

import pytest

from vsr_jax.configs.keep import ablations as keep_ablations
from vsr_jax.sweeps import plan, table

TABLES = {name: f"configs/{name}/ablations.py" for name in ("fmanet", "keep")}


def chains_of(
  system, rows="all", *, budget="paper", stages="all", seeds=(0,), given=(), length=1.0
):
  rows_of = table.load(TABLES[system])
  names = table.choose("--rows", rows, list(rows_of.rows))
  chosen = table.choose("--stages", stages, rows_of.all_stages)
  changes = table.parse_changes(given, rows_of, budget)
  return plan.make_chains(rows_of, budget, names, chosen, seeds, changes, length)


def paths(chains):
  return {chain.path: [run.path for run in chain.runs] for chain in chains}


@pytest.mark.parametrize(
  ("system", "rows", "runs"),
  [
    # 17 rows with two stages, but one with one; sft and self_attention_sft share stage 1.
    ("fmanet", 17, 2 * 17 - 1 - 2),
    # One stage I, 11 of II as no_cfa shares keep's, 12 of III, and the one for both.
    ("keep", 13, 1 + 11 + 12 + 1),
  ],
)
def test_the_full_tables_share_what_is_the_same(system, rows, runs):
  chains = chains_of(system)
  assert len(chains) == rows
  assert len(plan.all_runs(chains)) == runs
  thrice = chains_of(system, seeds=(0, 1, 7))
  assert len(plan.all_runs(thrice)) == 3 * runs  # another seed is another run
  assert {run.values["seed"] for chain in thrice for run in chain.runs} == {0, 1, 7}


def test_shared_runs_lie_where_the_table_has_them_first():
  found = paths(chains_of("fmanet", "sft,self_attention_sft,end_to_end,no_ta"))
  assert found == {
    "no_ta/0": ["no_ta/0/degradation", "no_ta/0/joint"],
    "end_to_end/0": ["end_to_end/0/end_to_end"],
    "sft/0": ["fma_net/0/degradation", "sft/0/joint"],  # though that row is not asked for
    "self_attention_sft/0": ["self_attention/0/degradation", "self_attention_sft/0/joint"],
  }
  found = paths(chains_of("keep", "no_cfa,no_kfn,end_to_end"))
  assert found == {
    "no_kfn/0": ["keep/0/vqgan", "no_kfn/0/prediction", "no_kfn/0/fusion"],
    "no_cfa/0": ["keep/0/vqgan", "keep/0/prediction", "no_cfa/0/fusion"],
    "end_to_end/0": ["keep/0/vqgan", "end_to_end/0/end_to_end"],
  }


def test_rows_that_are_the_base_at_a_small_size_share_everything():
  assert paths(chains_of("fmanet", "m2", budget="demo"))["m2/0"][-1] == "fma_net/0/joint"
  assert paths(chains_of("keep", "raft_small", budget="demo"))["raft_small/0"][-1] == (
    "keep/0/fusion"
  )


@pytest.mark.parametrize(
  ("given", "shared"),
  [
    (["--sft.loss.anchor_r", "0.2"], True),  # which stage 1 does not see
    (["--sft.loss.anchor_d", "0.2"], False),
    (["--joint.steps=7"], True),
    (["--sft.data.batch", "4"], False),
  ],
)
def test_a_row_shares_as_long_as_the_stage_sees_no_difference(given, shared):
  first = paths(chains_of("fmanet", "sft", given=given))["sft/0"][0]
  assert first == ("fma_net/0/degradation" if shared else "sft/0/degradation")


def test_changes_of_rows_are_on_top_of_all_others():
  given = ["--config.model.flows", "2", "--config.train.remat=true", "--joint.steps", "9"]
  given += [
    "--config.optim.net_d.boundaries",
    "(1,2)",
    "--k10.steps",
    "5",
    "--config.init_from",
    "x",
  ]
  one, ten = chains_of("fmanet", "n1,k10", budget="demo", given=given)
  assert [run.steps for run in one.runs] == [500, 9]
  assert [run.steps for run in ten.runs] == [5, 5]
  assert [run.values["model.flows"] for run in (*one.runs, *ten.runs)] == [1, 1, 2, 2]
  assert one.runs[1].values["optim.net_d.boundaries"] == (1, 2)
  assert one.runs[0].values["train.remat"] is True
  assert "model.flows" not in one.runs[0].changes
  assert ten.runs[0].values["model.kernel_down"] == 10


def test_a_sweep_may_be_shorter_than_its_recipes():
  given = ["--n1.optim.net_r.boundaries", "(5,)"]
  (one,) = chains_of("fmanet", "n1", budget="demo", given=given, length=0.1)
  values = one.runs[1].values
  assert (values["steps"], one.runs[0].steps) == (1200, 50)
  assert values["optim.net_d.boundaries"] == (840, 1020, 1140)
  assert values["optim.net_r.boundaries"] == (5,)
  assert values["train.ema_decay"] == pytest.approx(1 - 4 / 1200)
  assert one.runs[1].changes["steps"] == 1200  # told to the trainer
  (keep,) = chains_of("keep", "keep", budget="demo", length=0.5)
  assert [run.values["discriminator.start"] for run in keep.runs] == [2000, 0, 50]


def test_a_run_starts_from_the_one_before_and_flow_from_where_it_was_said():
  given = ["--config.init_from", "runs/vqgan, flow=weights/gmflow"]
  (chain,) = chains_of("keep", "no_cfa", stages="prediction,fusion", given=given)
  assert plan.start_of(chain.runs[0], "S") == "runs/vqgan, flow=weights/gmflow"
  assert plan.start_of(chain.runs[1], "S") == "flow=weights/gmflow,S/keep/0/prediction"


@pytest.mark.parametrize("parts", [1, 2, 3, 40])
def test_hosts_have_all_rows_once_and_share_no_run(parts):
  chains = chains_of("fmanet", budget="smoke", seeds=(0, 1))
  hosts = [plan.take_part(chains, i, parts) for i in range(1, parts + 1)]
  assert sorted(c.path for host in hosts for c in host) == sorted(c.path for c in chains)
  runs = [plan.all_runs(host).keys() for host in hosts]
  assert sum(map(len, runs)) == len(plan.all_runs(chains))
  steps = [sum(run.steps for run in plan.all_runs(host).values()) for host in hosts]
  assert max(steps) - min(steps) <= 16 or parts == 40


def test_keep_s_stage_i_has_no_changes_of_rows():
  """What its training does not depend on is all that rows change."""
  changed = {key for row in keep_ablations.OVERRIDES.values() for key in row} - {"stage"}
  assert changed == set(keep_ablations.UNSEEN["vqgan"])
  one, two = chains_of("keep", "keep,no_kfn", given=["--config.model.gain", "fixed"])
  assert one.runs[0] == two.runs[0]
  assert one.runs[1].values["model.gain"] == "fixed"
  assert two.runs[1].values["model.gain"] == "none"
