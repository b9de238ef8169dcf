"""What the page looks like: its parts, made of gradio's, and what happens when they are used.

Of what a browser sends, one thing is a path: that of an upload, which gradio takes only within its
own folder. It is read once, by `visits`; later events name the session alone.
"""

from __future__ import annotations

import dataclasses
import html
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from vsr_jax.errors import UserError
from vsr_jax.page import uploads
from vsr_jax.page.jobs import Job
from vsr_jax.page.uploads import Limits
from vsr_jax.page.visits import Visits

_POLL = 0.5  # seconds between looks at a job

_TITLES = {"fmanet": "FMA-Net", "keep": "KEEP"}
_ABOUT = {
  "fmanet": "Enlarges a clip and takes the blur of motion away.",
  "keep": "Restores the faces of a clip, and leaves what is around them.",
}
_EXAMPLES = {
  "fmanet": "Example: Big Buck Bunny, 160x90, blurred",
  "keep": "Example: a face, 288x176, blurred and compressed",
}
_HINT = "Drop a clip or a picture, or take the example; then press Restore."
_HIDDEN, _SAME = gr.update(visible=False), gr.update()
_FONTS = ("system-ui", "sans-serif")
_CSS = """
.gradio-container {width: 100%; max-width: 1280px !important; margin: auto}
.told {padding: 2px 0 !important; min-height: 22px; overflow-wrap: anywhere}
.told progress {width: 100%; height: 10px; accent-color: var(--color-accent)}
.told .wrong {color: var(--error-text-color, #b91c1c); font-weight: 600}
.told ul {margin: 6px 0 0 0; padding-left: 18px; font-size: 90%; opacity: 0.75}
.figures {display: flex; flex-wrap: wrap; gap: 8px}
.figures div {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 6px 12px}
.figures b {display: block; font-size: 112%}
.figures span {font-size: 85%; opacity: 0.75}
"""


@dataclasses.dataclass
class _Tab:
  """The parts of a system's tab that events read and write."""

  clip: gr.File
  example: gr.Button
  preview: gr.Image
  about: gr.HTML
  start: gr.Slider
  stop: gr.Slider
  options: dict[str, Any]
  restore: gr.Button
  cancel: gr.Button
  status: gr.HTML
  result: gr.Column
  slider: gr.ImageSlider
  moment: gr.Slider
  player: gr.Video
  figures: gr.HTML
  download: gr.DownloadButton


def build(visits: Visits, root: pathlib.Path, examples: Mapping[str, pathlib.Path]) -> gr.Blocks:
  """Makes the page.

  Args:
    visits: what visitors have and do.
    root: the folder in which gradio puts uploads.
    examples: by system, the clip that ships.
  """
  with gr.Blocks(title="Video restoration", analytics_enabled=False) as page:
    gr.Markdown("# Video restoration\nDrop a clip or a picture, restore it, and compare.")
    for system, title in _TITLES.items():
      with gr.Tab(title, id=system, elem_id=f"tab_{system}"):
        tab = _lay_out(system, visits)
        _Events(system, tab, visits, root, examples[system])
    limits = visits.limits
    gr.Markdown(
      f"Clips of at most {limits.megabytes:g} MB, {limits.seconds:g} s at once. They stay on this "
      f"machine, and are deleted after {limits.kept:g} minutes or when this page is closed."
    )

    def leave(request: gr.Request) -> None:
      visits.leave(request.session_hash or "")

    page.unload(leave)
  return page


def launch(page: gr.Blocks, host: str, port: int, limits: Limits) -> None:
  """Serves the page from threads; returns once it can be reached.

  Raises:
    UserError: nothing can be served there.
  """
  page.queue(max_size=4 * (limits.waiting + 1))
  try:
    page.launch(
      server_name=host,
      server_port=port,
      share=False,
      inbrowser=False,
      prevent_thread_lock=True,
      quiet=True,
      max_file_size=int(1e6 * limits.megabytes),
      theme=gr.themes.Default(font=_FONTS, font_mono=("monospace",)),
      css=_CSS,
      footer_links=[],
      run_history=False,
      enable_monitoring=False,
      mcp_server=False,
      ssr_mode=False,
    )
  except OSError as e:
    raise UserError(f"{host}:{port}: nothing can be served here ({e}); give another --port") from e


def _lay_out(system: str, visits: Visits) -> _Tab:
  gr.Markdown(_ABOUT[system])
  longest = visits.limits.seconds
  with gr.Row():
    with gr.Column(scale=2, min_width=320):
      clip = gr.File(label="Clip or picture", height=140, elem_id=f"{system}_clip")
      _refuse_addresses(clip)
      example = gr.Button(_EXAMPLES[system], size="sm", elem_id=f"{system}_example")
      with gr.Row():
        start = gr.Slider(0, longest, 0, step=0.04, label="From (s)", elem_id=f"{system}_start")
        stop = gr.Slider(0, longest, longest, step=0.04, label="To (s)", elem_id=f"{system}_stop")
      options = _options(system, visits)
      with gr.Row():
        restore = gr.Button("Restore", variant="primary", elem_id=f"{system}_restore")
        cancel = gr.Button("Cancel", interactive=False, elem_id=f"{system}_cancel")
      status = gr.HTML(elem_id=f"{system}_status", elem_classes="told")
    with gr.Column(scale=3, min_width=400):
      about = gr.HTML(_HINT, elem_id=f"{system}_about", elem_classes="told")
      preview = gr.Image(label="First frame", interactive=False, visible=False, buttons=[])
      with gr.Column(visible=False) as result:
        slider = gr.ImageSlider(
          label="Before | after", interactive=False, elem_id=f"{system}_slider", max_height=460
        )
        moment = gr.Slider(1, 2, 1, step=1, label="Frame shown", elem_id=f"{system}_moment")
        figures = gr.HTML(elem_id=f"{system}_figures")
        player = gr.Video(
          label="Before and after, side by side", interactive=False, elem_id=f"{system}_player"
        )
        download = gr.DownloadButton("Download", elem_id=f"{system}_download")
  return _Tab(
    clip, example, preview, about, start, stop, options, restore, cancel, status, result, slider,
    moment, player, figures, download,
  )  # fmt: skip


def _refuse_addresses(clip: gr.File) -> None:
  """Keeps gradio from fetching what a request names by an address instead of uploading it."""
  take = clip.async_move_resource_to_block_cache

  async def take_file(path: str | pathlib.Path | None) -> str | None:
    if path is not None and "://" in str(path):
      raise gr.Error("addresses are not taken; upload the file")
    return await take(path)

  vars(clip)["async_move_resource_to_block_cache"] = take_file


def _options(system: str, visits: Visits) -> dict[str, Any]:
  """The inputs for how to restore, by the names that `uploads.restore_options` knows."""
  made: dict[str, Any] = {}
  weights = list(visits.weights[system])
  made["weights"] = gr.Dropdown(weights, value=weights[0], label="Weights")
  if system == "keep":
    with gr.Row():
      made["faces"] = gr.Radio(uploads.FACES, value="largest", label="Faces")
      made["scale"] = gr.Slider(1, uploads.LARGEST_SCALE, 1, step=0.5, label="Enlarge by")
    made["strength"] = gr.Slider(
      0, 1, 1, step=0.05, label="Fidelity", info="0: the codebook's face, 1: the input's"
    )
  with gr.Accordion("More options", open=False):
    if system == "keep":
      backgrounds = uploads.BACKGROUNDS
      made["background"] = gr.Dropdown(backgrounds, value=backgrounds[0], label="Background by")
      made["skip_sharp"] = gr.Checkbox(label="Leave sharp faces alone")
    info = "of a network for the background" if system == "keep" else None
    made["tile"] = gr.Dropdown(uploads.TILES, value=uploads.TILES[0], label="Tiles", info=info)
    made["deinterlace"] = gr.Checkbox(label="Deinterlace")
  return made


class _Events:
  """What happens when the parts of a system's tab are used."""

  def __init__(
    self, system: str, tab: _Tab, visits: Visits, root: pathlib.Path, example: pathlib.Path
  ):
    self._system, self._visits, self._root, self._example = system, visits, root, example
    self._names = list(tab.options)
    quiet: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    quiet["show_progress"] = "hidden"  # `restore` shows its own
    looked = [tab.preview, tab.about, tab.start, tab.stop, tab.result]
    results = [tab.result, tab.slider, tab.moment, tab.player, tab.figures, tab.download]
    tab.clip.upload(self.receive, tab.clip, looked, **quiet)
    tab.clip.clear(self.clear, None, looked, **quiet)
    tab.example.click(self.show_example, None, [tab.clip, *looked], **quiet)
    tab.restore.click(
      self.restore,
      [tab.start, tab.stop, *tab.options.values()],
      [tab.status, tab.restore, tab.cancel, tab.preview, *results],
      **quiet,
    )
    tab.cancel.click(self.cancel, queue=False, **quiet)
    tab.moment.change(self.turn, tab.moment, tab.slider, **quiet)

  def receive(self, sent: str, request: gr.Request) -> list[Any]:
    """Takes an upload."""
    try:
      path = uploads.checked(sent, self._root)
    except UserError as e:
      return _refused(e)
    try:
      return self._look(path, request)
    finally:
      path.unlink(missing_ok=True)  # gradio's copy; ours is deleted with the session

  def show_example(self, request: gr.Request) -> list[Any]:
    """Takes the clip that ships; what was uploaded is put away."""
    return [None, *self._look(self._example, request)]

  def _look(self, path: pathlib.Path, request: gr.Request) -> list[Any]:
    try:
      upload = self._visits.take(self._key(request), path)
    except UserError as e:
      return _refused(e)
    longest = self._visits.limits.seconds
    end, moving = round(upload.seconds or longest, 2), not upload.info.is_folder
    return [
      gr.update(value=upload.first, visible=True),
      html.escape(upload.describe()),
      gr.update(value=0, maximum=end, visible=moving),
      gr.update(value=min(end, longest), maximum=end, visible=moving),
      _HIDDEN,
    ]

  def clear(self, request: gr.Request) -> list[Any]:
    """Puts the clip away; a result stays."""
    self._visits.forget(self._key(request))
    return [_HIDDEN, _HINT, _SAME, _SAME, _SAME]

  def restore(
    self, request: gr.Request, start: float, stop: float, *chosen: Any
  ) -> Iterator[list[Any]]:
    """Restores the clip, and tells how far that is."""
    visits = self._visits
    try:
      options = dict(zip(self._names, chosen, strict=True))
      job = visits.start(self._key(request), options, start, stop)
    except UserError as e:
      yield [_wrong(str(e)), *[_SAME] * 9]
      return
    yield [
      "starting",
      _usable(False),
      _usable(True),
      gr.update(visible=True),
      _HIDDEN,
      *[_SAME] * 5,
    ]
    told = ""
    while not job.has_ended:
      job.seen = time.monotonic()
      if (now := _progress(job, visits.ahead(job))) != told:
        told = now
        yield [told, *[_SAME] * 9]
      time.sleep(_POLL)
    yield [_ending(job), _usable(True), _usable(False), *_results(job)]

  def cancel(self, request: gr.Request) -> None:
    """Stops what is restored; `restore` then tells so."""
    self._visits.cancel(self._key(request))

  def turn(self, moment: float, request: gr.Request) -> Any:
    """Shows another frame."""
    job = self._visits.job(self._key(request))
    pairs = job.pairs if job else []
    return pairs[min(int(moment), len(pairs)) - 1] if pairs else _SAME

  def _key(self, request: gr.Request) -> tuple[str, str]:
    return request.session_hash or "", self._system


def _refused(error: UserError) -> list[Any]:
  return [_HIDDEN, _wrong(str(error)), _SAME, _SAME, _HIDDEN]


def _usable(be_used: bool) -> Any:
  return gr.update(interactive=be_used)


def _wrong(message: str) -> str:
  return f'<p class="wrong" role="alert">{html.escape(message)}</p>'


def _progress(job: Job, ahead: int) -> str:
  """How far a job is."""
  if job.state == "waiting":
    return f"waiting for {ahead} other clip{'s' * (ahead != 1)}" if ahead else "starting"
  if not job.total:
    return f"{html.escape(job.what)}<progress></progress>"
  more = job.compiling or (job.left and f"{job.left} left")
  text = f"{html.escape(job.what)}: frame {job.done} of {job.total}"
  text += f", {html.escape(more)}" if more else ""
  return f'{text}<progress value="{job.done}" max="{job.total}"></progress>'


def _ending(job: Job) -> str:
  """How a job ended, and the notes of the command."""
  if job.state != "done":
    return _wrong(job.reason or job.message)
  notes = "".join(f"<li>{html.escape(line)}</li>" for line in job.notes)
  return f"restored<ul>{notes}</ul>"


def _results(job: Job) -> list[Any]:
  """What the parts of the result show of a job that has ended, in place of the first frame."""
  if job.state != "done":
    return [_SAME, _HIDDEN, *[_SAME] * 5]
  pairs, beside = job.pairs, job.side_by_side
  figures = "".join(
    f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
    for name, value in job.numbers()
  )
  middle = len(pairs) // 2
  several = len(pairs) > 1
  return [
    _HIDDEN,
    gr.update(visible=True),
    pairs[middle] if pairs else None,
    gr.update(value=middle + 1, maximum=max(2, len(pairs)), visible=several),
    gr.update(value=str(beside) if beside else None, visible=beside is not None),
    f'<div class="figures">{figures}</div>',
    str(job.output),
  ]
