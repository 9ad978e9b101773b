"""The pages in a real Chromium: they draw, play, seek, filter and flag, and nothing of the data runs or leaves."""

import io
import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from PIL import Image

from flows.browse.flags import Flags
from flows.browse.server import make_app
from schemas import tables
from tests.manifests import made

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: make setup installs it"
)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium on this machine: apt-get install chromium"
)

FRAMES, BITS, BLOCK = 30, 6, 8
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
VIDEO, PICTURES = "hcstvg-train-v-0", "a2d-test-v-0"
READ_FRAME = f"""(source) => {{
  const canvas = Object.assign(document.createElement("canvas"), {{ width: {made.SIZE[1]}, height: {made.SIZE[0]} }});
  const pen = canvas.getContext("2d");
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit++)
    if (pen.getImageData(bit * {BLOCK} + {BLOCK // 2}, {BLOCK // 2}, 1, 1).data[0] > 127) number |= 1 << bit;
  return number;
}}"""


def numbered(size: tuple[int, int]) -> np.ndarray:
    """The made frames, with each frame's number in black and white blocks at the top left."""
    frames = made_pictures(size)
    for t, frame in enumerate(frames):
        for bit in range(BITS):
            frame[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (t >> bit & 1)
    return frames


made_pictures = made.pictures


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A clip of video and one of pictures, two samples each, one of them hostile; and a hostile row of quarantine."""
    folder = tmp_path_factory.mktemp("browser") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "FRAMES", FRAMES)
        patch.setattr(made, "CAPTIONS", (HOSTILE, "a blue | one"))
        patch.setattr(made, "pictures", numbered)
        made.make_whole(folder, ("hcstvg", "a2d"))
    part = folder / "manifests" / "quarantine" / "a2d-test-000000.parquet"
    row = dict.fromkeys(tables.schema("quarantine").names) | {
        "source": "a2d",
        "split": "test",
        "clip_id": HOSTILE,
        "stage": "plan",
        "reason": "known_bad",
        "message": HOSTILE,
        "where": HOSTILE,
        "attempt": 1,
        "retryable": False,
        "error_class": "",
        "shard": "a2d-test-000000",
    }
    tables.write(part, "quarantine", [row])
    return folder


@pytest.fixture(scope="module")
def flags(out) -> Flags:
    return Flags(out.parent / "flags.txt", out)


@pytest.fixture(scope="module")
def url(out, flags) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(make_app(out, flags), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url, flags):
    """A page of its own, without flags. It must log no error, and ask nobody but this server."""
    flags.file.unlink(missing_ok=True)
    context = browser.new_context(base_url=url, viewport={"width": 1400, "height": 900})
    page, errors, hosts = context.new_page(), [], set()
    page.set_default_timeout(10_000)
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield page
    context.close()
    assert [
        error for error in errors if "400 (Bad Request)" not in error
    ] == []  # of a WHERE that is wrong, on purpose
    assert hosts <= {urlsplit(url).netloc}


def ready(page, path: str = "") -> None:
    if path:
        page.goto(path)
    page.wait_for_selector("html[data-ready]")


def until(page, condition: str, *words: object) -> None:
    """Playwright's own wait_for_function needs eval in the page, which our Content-Security-Policy forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(condition, *words):
        assert time.monotonic() < deadline, f"never came true: {condition[:200]} {words}"
        page.wait_for_timeout(10)


def shown(page) -> int:
    """The number of the frame that the canvas has been drawn for."""
    return int(page.locator("#overlay").get_attribute("data-frame"))


def seen(page, of: str = "#video") -> int:
    """The number that is in the picture."""
    return page.locator(of).evaluate(READ_FRAME)


def settles(page, frame: int, of: str = "#video") -> None:
    """The picture and the canvas come to show `frame`."""
    until(
        page, f"([frame, of]) => ({READ_FRAME})(document.querySelector(of)) === frame", [frame, of]
    )
    assert shown(page) == frame


@pytest.mark.parametrize(
    "path", ["/", "/gallery", "/quarantine", f"/clip/{VIDEO}", f"/clip/{PICTURES}"]
)
def test_what_the_data_say_is_shown_and_never_run(page, path):
    ready(page, path)
    assert page.title().endswith("SPARROW-TSF")
    assert page.locator("img[src=x], script:not([src])").count() == 0
    if path != "/":
        assert page.get_by_text(HOSTILE).count() > 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_video_is_drawn_on_by_the_frame_at_every_seek(page):
    ready(page, f"/clip/{VIDEO}")
    settles(page, 0)
    for key, frame in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("Shift+ArrowRight", 11),
        ("End", FRAMES - 1),
        ("ArrowRight", FRAMES - 1),
        ("3", 2),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        settles(page, frame)
    for frame in range(1, FRAMES):
        page.keyboard.press("ArrowRight")
        settles(page, frame)
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    settles(page, FRAMES - 1)  # and stays there


def test_a_video_is_drawn_on_by_the_frame_while_it_plays(page):
    """Our callback runs after the player's: canvas and picture are of the same frame."""
    ready(page, f"/clip/{VIDEO}")
    pairs = page.evaluate(
        f"""async () => {{
          const video = document.getElementById("video"), overlay = document.getElementById("overlay"), read = {READ_FRAME};
          const pairs = [];
          document.getElementById("play").click();
          await new Promise((done) => {{
            const step = () => {{
              pairs.push([read(video), +overlay.dataset.frame]);
              pairs.length < 45 ? video.requestVideoFrameCallback(step) : done();
            }};
            video.requestVideoFrameCallback(step);
          }});
          return pairs;
        }}"""
    )
    assert len({seen for seen, _ in pairs}) > 5
    assert any(later < earlier for (earlier, _), (later, _) in itertools.pairwise(pairs)), (
        "it goes round"
    )
    # On a busy machine the browser may call back when the next frame is already there: it promises no more.
    others = [(seen, drawn) for seen, drawn in pairs if seen != drawn]
    assert len(others) < 5, pairs
    assert all((seen - drawn) % FRAMES == 1 for seen, drawn in others), pairs
    page.keyboard.press(" ")
    assert page.locator("#play").text_content() == "play"
    assert seen(page) == shown(page)


def colours(page, canvas: str, *points: tuple[float, float]) -> list[list[int]]:
    """R G B A of a canvas at points of the video."""
    return page.locator(canvas).evaluate(
        """(canvas, [width, points]) => points.map(([x, y]) => {
          const scale = canvas.width / width;
          return [...canvas.getContext("2d").getImageData(Math.floor(x * scale), Math.floor(y * scale), 1, 1).data];
        })""",
        [made.SIZE[1] + 1, [list(map(float, point)) for point in points]],
    )


def test_boxes_and_masks_are_where_the_annotation_has_them(page):
    ready(page, f"/clip/{VIDEO}")
    page.keyboard.press("3")
    settles(page, 2)
    x1, y1, x2, y2 = made.boxes(0)[2]
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    outside, edge, inside = colours(page, "#overlay", (x2 + 20, y2 + 20), (x1, middle[1]), middle)
    assert outside == [0, 0, 0, 0]
    assert edge[0] > 200 > 180 > edge[1]  # the orange track
    assert inside[2] > 200 > inside[0]  # the blue mask
    assert 50 < inside[3] < 200  # the video is seen through it
    page.locator(".layer[value=mask]").uncheck()
    assert colours(page, "#overlay", middle) == [[0, 0, 0, 0]]


def test_the_timeline_and_the_representatives_lead_to_their_frames(page):
    ready(page, f"/clip/{VIDEO}")

    def click(frame: int) -> None:
        box = page.locator("#timeline").bounding_box()
        page.mouse.click(
            box["x"] + box["width"] * (frame + 0.5) / FRAMES, box["y"] + box["height"] - 5
        )

    for frame in (20, 7):
        click(frame)
        settles(page, frame)
        assert page.locator("#where").text_content().startswith(f"frame {frame} of 0-{FRAMES - 1}")
    page.locator("#timeline .representative").nth(3).locator("circle").click()
    settles(page, 3)
    page.locator(".crop").nth(1).click()
    settles(page, 1)
    page.keyboard.press("End")
    settles(page, FRAMES - 1)
    assert "kept" in page.locator("#where").text_content()
    click(made.LOST)
    assert "dropped: low_iou" in page.locator("#where").text_content()


def test_side_by_side_has_each_on_its_own(page):
    ready(page, f"/clip/{VIDEO}")
    page.keyboard.press("3")
    settles(page, 2)
    page.keyboard.press("s")
    lefts = [figure.bounding_box()["x"] for figure in page.locator("#panels figure").all()]
    assert len(lefts) == 3
    assert lefts == sorted(lefts)
    x1, y1, x2, y2 = made.boxes(0)[2]
    edge, middle = (x1, (y1 + y2) / 2), ((x1 + x2) / 2, (y1 + y2) / 2)
    ((green, _),) = [colours(page, "#overlay", edge, middle)]
    track = colours(page, "canvas[data-layer=track]", edge, middle)
    mask = colours(page, "canvas[data-layer=mask]", middle)[0]
    assert green[1] > green[0]
    assert track[0][1] > 100  # orange, and the red square inside
    assert track[1][1] < 80
    assert mask[2] > track[1][2] + 40
    assert seen(page, "canvas[data-layer=mask]") == 2


def test_a_clip_of_pictures_is_in_step_too(page):
    ready(page, f"/clip/{PICTURES}")
    for key, frame in (("End", FRAMES - 1), ("2", 1), ("ArrowRight", 2)):
        page.keyboard.press(key)
        settles(page, frame, "#picture")
    page.keyboard.press(" ")
    until(page, "+document.getElementById('overlay').dataset.frame > 6")
    page.keyboard.press(" ")
    until(page, "document.getElementById('picture').complete")
    settles(page, shown(page), "#picture")


def test_the_keyboard_leads_through_the_gallery_and_flags(page, flags):
    ready(page, "/gallery?order=id")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("f")
    page.locator(".cell.flagged").wait_for()
    second = page.evaluate("document.activeElement.dataset.referent")
    assert flags.read() == {second}
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/clip/{second}*")
    ready(page)
    assert page.locator("#flag").get_attribute("aria-pressed") == "true"
    page.keyboard.press("j")
    page.wait_for_url(lambda url: "/clip/" in url and second not in url)
    ready(page)
    third = page.locator("#viewer").get_attribute("data-referent")
    page.keyboard.press("f")
    until(page, "document.getElementById('flags').textContent === '2'")
    page.keyboard.press("Escape")
    page.wait_for_url("**/gallery?*")
    ready(page)
    assert page.evaluate("document.activeElement.dataset.referent") == third
    page.get_by_role("link", name="flagged").click()
    ready(page)
    assert page.locator(".card").count() == 2
    with page.expect_download() as download:
        page.get_by_text("flags.txt", exact=True).click()
    assert Path(download.value.path()).read_text() == "".join(
        f"{flag}\n" for flag in sorted([second, third])
    )
    page.locator(".cell").first.hover()
    page.locator(".mark").first.click()
    until(page, "document.getElementById('flags').textContent === '1'")


def test_filters_say_what_they_do_and_a_wrong_where_says_what_is_wrong(page):
    ready(page, "/gallery")
    page.locator(".facet a", has_text="hcstvg").click()
    ready(page)
    assert page.locator(".card").count() == 2
    assert page.locator(".chip").text_content().startswith("source hcstvg")
    page.keyboard.press("w")
    page.keyboard.type("n_kep = 1")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    assert 'Candidate bindings: "n_kept"' in page.get_by_role("alert").text_content()
    page.locator("#where").fill("")
    page.locator(".columns summary").click()
    page.locator(".column[data-name=n_kept]").click()
    page.keyboard.type(f" = {FRAMES}")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**where=n_kept+%3D+{FRAMES}*")
    ready(page)
    assert page.locator(".card").count() == 1
    page.locator(".chip", has_text="source").click()
    ready(page)
    assert page.locator(".card").count() == 2
    page.keyboard.press("/")
    page.keyboard.type("nothing like it")
    page.keyboard.press("Enter")
    page.get_by_text("Nothing matches.").wait_for()


def test_a_card_plays_under_the_pointer_and_pages_fit_a_small_window(page):
    page.set_viewport_size({"width": 800, "height": 700})
    ready(page, "/gallery?source=hcstvg")
    page.locator(".card").first.hover()
    until(page, "document.querySelector('.thumb video')?.currentTime > 0.05")
    page.mouse.move(0, 0)
    page.locator(".thumb video").wait_for(state="detached")
    for path in ("/gallery", "/quarantine", "/", f"/clip/{VIDEO}"):
        ready(page, path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    page.locator("#theme").click()
    dark = np.asarray(
        Image.open(io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 40, "height": 40})))
    )
    assert dark[2, 2].max() < 80


def test_a_browser_cannot_leave_the_folder_of_static_files(page):
    ready(page, "/")
    for path in (
        "/static/..%2fserver.py",
        "/static/%2e%2e%2fserver.py",
        f"/member/{VIDEO}/..%2f..%2fcatalog.sql",
    ):
        assert page.request.get(path).status == 404, path
