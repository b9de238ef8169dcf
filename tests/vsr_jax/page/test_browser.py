"""The page in a real browser, headless Chromium: a clip is dropped, restored, compared, downloaded.

Needs gradio (the extra "page"), selenium, and Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.vsr_jax.clips import encode, moving_waves
from vsr_jax import images, video

MISSING = [
  *(name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None),
  *(name for name in ("chromium", "chromedriver") if shutil.which(name) is None),
]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
PATIENCE = 600.0  # seconds; a restore command compiles first


class Server:
  """The page, served by a process."""

  def __init__(self, folder: pathlib.Path, *options: str):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      self.port = free.getsockname()[1]
    self.folder, self.log = folder, folder / "log"
    command = [sys.executable, "-m", "vsr_jax.page", "--port", str(self.port), *options]
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_HEARTBEAT_INTERVAL": "0.5"}
    with self.log.open("wb") as log:
      self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    wait_for(lambda: "the page is at" in self.log.read_text() or self.process.poll() is not None)
    assert self.process.poll() is None, self.log.read_text()

  def kept(self, *kinds: str) -> list[str]:
    """The folders of clips and jobs that are there."""
    return sorted(path.name for kind in kinds for path in self.folder.glob(f"vsr_page.*/{kind}_*"))

  def runs(self) -> bool:
    """Whether a restore command runs."""
    children = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children")
    return any(path.read_text().split() for path in children)

  def end(self) -> None:
    self.process.send_signal(signal.SIGINT)
    assert self.process.wait(60) == 130, self.log.read_text()


def wait_for(condition, seconds: float = PATIENCE) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.2)


def press(find) -> None:
  """Clicks on what `find` gives, as soon as nothing lies over it."""
  from selenium.common.exceptions import WebDriverException

  def pressed() -> bool:
    with contextlib.suppress(WebDriverException, StopIteration):
      find().click()
      return True
    return False

  wait_for(pressed, 60)


class Browser:
  """One tab of the page, in a browser of its own."""

  def __init__(self, server: Server, system: str, folder: pathlib.Path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1300,1200"):
      options.add_argument(f"--{flag}")
    self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    self.system, self.folder = system, folder
    self.driver.get(f"http://127.0.0.1:{server.port}/")
    wait_for(lambda: self.all("[role=tab]"))
    title = {"fmanet": "FMA-Net", "keep": "KEEP"}[system]
    press(lambda: next(tab for tab in self.all("[role=tab]") if tab.text == title))
    wait_for(lambda: self.all(self.part("clip")) and self.one("restore").is_displayed())

  def part(self, name: str) -> str:
    return f"#{self.system}_{name}"

  def all(self, selector: str) -> list:
    return self.driver.find_elements("css selector", selector)

  def one(self, name: str, within: str = ""):
    return self.driver.find_element("css selector", f"{self.part(name)} {within}")

  def text(self, name: str) -> str:
    found = self.all(self.part(name))
    with contextlib.suppress(Exception):  # it is drawn anew just now
      return found[0].text
    return ""

  def drop(self, path: pathlib.Path) -> None:
    """Drops a file where files are dropped, as a mouse does; and waits until it was looked at."""
    before = self.text("about")
    target = self.one("clip", "button")
    take = """
      const input = document.createElement('input'); input.type = 'file'; input.id = 'dropped';
      input.onchange = () => {
        const data = new DataTransfer(); data.items.add(input.files[0]); input.remove();
        for (const kind of ['dragenter', 'dragover', 'drop'])
          arguments[0].dispatchEvent(
            new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
      };
      document.body.append(input);
    """
    self.driver.execute_script(take, target)
    self.driver.find_element("id", "dropped").send_keys(str(path))
    wait_for(lambda: self.text("about") not in ("", before), 60)

  def press(self, name: str, within: str = "") -> None:
    press(lambda: self.one(name, within))

  def wait_until_restored(self) -> None:
    wait_for(lambda: self.text("status").startswith("restored") or self.wrong("status"))
    assert self.wrong("status") == []
    wait_for(lambda: self.all(f"{self.part('slider')} img"), 60)

  def wrong(self, name: str) -> list[str]:
    return [line.text for line in self.all(f"{self.part(name)} .wrong")]

  def quit(self) -> None:
    self.driver.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  made = Server(tmp_path_factory.mktemp("page"), "--max-megabytes", "2")
  yield made
  if made.process.poll() is None:
    made.process.kill()


@pytest.fixture
def browse(server, tmp_path):
  """Opens the page at a system's tab, in a browser of its own."""
  with contextlib.ExitStack() as stack:

    def browse(system):
      browser = Browser(server, system, tmp_path)
      stack.callback(browser.quit)
      return browser

    yield browse


@pytest.fixture
def clip(tmp_path):
  """Four small frames with sound, under a name that would do harm as an option or as HTML."""
  path = tmp_path / "--tile=1 <b onclick=x>.mp4"
  sound = np.sin(np.arange(48_000) / 20)
  encode(path, moving_waves(4, 24, 32), sound=("aac", sound))
  return path


def size_of(browser, selector):
  """The natural size of an image or a video, (width, height)."""
  script = """
    const [x] = arguments, kind = 'videoWidth' in x ? 'video' : 'natural';
    return [x[`${kind}Width`], x[`${kind}Height`]];
  """
  return tuple(browser.driver.execute_script(script, browser.all(selector)[0]))


def test_a_clip_is_dropped_restored_compared_and_downloaded(server, browse, clip, tmp_path):
  browser = browse("fmanet")
  browser.drop(clip)
  assert browser.text("about") == "32x24, 25 frames/s, 4 frames, 0.2 s, with sound"
  browser.press("restore")
  wait_for(lambda: "frame" in browser.text("status"))
  browser.wait_until_restored()
  figures = browser.text("figures").splitlines()
  assert figures[:4] == ["4", "frames", "128x96", "size"]
  assert {"restoring", "speed", "in all"} <= set(figures)
  # The slider: both pictures at the restored size; what is seen of one depends on the handle.
  pictures = browser.part("slider") + " img"
  wait_for(lambda: size_of(browser, pictures) == (128, 96), 60)
  from selenium.webdriver import ActionChains

  def clipped():
    return [image.get_attribute("style") for image in browser.all(pictures)]

  before = clipped()
  handle = browser.one("slider", "[data-testid=slider] .icon-wrap")
  ActionChains(browser.driver).click_and_hold(handle).move_by_offset(60, 0).release().perform()
  wait_for(lambda: clipped() != before, 60)
  # The player: both halves, with sound.
  player = browser.part("player") + " video"
  wait_for(lambda: size_of(browser, player) == (256, 96), 60)
  shown = video.probe(str(next(server.folder.glob("vsr_page.*/job_*/side_by_side.mp4"))))
  assert shown.has_audio
  browser.press("download")
  downloaded = tmp_path / "restored.mp4"
  wait_for(downloaded.exists, 60)
  info = video.probe(str(downloaded))
  assert (info.width, info.height, info.has_audio) == (128, 96, True)
  # Closing the browser deletes all.
  browser.quit()
  wait_for(lambda: server.kept("clip", "job") == [], 60)


def test_a_picture_is_restored(browse, tmp_path):
  path = tmp_path / "x.jpg"
  path.write_bytes(images.encode_image(moving_waves(1, 24, 32)[0], ".jpg"))
  browser = browse("fmanet")
  browser.drop(path)
  assert browser.text("about") == "a picture of 32x24"
  wait_for(lambda: not any(part.is_displayed() for part in browser.all("#fmanet_stop")), 60)
  browser.press("restore")
  browser.wait_until_restored()
  assert not any(part.is_displayed() for part in browser.all("#fmanet_player"))
  browser.press("download")
  wait_for((tmp_path / "restored.png").exists, 60)
  assert images.read_image(tmp_path / "restored.png").shape == (96, 128, 3)


def test_a_broken_file_shows_one_clear_message(server, browse, tmp_path):
  browser = browse("keep")
  broken = tmp_path / "broken.mp4"
  broken.write_bytes(b"\x00" * 3000)
  browser.drop(broken)
  (message,) = browser.wrong("about")
  with pytest.raises(Exception, match="not a readable video") as theirs:
    video.open_reader(str(broken))
  assert message == str(theirs.value).replace(str(broken), "the uploaded file")
  assert server.kept("clip") == []
  browser.press("restore")
  wait_for(lambda: browser.wrong("status"), 60)
  assert browser.wrong("status") == ["there is no clip yet; drop one, or take the example"]


def test_a_job_is_cancelled_and_the_next_one_gets_its_turn(server, browse, clip):
  first, second = browse("keep"), browse("fmanet")
  first.press("example")
  wait_for(lambda: "60 frames" in first.text("about"), 60)
  first.press("restore")
  wait_for(server.runs)
  second.drop(clip)
  second.press("restore")
  wait_for(lambda: second.text("status") == "waiting for 1 other clip", 60)
  first.press("cancel")
  wait_for(lambda: first.wrong("status") == ["cancelled"], 60)
  assert first.one("restore").is_enabled()
  second.wait_until_restored()


def test_a_browser_that_closes_in_the_middle_stops_its_job(server, browse):
  browser = browse("keep")
  browser.press("example")
  wait_for(lambda: "60 frames" in browser.text("about"), 60)
  browser.press("restore")
  wait_for(server.runs)
  browser.quit()
  wait_for(lambda: not server.runs() and server.kept("clip", "job") == [], 60)
  assert server.process.poll() is None


def test_paths_and_addresses_in_a_request_are_refused(server, browse, clip):
  browser = browse("fmanet")
  server_files = [str(server.log), "/etc/passwd"]
  upload = """
    const [done] = arguments, form = new FormData();
    form.append('files', new File([new Uint8Array(100)], '../../x.mp4'));
    fetch('/gradio_api/upload', {method: 'POST', body: form})
      .then(r => r.json()).then(paths => done(paths[0]));
  """
  uploaded = pathlib.Path(browser.driver.execute_async_script(upload))
  assert uploaded.name == "x.mp4"
  assert list(server.folder.glob(f"vsr_page.*/{'?' * 64}/x.mp4")) == [uploaded]
  ask = """
    const [path, done] = arguments;
    const events = window.gradio_config.dependencies;
    const event = events.find(d => d.targets.some(t => t[1] == 'upload'));
    const session = Math.random().toString(36).slice(2);
    fetch('/gradio_api/queue/join', {
      method: 'POST', headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({
        data: [{path: path, meta: {_type: 'gradio.FileData'}}], fn_index: event.id,
        session_hash: session})
    }).then(async r => {
      const stream = await fetch('/gradio_api/queue/data?session_hash=' + session);
      const reader = stream.body.getReader();
      let text = '';
      while (!text.includes('process_completed')) {
        const {value, done: over} = await reader.read();
        if (over) break;
        text += new TextDecoder().decode(value);
      }
      reader.cancel(); done(text);
    }).catch(e => done(String(e)));
  """
  answer = browser.driver.execute_async_script(ask, str(uploaded))
  assert "the uploaded file: " in answer, answer  # it was looked into: this way works
  assert not uploaded.exists()
  for path in (*server_files, "http://127.0.0.1:1/a.mp4", str(uploaded), str(uploaded.parents[1])):
    answer = browser.driver.execute_async_script(ask, path)
    assert '"success":false' in answer or "did not arrive" in answer, answer
  for path in server_files:
    status = "fetch('/gradio_api/file=' + arguments[0]).then(r => arguments[1](r.status))"
    assert browser.driver.execute_async_script(status, path) == 403
  assert server.kept("clip") == []


def test_a_second_page_on_the_port_is_refused_in_one_line(server):
  command = [sys.executable, "-m", "vsr_jax.page", "--port", str(server.port)]
  ended = subprocess.run(command, capture_output=True, text=True, check=False)
  assert ended.returncode == 2
  (line,) = ended.stderr.splitlines()
  assert line.startswith(f"error: 127.0.0.1:{server.port}: nothing can be served here")


def test_ctrl_c_ends_the_page_and_leaves_nothing(server):
  server.end()
  assert list(server.folder.glob("vsr_page*")) == []
